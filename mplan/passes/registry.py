"""Passes by name, and the text form of a pipeline: ``canonicalize,allocate{solver=exact,limit_s=30}``.

The text form derives from the dataclass fields of the passes; nothing is declared twice.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from typing import Any

from mplan.diagnostics import UserError
from mplan.passes.base import Pass

#: Name of each pass and where its class stands; imported only when used.
PASSES = {
    "canonicalize": "mplan.passes.canonicalize:Canonicalize",
    "lower_quantized": "mplan.passes.lower_quantized:LowerQuantized",
    "fold_padding": "mplan.passes.fold_padding:FoldPadding",
    "fold_zero_points": "mplan.passes.fold_zero_points:FoldZeroPoints",
    "bound_sums": "mplan.passes.bound_sums:BoundSums",
    "pair_weights": "mplan.passes.pair_weights:PairWeights",
    "fold_batch_norm": "mplan.passes.fold_batch_norm:FoldBatchNorm",
    "drop_unused": "mplan.passes.drop_unused:DropUnused",
    "fuse_attention": "mplan.passes.fuse_attention:FuseAttention",
    "tile_attention": "mplan.passes.tile_attention:TileAttention",
    "stream": "mplan.passes.stream:StreamRows",
    "inplace": "mplan.passes.inplace:Inplace",
    "profile_scratch": "mplan.runtime.profile:ProfileScratch",
    "schedule": "mplan.passes.schedule_ops:ScheduleOps",
    "allocate": "mplan.passes.allocate_buffers:AllocateBuffers",
    "tile_pixels": "mplan.passes.tile_pixels:TilePixels",
}


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """The passes that ``text`` names; UserError MP420 or MP421 for an unknown pass or bad option."""
    return tuple(_make(item) for item in _split(text) if item)


def print_pipeline(passes: Iterable[Pass]) -> str:
    """The text of ``passes``; options at their defaults are left out."""
    return ",".join(print_pass(p) for p in passes)


def print_pass(pass_: Pass) -> str:
    """``name`` or ``name{option=value,…}``."""
    changed = [
        f"{f.name}={_print_option(getattr(pass_, f.name))}"
        for f in fields(pass_)
        if getattr(pass_, f.name) != f.default
    ]
    return pass_.name + ("{" + ",".join(changed) + "}" if changed else "")


def _split(text: str) -> Iterator[str]:
    """Items at the commas that stand outside braces."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth not in (0, 1):
            raise UserError("MP421", f"unbalanced braces in the pipeline {text!r} at column {i + 1}")
        if c == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    if depth:
        raise UserError("MP421", f"a brace is not closed in the pipeline {text!r}")
    yield text[start:].strip()


def _make(item: str) -> Pass:
    name, brace, rest = item.partition("{")
    if name not in PASSES:
        close = difflib.get_close_matches(name, PASSES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the passes are: {', '.join(PASSES)}"
        raise UserError("MP420", f"there is no pass called {name!r}", help=hint)
    module, _, attribute = PASSES[name].partition(":")
    cls: type[Pass] = getattr(importlib.import_module(module), attribute)
    options = rest.removesuffix("}") if brace else ""
    return cls(**dict(_option(cls, text) for text in options.split(",") if text.strip()))


def _option(cls: type[Pass], text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    table = {f.name: f for f in fields(cls)}
    if key not in table or not equals:
        known = ", ".join(table) or "none"
        raise UserError(
            "MP421", f"pass {cls.name} has no option {key!r}", help=f"its options are: {known}"
        )
    return key, _parse_option(cls, table[key], value)


def _parse_option(cls: type[Pass], option: Field[Any], text: str) -> Any:
    kind: Any = type(option.default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return kind(text)
    except (ValueError, KeyError):
        what = f"{cls.name}: {option.name}={text!r} is not a {kind.__name__}"
        raise UserError("MP421", what) from None


def _print_option(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
