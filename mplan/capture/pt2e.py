"""Quantisation of a PyTorch model to int8 after training, by PT2E (torch.export and torchao)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from mplan.capture.calibration import Call, as_call, slices
from mplan.capture.decompositions import taken_apart
from mplan.capture.export import composite_table, export, first_line
from mplan.capture.source import whole_stacks
from mplan.diagnostics import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

#: Composite ops that the quantizer knows whole.
_NAMES = ("conv1d", "conv2d", "linear", "layer_norm", "matmul", "max_pool2d", "prelu")
_WHOLE = tuple(f"aten::{name}" for name in _NAMES)
#: Ops that are views and copies.
_MOVES = ("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "stack")


def quantize(
    model: Module | ExportedProgram,
    calibration_batches: Iterable[Any],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """``model`` with its weights in int8 and quantize and dequantize ops around its float ops.

    ``calibration_batches`` are inputs as the model gets them (a tensor, a tuple of arguments, or a
    dict of keyword arguments), a lone tensor is one batch; the ranges of all activations are those that
    occur for them. ``args`` and ``kwargs`` are the example inputs that fix the sizes of the result, by
    default the first batch; larger batches are cut along their first dimension. The result runs in
    PyTorch, is saved by ``torch.export.save``, and computes in integers when it is planned for a
    microcontroller.

    UserError MP315 if there is no batch, one does not fit the model, or the model is in training mode;
    errors of ``capture``.
    """
    import torch

    if getattr(model, "training", False):
        raise UserError("MP315", "the model is in training mode", help="call model.eval() first")
    lone = isinstance(calibration_batches, torch.Tensor)
    batches = iter((calibration_batches,) if lone else calibration_batches)
    first = next(batches, None)
    if first is None:
        raise UserError("MP315", "there are no calibration batches", help="pass at least one")
    if args is None and not kwargs:
        args, kwargs = as_call(first)
    example = tuple(args or ()), dict(kwargs or {})
    with torch.no_grad():
        program = (
            model
            if isinstance(model, torch.export.ExportedProgram)
            else export(model, *example, dynamic_shapes=None)
        )
        return _quantized(program, slices(chain((first,), batches), example), example)


def _quantized(program: ExportedProgram, batches: Iterable[Call], example: Call) -> ExportedProgram:
    import torch

    with _quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from mplan.capture.quantizer import Int8Quantizer

        module = _decomposed(program).module(check_guards=False)
        observed = prepare_pt2e(module, Int8Quantizer())
    for args, kwargs in batches:
        try:
            observed(*args, **kwargs)
        except Exception as e:
            message = f"a calibration batch does not fit: {type(e).__name__}: {first_line(e)}"
            raise UserError("MP315", message) from e
    with _quiet(), whole_stacks():
        return torch.export.export(convert_pt2e(observed), *example)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in functional ops; composite ones that the quantizer knows stay whole."""
    import torch

    table = {
        op: function
        for op, function in composite_table(bool(program.range_constraints)).items()
        if op.name() not in _WHOLE
    }
    core = torch.export.default_decompositions()
    for name in _MOVES:
        op = getattr(torch.ops.aten, name).default
        if op in core:
            table[op] = core[op]
    table.update(taken_apart(table))
    lowered: ExportedProgram = program.run_decompositions(table)
    return lowered


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao and torch warn of what no user of mplan can change."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
