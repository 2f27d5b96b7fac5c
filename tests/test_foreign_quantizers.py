"""Graphs that other quantizers made: each op by itself, other types and scales, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchao.quantization.pt2e.observer import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

import mplan
from mplan.capture import Captured, capture_exported
from mplan.diagnostics import UnsupportedError
from tests.cli_runner import run_cli
from tests.qdq_nets import Calls, floats_in, lowered, outputs_of, steps_between

#: Layers, with the dimension of their weights that counts outputs.
LAYERS = {"aten.conv2d.default": 0, "aten.conv_transpose2d.input": 1, "aten.linear.default": 0}


class EachOp(Quantizer):
    """As XNNPACK's: operands and results of all ops have ranges of their own, nothing is fused.

    ``dtype`` is the type of activations, ``per_channel`` says how weights are scaled, ``biases``
    whether biases are int32 with the product of both scales.
    """

    def __init__(
        self, dtype: torch.dtype = torch.int8, per_channel: bool = True, biases: bool = False
    ) -> None:
        info = torch.iinfo(dtype)
        self.activation = QuantizationSpec(
            dtype,
            MinMaxObserver.with_args(eps=2**-12),
            quant_min=info.min,
            quant_max=info.max,
            qscheme=torch.per_tensor_affine,
        )
        observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
        self.weight = QuantizationSpec(
            torch.int8,
            observer.with_args(eps=2**-12),
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
            ch_axis=0 if per_channel else None,
        )
        self.biases = biases

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
                specs: dict[Any, Any] = dict.fromkeys(node.all_input_nodes, self.activation)
                if str(node.target) in LAYERS:
                    x, weight, *bias = node.all_input_nodes
                    axis = LAYERS[str(node.target)] if self.weight.ch_axis is not None else None
                    specs = {x: self.activation, weight: replace(self.weight, ch_axis=axis)}
                    specs |= {b: self._bias(x, weight, node) for b in bias if self.biases}
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=specs, output_qspec=self.activation, _annotated=True
                )
        return model

    def _bias(self, x: Any, weight: Any, node: Any) -> DerivedQuantizationSpec:
        def scales(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
            (a, _), (w, zero) = (o.calculate_qparams() for o in observers)
            return a * w, torch.zeros_like(zero)

        return DerivedQuantizationSpec(
            derived_from=[(x, node), (weight, node)],
            derive_qparams_fn=scales,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=self.weight.qscheme,
            ch_axis=self.weight.ch_axis,
        )

    def validate(self, model: torch.fx.GraphModule) -> None:
        pass


class Net(nn.Module):
    """A convolution whose clamp stands by itself, pools, a residual connection, a transposed
    convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)), 2)
        x = x + F.hardswish(self.depthwise(x))
        return self.head(F.relu(self.up(x)).mean((2, 3)))


def exported(
    model: nn.Module, quantizer: Quantizer, fold: bool = True, seed: int = 0
) -> tuple[torch.export.ExportedProgram, torch.Tensor]:
    torch.manual_seed(seed)
    images = torch.randn(6, 3, 8, 8)
    program = torch.export.export(model.eval(), (images[:1],))
    observed = prepare_pt2e(program.module(check_guards=False), quantizer)
    for image in images.split(1):
        observed(image)
    converted = convert_pt2e(observed, fold_quantize=fold)
    return torch.export.export(converted, (images[:1],)), images[:1]


def agreement(captured: Captured, image: torch.Tensor) -> int:
    graph, constants, notes = lowered(captured)
    assert not notes and not floats_in(graph)
    (simulated,) = outputs_of(captured.graph, captured.constants, [image])
    (ours,) = outputs_of(graph, constants, [image])
    return steps_between(graph, ours, simulated)


QUANTIZERS: dict[str, tuple[Quantizer, bool]] = {
    "int8": (EachOp(), True),
    "uint8": (EachOp(torch.uint8), True),
    "per_tensor": (EachOp(per_channel=False), True),
    "unfolded": (EachOp(), False),
    "unfolded_per_tensor": (EachOp(torch.uint8, per_channel=False), False),
    "int32_biases": (EachOp(biases=True), True),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_network_in_the_manner_of_xnnpack(name: str) -> None:
    torch.manual_seed(0)
    program, image = exported(Net(), *QUANTIZERS[name])
    captured = capture_exported(program, decompose=True)
    assert agreement(captured, image) <= 2
    kinds = [op.kind for op in lowered(captured)[0].ops]
    assert kinds.count("mplan.requantize") >= 1 and "mplan.qdepthwise_conv2d" in kinds


@pytest.mark.parametrize("decompose", [True, False])
def test_a_program_that_is_decomposed_already(decompose: bool) -> None:
    program, image = exported(Net(), EachOp())
    program = program.run_decompositions()
    assert agreement(capture_exported(program, decompose=decompose), image) <= 2


def test_sixteen_bits_are_refused_everywhere() -> None:
    program, _ = exported(Net(), EachOp(torch.int16))
    with pytest.raises(UnsupportedError) as caught:
        mplan.plan(program, target="stm32f746")
    error = caught.value
    assert error.code == "MP314" and "int16" in error.message
    assert len(error.notes) > 8
    lines = {where.line for _, where in error.notes if where}
    assert len(lines) >= 3


def test_scales_at_run_time_are_refused() -> None:
    quantizer = EachOp()
    quantizer.activation = QuantizationSpec(
        torch.int8,
        PlaceholderObserver.with_args(eps=2**-12),
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=True,
    )
    program, _ = exported(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), quantizer)
    with pytest.raises(UnsupportedError, match="run time"):
        mplan.plan(program, target="stm32f746")


def test_integers_at_the_boundary_must_be_signed() -> None:
    class Bytes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = 0.05, 128, 0, 255, torch.uint8
            x = torch.ops.quantized_decomposed.dequantize_per_tensor(x, *scale)
            return torch.ops.quantized_decomposed.quantize_per_tensor(torch.relu(x), *scale)

    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    program = torch.export.export(Bytes(), (image,))
    with pytest.raises(UnsupportedError, match="uint8") as caught:
        mplan.plan(program, target="stm32f746")
    assert len(caught.value.notes) == 1


def test_a_saved_program_is_planned_and_compiled(tmp_path: Path) -> None:
    program, _ = exported(Net(), EachOp())
    torch.export.save(program, tmp_path / "net.pt2")
    assert run_cli("plan", tmp_path / "net.pt2", "--target", "cpu").code == 0
    out = tmp_path / "out"
    compiled = run_cli("compile", tmp_path / "net.pt2", "--io", "int8", "-o", out)
    assert compiled.code == 0, compiled.err
    found = run_cli("run", out, "--json").json
    assert found["outputs_match"] and found["max_abs_err"] == 0


IMAGE = (1, 3, 8, 8)
#: What stays float: the network, the shapes of its inputs, and what the note says.
STAYS: dict[str, tuple[Any, ...]] = {
    "three_dimensions": (nn.Conv3d(3, 4, 3), (1, 3, 4, 4, 4), "one or two dimensions"),
    "factor": (Calls(lambda x, y: torch.sub(x, y, alpha=0)), IMAGE, IMAGE, "no number but 0"),
    "divided_pool": (nn.AvgPool2d(3, divisor_override=5), IMAGE, "divisor of its own"),
    "overlapping_pool": (nn.AdaptiveAvgPool2d(3), IMAGE, "windows overlap"),
    "pool_of_volumes": (nn.MaxPool3d(2), (1, 3, 4, 4, 4), "no integer form"),
    "cumsum": (Calls(lambda x: torch.cumsum(x, 1)), IMAGE, "no integer form"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_float_says_why(name: str) -> None:
    torch.manual_seed(0)
    model, *shapes, reason = STAYS[name]
    inputs = tuple(torch.randn(*shape) for shape in shapes)
    program = torch.export.export(model.eval(), inputs)
    observed = prepare_pt2e(program.module(check_guards=False), EachOp())
    observed(*inputs)
    again = torch.export.export(convert_pt2e(observed), inputs)
    captured = capture_exported(again, decompose=True)
    graph, constants, notes = lowered(captured)
    assert any(reason in note for note in notes)
    (simulated,) = outputs_of(captured.graph, captured.constants, inputs)
    (ours,) = outputs_of(graph, constants, inputs)
    assert (ours - simulated).abs().max() <= 0.02 * simulated.abs().max()


def test_weights_that_are_an_input_are_refused_per_channel() -> None:
    inputs = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    program = torch.export.export(Calls(lambda x, w: F.conv2d(x, w)), inputs)
    observed = prepare_pt2e(program.module(check_guards=False), EachOp())
    observed(*inputs)
    again = torch.export.export(convert_pt2e(observed), inputs)
    with pytest.raises(UnsupportedError, match="activations with a scale per channel"):
        mplan.plan(again, target="stm32f746")
