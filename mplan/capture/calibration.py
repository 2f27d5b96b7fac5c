"""Calibration data: batches in the form of a model's inputs, from memory or an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from mplan.diagnostics import UserError, Where

#: Positional and keyword arguments of a call.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(batch: Any) -> Call:
    """The arguments of a call with ``batch``: a tensor, a tuple, a dict, or a pair of both."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if not isinstance(batch, (tuple, list)):
        return (batch,), {}
    if len(batch) == 2 and isinstance(batch[0], (tuple, list)) and isinstance(batch[1], Mapping):
        return tuple(batch[0]), dict(batch[1])
    return tuple(batch), {}


def slices(batches: Iterable[Any], example: Call) -> Iterator[Call]:
    """The batches as calls of the example's size: larger ones in parts, a short last part left out."""
    from torch.utils._pytree import tree_map

    size = _rows(example)
    for batch in batches:
        call = as_call(batch)
        rows = _rows(call)
        if not size or rows <= size:
            yield call
            continue
        for start in range(0, rows - size + 1, size):
            yield tree_map(lambda leaf, start=start, rows=rows: _part(leaf, rows, start, size), call)


def _part(leaf: Any, rows: int, start: int, size: int) -> Any:
    return leaf[start : start + size] if _rows((leaf,)) == rows else leaf


def _rows(call: Any) -> int:
    """The first dimension of the first tensor in ``call`` that has one; else 0."""
    import torch
    from torch.utils._pytree import tree_leaves

    tensors = (leaf for leaf in tree_leaves(call) if isinstance(leaf, torch.Tensor))
    return next((t.shape[0] for t in tensors if t.dim()), 0)


def read_calibration(path: str | Path, example: Call) -> Call:
    """The arrays of an ``.npz`` file as one batch, with the element types of the example's tensors.

    Arrays belong to arguments by name where all names are keyword arguments of the example, otherwise
    by order. UserError MP315 if the file cannot be read or has another number of arrays.
    """
    import numpy as np
    import torch

    file = str(path)
    try:
        with np.load(path) as data:
            arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    except Exception as e:  # zip, numpy and the file system each raise their own
        hint = "write the file with numpy.savez"
        message = f"{file} is no calibration data: {type(e).__name__}: {e}"
        raise UserError("MP315", message, Where(file), hint) from e
    args, kwargs = example
    if len(arrays) != len(args) + len(kwargs):
        message = f"{file} has {len(arrays)} arrays for {len(args) + len(kwargs)} arguments"
        raise UserError("MP315", message, Where(file))
    named = {} if args else {name: arrays.pop(name) for name in kwargs if name in arrays}
    rest = iter(arrays.values())
    typed = tuple(_like(next(rest), t) for t in args)
    return typed, {k: _like(named[k] if k in named else next(rest), t) for k, t in kwargs.items()}


def _like(array: Any, example: Any) -> Any:
    return array.to(getattr(example, "dtype", array.dtype))
