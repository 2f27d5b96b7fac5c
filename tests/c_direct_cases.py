"""Ops for the C code generator that capture does not yield: kinds and arguments."""

from __future__ import annotations

import torch

from tests.c_cases import bools, floats, ints, positive, unit

Q, K, V = floats(2, 4, 5, 8), floats(2, 4, 7, 8).flip(2), floats(2, 4, 7, 6)
SEEN = bools(5, 7)
SEEN[2] = False  # a query that sees no key

#: Arguments of ``mplan.attention``.
ATTENTION: tuple[dict[str, object], ...] = (
    {"query": Q, "key": K, "value": V},
    {"query": Q, "key": K, "value": V, "is_causal": True, "scale": 0.7},
    {"query": Q, "key": K, "value": V, "attn_mask": SEEN},
    {"query": Q, "key": K, "value": V, "attn_mask": SEEN, "is_causal": True},
    {"query": Q, "key": K, "value": V, "attn_mask": floats(2, 1, 5, 7)},
    {"query": Q, "key": K, "value": V, "attn_mask": SEEN.float().log()},
    {"query": Q, "key": K[:1], "value": V[:, :1]},
    {"query": Q, "key": K[:, :2], "value": V[:, 1:3], "enable_gqa": True},
    {
        "query": Q,
        "key": K[:, :1],
        "value": V[:, :1],
        "attn_mask": bools(2, 4, 5, 7),
        "enable_gqa": True,
    },
    {
        "query": floats(2, 5, 4, 8).transpose(1, 2),
        "key": floats(2, 7, 4, 8).transpose(1, 2),
        "value": V,
    },
    {"query": Q, "key": floats(2, 4, 8, 7).mT, "value": floats(2, 4, 6, 7).mT},
)

#: Kinds that capture decomposes or replaces, as a pass or a hand-written graph may have them.
DIRECT: tuple[tuple[str, dict[str, object]], ...] = (
    ("aten._prelu_kernel.default", {"self": floats(2, 3, 4), "weight": floats(1, 3, 1)}),
    ("aten._unsafe_index.Tensor", {"self": floats(4, 5), "indices": (None, ints(3, low=0, high=5))}),
    (
        "aten._unsafe_index_put.default",
        {"self": floats(4, 5), "indices": (torch.tensor([1, 3]),), "values": floats(2, 5)},
    ),
    ("aten.adaptive_avg_pool2d.default", {"self": floats(2, 3, 5, 7), "output_size": (2, 3)}),
    ("aten.addcdiv.default", {"self": floats(3, 4), "tensor1": floats(4), "tensor2": positive(3, 4)}),
    (
        "aten.addcmul.default",
        {"self": floats(3, 4), "tensor1": floats(4), "tensor2": unit(4), "value": 0.5},
    ),
    ("aten.all.default", {"self": bools(3, 4)}),
    ("aten.all.dim", {"self": floats(3, 4).round(), "dim": 1, "keepdim": True}),
    ("aten.all.dims", {"self": bools(3, 4, 2), "dim": (0, 2)}),
    ("aten.any.dims", {"self": bools(3, 4, 2), "dim": (0, 2), "keepdim": True}),
    ("aten.arange.default", {"end": 6}),
    ("aten.arange.start", {"start": 2, "end": 7}),
    (
        "aten.baddbmm.default",
        {"self": floats(3, 4, 6), "batch1": floats(3, 4, 5), "batch2": floats(3, 5, 6)},
    ),
    ("aten.bitwise_and.Scalar", {"self": ints(3, 4), "other": 3}),
    ("aten.bitwise_or.Scalar", {"self": ints(3, 4), "other": 4}),
    ("aten.bitwise_xor.Scalar", {"self": ints(3, 4), "other": -1}),
    ("aten.celu.default", {"self": floats(3, 4), "alpha": 0.7}),
    ("aten.clamp_max.default", {"self": floats(3, 4), "max": 0.1}),
    ("aten.clamp_min.default", {"self": floats(3, 4), "min": -0.1}),
    ("aten.conv1d.default", {"input": floats(1, 2, 9), "weight": floats(3, 2, 3), "padding": (1,)}),
    (
        "aten.conv2d.default",
        {"input": floats(1, 2, 6, 9), "weight": floats(3, 2, 3, 3), "stride": (2,)},
    ),
    ("aten.copy.default", {"self": floats(3, 4), "src": ints(4)}),
    ("aten.div.Scalar", {"self": floats(3, 4), "other": 3}),
    ("aten.div.Scalar_mode", {"self": floats(3, 4), "other": 0.3, "rounding_mode": "floor"}),
    ("aten.fill.Scalar", {"self": floats(3, 4), "value": 2.5}),
    ("aten.floor_divide.default", {"self": ints(3, 4), "other": ints(4, low=1)}),
    ("aten.group_norm.default", {"input": floats(2, 6, 3), "num_groups": 3, "weight": floats(6)}),
    ("aten.hardsigmoid.default", {"self": floats(3, 4) * 4}),
    ("aten.hardswish.default", {"self": floats(3, 4) * 4}),
    ("aten.layer_norm.default", {"input": floats(2, 6), "normalized_shape": (6,), "bias": floats(6)}),
    ("aten.lerp.Scalar", {"self": floats(3, 4), "end": floats(4, 3).t() + 1, "weight": 0.3}),
    ("aten.lerp.Tensor", {"self": floats(3, 4), "end": floats(4), "weight": unit(3, 4)}),
    ("aten.linear.default", {"input": floats(2, 6), "weight": floats(5, 6)}),
    ("aten.log_softmax.int", {"self": floats(3, 4), "dim": 0}),
    ("aten.lt.Scalar", {"self": ints(3, 4), "other": 0.5}),
    ("aten.masked_fill.Scalar", {"self": floats(3, 4), "mask": bools(3, 1), "value": -float("inf")}),
    ("aten.masked_fill.Tensor", {"self": floats(3, 4), "mask": bools(4), "value": torch.tensor(9.0)}),
    ("aten.matmul.default", {"self": floats(2, 3, 4), "other": floats(4, 5)}),
    ("aten.max_pool2d.default", {"self": floats(1, 2, 6, 8), "kernel_size": (2, 3)}),
    ("aten.min.default", {"self": floats(3, 4)}),
    ("aten.mish.default", {"self": floats(3, 4) * 30}),
    (
        "aten.native_batch_norm.default",
        {
            "input": floats(2, 3, 4),
            "weight": floats(3),
            "bias": None,
            "running_mean": floats(3),
            "running_var": positive(3),
            "training": False,
            "momentum": 0.1,
            "eps": 1e-3,
        },
    ),
    ("aten.ne.Scalar", {"self": ints(3, 4), "other": 2}),
    ("aten.ones.default", {"size": (3, 4)}),
    ("aten.ones_like.default", {"self": ints(3, 4)}),
    ("aten.relu6.default", {"self": floats(3, 4) * 9}),
    ("aten.rsub.Scalar", {"self": floats(3, 4), "other": 1.5, "alpha": 2}),
    ("aten.rsub.Tensor", {"self": floats(3, 4), "other": floats(4), "alpha": 2}),
    (
        "aten.scaled_dot_product_attention.default",
        {"query": Q, "key": K, "value": V, "is_causal": True},
    ),
    ("aten.select_scatter.default", {"self": floats(3, 4), "src": floats(3), "dim": 1, "index": -2}),
    ("aten.silu.default", {"self": floats(3, 4) * 30}),
    ("aten.softmax.int", {"self": floats(3, 4), "dim": 0}),
    ("aten.softplus.default", {"self": floats(3, 4) * 9, "beta": 2}),
    ("aten.square.default", {"self": floats(3, 4)}),
    ("aten.stack.default", {"tensors": (floats(3, 4), floats(4, 3).t()), "dim": 1}),
    ("aten.std.correction", {"self": floats(3, 4), "dim": (1,), "correction": 2}),
    ("aten.std.dim", {"self": floats(3, 4), "dim": (1,), "unbiased": False}),
    ("aten.sub.Scalar", {"self": floats(3, 4), "other": 2, "alpha": 3}),
    ("aten.sum.default", {"self": bools(3, 4)}),
    (
        "aten.upsample_bilinear2d.default",
        {"self": floats(1, 2, 3, 4), "output_size": (5, 6), "align_corners": False},
    ),
    (
        "aten.upsample_nearest2d.default",
        {"self": floats(1, 2, 3, 4), "output_size": (5, 9), "scales_h": 1.6},
    ),
    ("aten.var.dim", {"self": floats(3, 4), "dim": (0,), "keepdim": True}),
    ("aten.where.Scalar", {"condition": bools(3, 4), "self": 1.5, "other": 2}),
    ("aten.where.ScalarOther", {"condition": bools(3, 4), "self": floats(4), "other": 2}),
    ("aten.where.ScalarSelf", {"condition": bools(3, 4), "self": 2.5, "other": floats(4)}),
    ("aten.zeros.default", {"size": (3, 4)}),
    ("aten.zeros_like.default", {"self": floats(3, 4)}),
    *(("mplan.attention", case) for case in ATTENTION),
    ("mplan.copy", {"self": floats(4, 3).t()}),
)
