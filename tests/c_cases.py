"""Single-op cases for the C code generator: a function of tensors and the tensors, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Case = tuple[Callable[..., object], tuple[Tensor, ...]]
aten = torch.ops.aten


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator())


def positive(*shape: int) -> Tensor:
    return floats(*shape).abs() + 0.1


def unit(*shape: int) -> Tensor:
    return floats(*shape).tanh() * 0.9


def ints(*shape: int, low: int = -5, high: int = 6, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=_generator(), dtype=dtype)


def bools(*shape: int) -> Tensor:
    return floats(*shape) > 0


SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-40, 3.4e38])

_UNARY = {
    "abs neg relu sigmoid tanh gelu silu hardswish hardsigmoid exp sin cos erf sign": floats,
    "floor ceil round trunc square expm1 relu6 mish elu selu celu softplus leaky_relu": floats,
    "hardtanh log_sigmoid": floats,
    "log log2 log10 log1p sqrt rsqrt reciprocal": positive,
    "asin acos atan atanh sinh cosh tan asinh": unit,
}
_EXTRA = {
    name: getattr(F, name)
    for name in (
        *("gelu", "hardswish", "hardsigmoid", "relu6", "mish", "elu", "selu", "celu"),
        *("softplus", "leaky_relu", "hardtanh", "silu", "logsigmoid"),
    )
}


def _words(text: str) -> list[str]:
    return text.split()


def _unary() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for names, make in _UNARY.items():
        for name in names.split():
            key = name.replace("log_sigmoid", "logsigmoid")
            function = _EXTRA[key] if key in _EXTRA else getattr(torch, key)
            cases[name] = (function, (make(3, 7),))
    special = "abs neg relu sigmoid tanh exp sqrt sign floor isnan isinf hardtanh silu logical_not"
    for name in special.split():
        function = _EXTRA[name] if name in _EXTRA else getattr(torch, name)
        cases[f"{name}_special"] = (function, (SPECIAL,))
    cases["acosh"] = (torch.acosh, (positive(3, 7) + 1,))
    cases["gelu_tanh"] = (lambda x: F.gelu(x, approximate="tanh"), (floats(3, 7),))
    cases["elu_alpha"] = (lambda x: F.elu(x, 0.3), (floats(3, 7),))
    cases["exp2"] = (torch.exp2, (floats(3, 7),))
    cases["erfc"] = (torch.erfc, (floats(3, 7),))
    cases["abs_int"] = (torch.abs, (ints(4, 5),))
    cases["relu_u8"] = (torch.relu, (ints(4, 5, low=0, high=250, dtype=torch.uint8),))
    cases["neg_i8"] = (torch.neg, (ints(4, 5, dtype=torch.int8),))
    cases["sqrt_of_int"] = (torch.sqrt, (ints(4, 5, low=0),))
    cases["bitwise_not"] = (lambda a, b: (~a, ~b), (ints(4, 5), bools(4, 5)))
    cases["isnan_int"] = (torch.isnan, (ints(4, 5),))
    for exponent in (2, 3, 0.5, -0.5, -1, 1, 2.5, -2):
        cases[f"pow_{exponent}"] = (lambda x, e=exponent: x.pow(e), (positive(3, 7),))
    cases["pow_tensor"] = (torch.pow, (positive(3, 7), floats(7)))
    cases["pow_scalar_base"] = (lambda x: torch.pow(2.5, x), (floats(3, 7),))
    return cases


def _binary() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    pair = (floats(4, 5), floats(5, 4).t() + 0.05)
    for name in _words("add sub mul div maximum minimum atan2 fmod remainder eq ne lt le gt ge"):
        function = getattr(torch, name)
        cases[name] = (function, pair)
        cases[f"{name}_broadcast"] = (function, (floats(2, 1, 3, 5), floats(4, 1, 5) + 0.1))
    for name in _words("maximum minimum eq ne lt le"):
        cases[f"{name}_special"] = (getattr(torch, name), (SPECIAL, SPECIAL.flip(0).contiguous()))
    whole = (ints(4, 5), ints(4, 5).flip(0) * 2 + 1)
    bitwise = _words("bitwise_and bitwise_or bitwise_xor")
    for name in _words("add sub mul div maximum minimum remainder fmod eq lt") + bitwise:
        cases[f"{name}_int"] = (getattr(torch, name), whole)
    for name in [*_words("logical_and logical_or logical_xor eq mul add"), *bitwise]:
        cases[f"{name}_bool"] = (getattr(torch, name), (bools(4, 5), bools(5, 4).t()))
    for mode in ("floor", "trunc"):
        cases[f"div_{mode}"] = (lambda a, b, m=mode: torch.div(a, b, rounding_mode=m), pair)
        cases[f"div_{mode}_int"] = (lambda a, b, m=mode: torch.div(a, b, rounding_mode=m), whole)
    cases["add_mixed"] = (torch.add, (floats(4, 5), ints(4, 5)))
    cases["mul_bool_float"] = (torch.mul, (floats(4, 5), bools(5)))
    cases["add_alpha"] = (lambda a, b: torch.add(a, b, alpha=0.3), pair)
    cases["sub_alpha"] = (lambda a, b: torch.sub(a, b, alpha=2), pair)
    cases["add_i32_i64"] = (torch.add, (ints(4, 5, dtype=torch.int32), ints(5)))
    cases["add_0d_promotes"] = (torch.add, (ints(4, 5), torch.tensor(1.5)))
    cases["lt_int_float"] = (torch.lt, (ints(4, 5), floats(4, 5)))
    cases["scalars"] = (
        lambda a: (a + 1.5, a - 2, a * 0.5, a / 3, 1 - a, 2 / a, a > 0.1, a == 0),
        (pair[0],),
    )
    cases["scalars_int"] = (lambda a: (a + 1, a * 3, a / 2, a // 2, a % 3, a > 0, a + 0.5), (whole[0],))
    cases["where"] = (torch.where, (bools(4, 1), floats(4, 5), floats(5)))
    cases["where_scalar"] = (
        lambda c, a: torch.where(c, a, -float("inf")),
        (bools(4, 5), floats(4, 5)),
    )
    cases["where_int"] = (lambda c, a: torch.where(c, a, 7), (bools(4, 5), ints(4, 5)))
    cases["masked_fill"] = (lambda a, m: a.masked_fill(m, -1e9), (floats(4, 5), bools(5)))
    cases["clamp"] = (
        lambda a: (a.clamp(-0.5, 0.5), a.clamp(min=0.1), a.clamp(max=0.2)),
        (floats(4, 5),),
    )
    cases["clamp_reversed"] = (lambda a: a.clamp(0.5, -0.5), (floats(4, 5),))
    cases["clamp_special"] = (lambda a: a.clamp(-2.0, 2.0), (SPECIAL,))
    cases["clamp_tensor"] = (torch.clamp, (floats(4, 5), floats(5) - 1, floats(4, 1) + 1))
    cases["clamp_int"] = (lambda a: a.clamp(-2, 3), (ints(4, 5),))
    cases["prelu"] = (F.prelu, (floats(2, 3, 4), torch.tensor([0.1, 0.2, 0.3])))
    cases["lerp"] = (lambda a, b, w: torch.lerp(a, b, w), (*pair, unit(4, 5)))
    cases["addcmul"] = (lambda a, b, c: torch.addcmul(a, b, c, value=0.7), (*pair, floats(4, 5)))
    cases["addcdiv"] = (lambda a, b, c: torch.addcdiv(a, b, c, value=0.7), (*pair, positive(4, 5)))
    return cases


def _casts() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    sources = {
        "f32": floats(4, 6) * 50,
        "i64": ints(4, 6, low=-100, high=100),
        "i32": ints(4, 6, low=-100, high=100, dtype=torch.int32),
        "i16": ints(4, 6, low=-100, high=100, dtype=torch.int16),
        "i8": ints(4, 6, low=-100, high=100, dtype=torch.int8),
        "u8": ints(4, 6, low=0, high=200, dtype=torch.uint8),
        "bool": bools(4, 6),
    }
    targets = (torch.float32, torch.int64, torch.int32, torch.int16, torch.bool)
    for name, tensor in sources.items():
        cases[f"cast_{name}"] = (lambda x: tuple(x.to(t, copy=True) for t in targets), (tensor,))
    cases["cast_to_narrow"] = (lambda x: (x.abs().to(torch.uint8), x.to(torch.int8)), (sources["f32"],))
    return cases


def _moves() -> dict[str, Case]:
    x = floats(2, 3, 4, 5)
    return {
        "permuted_clone": (lambda x: x.permute(3, 1, 0, 2).contiguous(), (x,)),
        "permuted_add": (lambda x: x.permute(0, 2, 3, 1) + x.permute(0, 2, 3, 1)[..., :1], (x,)),
        "sliced": (lambda x: x[:, 1:, ::2, 1:4].exp(), (x,)),
        "selected": (lambda x: x[:, 1].neg() + x.select(3, 2)[:, :1, :, None], (x,)),
        "expanded": (lambda x: x[:, :1].expand(2, 6, 4, 5) * 2, (x,)),
        "views": (lambda x: x.view(6, 20).t().unsqueeze(0).squeeze(0).relu(), (x,)),
        "split": (lambda x: tuple(part * 2 for part in x.split(2, dim=3)), (x,)),
        "returned_view": (lambda x: (x * 2).permute(0, 2, 3, 1), (x,)),
        "returned_input": (lambda x: (x, x.exp()), (x,)),
        "returned_slice": (lambda x: x.exp()[:, 1, ::2], (x,)),
        "cat": (
            lambda a, b, c: torch.cat([a, b.t(), c], 1),
            (floats(4, 3), floats(2, 4), floats(4, 1)),
        ),
        "cat_0": (lambda a, b: torch.cat([a, b, a]), (floats(2, 3), floats(1, 3))),
        "cat_channels": (lambda x: torch.cat([x, x[:, :1], x], 1), (x,)),
        "cat_int": (lambda a: torch.cat([a, a], 1), (ints(2, 3),)),
        "stack": (lambda a: torch.stack([a, a + 1], 1), (floats(2, 3),)),
        "pad": (lambda x: F.pad(x, (1, 2, 3, 0), value=-1.5), (x,)),
        "pad_negative": (lambda x: F.pad(x, (-1, 2, 1, -2)), (x,)),
        "pad_channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (x,)),
        "pad_reflect": (lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"), (x,)),
        "pad_replicate": (lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"), (x,)),
        "repeat": (lambda x: x.repeat(2, 1, 3), (floats(3, 4, 5),)),
        "repeat_more": (lambda x: x.repeat(2, 2, 3), (floats(4, 5),)),
        "flip": (lambda x: x.flip(1, 3), (x,)),
        "roll": (lambda x: x.roll((1, -2), (2, 3)), (x,)),
        "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (floats(2, 8, 3, 5),)),
        "full": (
            lambda x: (torch.full((2, 3), 1.5) + x, torch.full_like(x, 2.0), torch.zeros(3) + x),
            (floats(3),),
        ),
        "arange": (
            lambda x: torch.arange(5) * x + torch.arange(1, 11, 2) - torch.arange(0, 1, 0.2),
            (floats(5),),
        ),
        "slice_scatter": (lambda x, s: torch.slice_scatter(x, s, 1, 0, 3, 2), (x, floats(2, 2, 4, 5))),
        "select_scatter": (lambda x, s: torch.select_scatter(x, s, 2, -1), (x, floats(2, 3, 5))),
        "scalar_tensor": (lambda x: torch.where(x > 0, x, torch.tensor(0.25)), (floats(4, 5),)),
        "cumsum": (lambda x: (x.cumsum(1), x.cumsum(-1), (x > 0).cumsum(0)), (x,)),
        "tril": (lambda x: x.tril() + x.triu(1) * 2, (floats(5, 5),)),
    }


def _put(x: Tensor, i: Tensor, v: Tensor) -> Tensor:
    y = x.clone()
    y[:, i] = v
    return y


def _indices() -> dict[str, Case]:
    table = floats(10, 6)
    square = floats(3, 4, 5)
    return {
        "embedding": (lambda i, t: F.embedding(i, t), (ints(2, 7, low=0, high=10), table)),
        "embedding_i32": (
            lambda i, t: F.embedding(i, t),
            (ints(3, low=0, high=10, dtype=torch.int32), table),
        ),
        "index_select": (lambda x, i: x.index_select(1, i), (square, ints(6, low=0, high=4))),
        "index_rows": (lambda x, i: x[i], (square, ints(2, 3, low=0, high=3))),
        "index_pair": (
            lambda x, i, j: x[:, i, j],
            (square, ints(3, low=0, high=4), ints(2, 1, low=0, high=5)),
        ),
        "index_apart": (
            lambda x, i, j: x[i, :, j],
            (square, ints(3, low=0, high=3), ints(3, low=0, high=5)),
        ),
        "index_negative": (lambda x, i: x[i], (square, torch.tensor([-1, 0, -3]))),
        "gather": (lambda x, i: x.gather(1, i), (square, ints(3, 2, 4, low=0, high=4))),
        "scatter": (
            lambda x, i, s: x.scatter(1, i, s),
            (square, ints(3, 1, 5, low=0, high=4), floats(3, 2, 5)),
        ),
        "scatter_value": (lambda x, i: x.scatter(2, i, 9.0), (square, ints(3, 4, 1, low=0, high=5))),
        "index_put": (
            lambda x, i, v: _put(x, i, v),
            (square, torch.tensor([2, 0]), floats(3, 2, 5)),
        ),
    }


def _reductions() -> dict[str, Case]:
    x = floats(3, 4, 5, 6)
    cases: dict[str, Case] = {}
    dims = {"last": (3,), "planes": (2, 3), "channels": (1,), "apart": (0, 2), "first": (0, 1)}
    for label, dim in dims.items():
        cases[f"sum_{label}"] = (lambda x, d=dim: x.sum(d), (x,))
        cases[f"mean_{label}"] = (lambda x, d=dim: x.mean(d, keepdim=True), (x,))
        cases[f"amax_{label}"] = (lambda x, d=dim: x.amax(d), (x,))
        cases[f"var_{label}"] = (lambda x, d=dim: x.var(d, correction=1), (x,))
        cases[f"norm_{label}"] = (lambda x, d=dim: torch.linalg.vector_norm(x, dim=d), (x,))
    cases["mean_permuted"] = (lambda x: x.permute(0, 2, 3, 1).mean((1, 3)), (x,))
    cases["amin"] = (lambda x: x.amin((1, 2), keepdim=True), (x,))
    cases["whole"] = (lambda x: (x.sum(), x.mean(), x.amax(), x.max(), x.std(), (x > 9).any()), (x,))
    cases["var_0"] = (lambda x: x.var((0, 1), correction=0, keepdim=True), (x,))
    cases["std"] = (lambda x: x.std(1), (x,))
    cases["var_mean"] = (lambda x: torch.var_mean(x, (2, 3)), (x,))
    cases["prod"] = (lambda x: (x.prod(1), x.prod()), (unit(3, 4) + 1,))
    cases["sum_int"] = (lambda x: (x.sum(1), (x > 0).sum(0), x.amax(1), x.amin(0)), (ints(3, 4),))
    cases["any_all"] = (
        lambda x: (x.any(1), x.all(0), (x > 1).any(), x.all(1, keepdim=True)),
        (floats(3, 4).round(),),
    )
    cases["argmax"] = (
        lambda x: (x.argmax(1), x.argmin(2, keepdim=True), x.argmax()),
        (floats(3, 4, 5),),
    )
    cases["argmax_int"] = (lambda x: x.argmax(-1), (torch.tensor([[1, 3, 3], [2, 2, 0]]),))
    cases["argmax_nan"] = (lambda x: (x.argmax(), x.argmin(), x.amax(), x.amin()), (SPECIAL,))
    cases["max_dim"] = (lambda x: (*x.max(1), *x.min(-1)), (floats(3, 4, 5),))
    cases["max_dim_values"] = (lambda x: x.max(1, keepdim=True)[0], (floats(3, 4, 5),))
    cases["normalize"] = (lambda x: F.normalize(x, dim=1), (x,))
    cases["logsumexp"] = (lambda x: x.logsumexp(1), (x,))
    cases["sum_0d"] = (lambda x: x.sum() + x.sum().mean(), (x,))
    return cases


def _norms() -> dict[str, Case]:
    x = floats(2, 6, 5, 4)
    w, b = floats(6), floats(6).flip(0)
    return {
        "softmax": (lambda x: x.softmax(-1), (x,)),
        "softmax_channels": (lambda x: x.softmax(1), (x,)),
        "softmax_permuted": (lambda x: x.permute(0, 3, 2, 1).softmax(-1), (x,)),
        "softmax_large": (lambda x: (x * 100).softmax(-1), (x,)),
        "softmax_masked": (
            lambda x: x.tril().masked_fill(x.tril() == 0, -float("inf")).softmax(-1),
            (floats(4, 4),),
        ),
        "log_softmax": (lambda x: x.log_softmax(1), (x,)),
        "layer_norm": (lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (6,), w, b), (x, w, b)),
        "layer_norm_plain": (lambda x: F.layer_norm(x, (5, 4), eps=1e-3), (x,)),
        "layer_norm_2d": (lambda x, w: F.layer_norm(x, (4, 6), w), (floats(3, 4, 6), floats(4, 6))),
        "layer_norm_no_bias": (lambda x, w: F.layer_norm(x, (6,), w), (floats(3, 4, 6), w)),
        "rms_norm": (lambda x, w: F.rms_norm(x, (6,), w), (floats(3, 4, 6), w)),
        "group_norm": (lambda x, w, b: F.group_norm(x, 3, w, b), (x, w, b)),
        "group_norm_plain": (lambda x: F.group_norm(x, 2), (x,)),
        "group_norm_1d": (lambda x, w, b: F.group_norm(x, 2, w, b), (floats(2, 6, 5), w, b)),
        "instance_norm": (lambda x: F.instance_norm(x), (x,)),
        "batch_norm": (
            lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, False),
            (x, floats(6), positive(6), w, b),
        ),
        "batch_norm_plain": (
            lambda x, m, v: F.batch_norm(x, m, v),
            (floats(5, 6), floats(6), positive(6)),
        ),
    }


def _products() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for m, k, n in (
        (1, 7, 9),
        (5, 3, 2),
        (2, 2, 2),
        (9, 4, 1),
        (1, 5, 1),
        (4, 8, 5),
        (7, 6, 13),
        (3, 1, 4),
    ):
        cases[f"mm_{m}_{k}_{n}"] = (torch.mm, (floats(m, k), floats(k, n)))
        cases[f"linear_{m}_{k}_{n}"] = (F.linear, (floats(m, k), floats(n, k), floats(n)))
    cases["mm_transposed"] = (lambda a, b: a.t() @ b.t(), (floats(4, 5), floats(6, 4)))
    cases["mm_sliced"] = (lambda a, b: a[:, ::2] @ b[1:4], (floats(5, 6), floats(4, 7)))
    cases["addmm"] = (
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2),
        (floats(4, 6), floats(4, 5), floats(5, 6)),
    )
    cases["addmm_no_bias"] = (
        lambda c, a, b: torch.addmm(c, a, b, beta=0),
        (floats(4, 6), floats(4, 5), floats(5, 6)),
    )
    cases["addmm_column"] = (torch.addmm, (floats(4, 1), floats(4, 5), floats(5, 6)))
    cases["bmm"] = (torch.bmm, (floats(3, 4, 5), floats(3, 5, 6)))
    cases["baddbmm"] = (torch.baddbmm, (floats(3, 4, 6), floats(3, 4, 5), floats(3, 5, 6)))
    cases["matmul"] = (torch.matmul, (floats(2, 1, 4, 5), floats(3, 5, 6)))
    cases["matmul_heads"] = (
        lambda x: x.view(2, 5, 3, 4).transpose(1, 2) @ x.view(2, 5, 3, 4).permute(0, 2, 3, 1),
        (floats(2, 5, 12),),
    )
    cases["linear_3d"] = (F.linear, (floats(2, 5, 6), floats(7, 6), floats(7)))
    cases["linear_1d"] = (F.linear, (floats(6), floats(7, 6), floats(7)))
    cases["linear_no_bias"] = (F.linear, (floats(5, 6), floats(7, 6)))
    cases["einsum"] = (
        lambda a, b: torch.einsum("bij,bkj->bik", a, b),
        (floats(2, 3, 4), floats(2, 5, 4)),
    )
    return cases


def _pools() -> dict[str, Case]:
    x = floats(2, 3, 9, 7)
    return {
        "max_pool": (lambda x: F.max_pool2d(x, 2), (x,)),
        "max_pool_padded": (lambda x: F.max_pool2d(x, 3, 2, 1), (x,)),
        "max_pool_dilated": (lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)), (x,)),
        "max_pool_ceil": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), (x,)),
        "max_pool_indices": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), (x,)),
        "max_pool_1d": (lambda x: F.max_pool1d(x, 3, 2), (floats(2, 3, 11),)),
        "max_pool_unbatched": (lambda x: F.max_pool2d(x, 2), (floats(3, 4, 6),)),
        "max_pool_nan": (lambda x: F.max_pool2d(x.view(1, 1, 3, 3), 2, 1), (SPECIAL,)),
        "avg_pool": (lambda x: F.avg_pool2d(x, 2), (x,)),
        "avg_pool_padded": (lambda x: F.avg_pool2d(x, 3, 2, 1), (x,)),
        "avg_pool_inside": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (x,)),
        "avg_pool_ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (x,)),
        "avg_pool_ceil_inside": (lambda x: F.avg_pool2d(x, 2, 2, 0, True, False), (x,)),
        "avg_pool_divisor": (lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=7), (x,)),
        "avg_pool_1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (floats(2, 3, 11),)),
        "adaptive_avg_pool": (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), (x,)),
        "adaptive_avg_pool_1": (lambda x: F.adaptive_avg_pool2d(x, 1), (x,)),
        "adaptive_avg_pool_up": (lambda x: F.adaptive_avg_pool2d(x, (11, 7)), (x,)),
        "nearest_factor": (lambda x: F.interpolate(x, scale_factor=2), (x,)),
        "nearest_size": (lambda x: F.interpolate(x, size=(5, 13)), (x,)),
        "nearest_fraction": (lambda x: F.interpolate(x, scale_factor=(1.7, 0.6)), (x,)),
        "bilinear_factor": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (x,)),
        "bilinear_size": (lambda x: F.interpolate(x, size=(5, 13), mode="bilinear"), (x,)),
        "bilinear_aligned": (
            lambda x: F.interpolate(x, size=(13, 4), mode="bilinear", align_corners=True),
            (x,),
        ),
    }


def _convs() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    grid = [
        # in, out, size, kernel, stride, padding, dilation, groups
        (3, 8, (9, 11), (3, 3), 1, 1, 1, 1),
        (4, 5, (8, 7), (1, 1), 1, 0, 1, 1),
        (4, 6, (8, 7), (1, 1), 2, 0, 1, 2),
        (4, 6, (5, 7), (1, 1), 1, 1, 1, 1),
        (6, 6, (9, 9), (3, 3), 2, 1, 1, 6),
        (4, 8, (7, 10), (5, 5), 1, 2, 1, 4),
        (2, 3, (13, 12), (3, 2), (2, 1), (0, 2), (2, 3), 1),
        (3, 1, (6, 6), (4, 4), 1, 0, 1, 1),
        (3, 4, (2, 3), (3, 3), 1, 1, 1, 1),
        (2, 2, (5, 20), (1, 9), 1, (0, 4), 1, 1),
        (2, 4, (4, 4), (4, 4), 4, 0, 1, 1),
        (5, 7, (1, 1), (1, 1), 1, 0, 1, 1),
    ]
    for number, (cin, cout, size, kernel, stride, padding, dilation, groups) in enumerate(grid):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        args = (floats(2, cin, *size), floats(cout, cin // groups, *kernel), floats(cout))
        cases[f"conv2d_{number}"] = (lambda x, w, b, o=options: F.conv2d(x, w, b, **o), args)
    cases["conv2d_no_bias"] = (F.conv2d, (floats(1, 3, 6, 7), floats(4, 3, 3, 3)))
    cases["conv2d_same"] = (
        lambda x, w: F.conv2d(x, w, padding="same"),
        (floats(1, 3, 6, 7), floats(4, 3, 2, 3)),
    )
    cases["conv2d_unbatched"] = (F.conv2d, (floats(3, 6, 7), floats(4, 3, 3, 3)))
    cases["conv2d_channels_last"] = (
        lambda x, w: F.conv2d(x, w, padding=1),
        (
            floats(2, 3, 6, 7).to(memory_format=torch.channels_last),
            floats(4, 3, 3, 3).to(memory_format=torch.channels_last),
        ),
    )
    cases["conv2d_sliced"] = (
        lambda x, w: F.conv2d(x[:, 1:, ::2, 1:], w),
        (floats(2, 4, 9, 9), floats(4, 3, 3, 3)),
    )
    cases["conv2d_1x1_sliced"] = (
        lambda x, w: F.conv2d(x[..., 1:], w),
        (floats(2, 3, 5, 9), floats(4, 3, 1, 1)),
    )
    cases["conv1d"] = (
        lambda x, w, b: F.conv1d(x, w, b, 2, 3, 2),
        (floats(2, 3, 20), floats(4, 3, 5), floats(4)),
    )
    cases["conv1d_pointwise"] = (F.conv1d, (floats(2, 3, 9), floats(4, 3, 1), floats(4)))
    cases["conv_transpose2d"] = (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1, groups=2),
        (floats(2, 4, 5, 3), floats(4, 3, 3, 3), floats(6)),
    )
    cases["conv_transpose1d"] = (
        lambda x, w: F.conv_transpose1d(x, w, stride=3),
        (floats(2, 4, 5), floats(4, 2, 4)),
    )
    return cases


def _attention() -> dict[str, Case]:
    q, k, v = floats(2, 4, 5, 8), floats(2, 4, 7, 8).flip(2), floats(2, 4, 7, 6)
    sdpa = F.scaled_dot_product_attention
    mask = bools(5, 7)
    blind = mask.clone()
    blind[2] = False
    return {
        "sdpa": (sdpa, (q, k, v)),
        "sdpa_causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), (q, k, v)),
        "sdpa_scale": (lambda q, k, v: sdpa(q, k, v, scale=0.7), (q, k, v)),
        "sdpa_mask": (lambda q, k, v, m: sdpa(q, k, v, m), (q, k, v, mask)),
        "sdpa_blind": (lambda q, k, v, m: sdpa(q, k, v, m), (q, k, v, blind)),
        "sdpa_bias": (lambda q, k, v, m: sdpa(q, k, v, m), (q, k, v, floats(2, 1, 5, 7))),
        "sdpa_heads": (
            lambda q, k, v: sdpa(*(t.view(2, -1, 4, 8).transpose(1, 2) for t in (q, k, v))),
            (floats(2, 5, 32), floats(2, 7, 32), floats(2, 7, 32).flip(1)),
        ),
        "sdpa_grouped": (
            lambda q, k, v: sdpa(q, k, v, enable_gqa=True),
            (q, floats(2, 2, 7, 8), floats(2, 2, 7, 6)),
        ),
    }


CASES: dict[str, Case] = (
    _unary()
    | _binary()
    | _casts()
    | _moves()
    | _indices()
    | _reductions()
    | _norms()
    | _products()
    | _pools()
    | _convs()
    | _attention()
)
