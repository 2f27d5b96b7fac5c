"""All options with their defaults, in one place; the command line and the backend share them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mplan.diagnostics import UserError

CHOICES = {
    "solver": ("auto", "greedy", "exact", "none"),
    "quantize": ("int8",),
    "io": ("float", "int8", "int8-nhwc"),
    "input": ("whole", "rows", "flash"),
}
_KINDS = {
    "limit": "a positive number of seconds",
    "seed": "a whole number",
    "minimise": "True or False",
    "max_mac_factor": "a number of at least 1",
    "scans": "a whole number of at least 1",
    "calibrate": "the path of an .npz file",
}
#: What to do instead, by option.
_HINTS = {"calibrate": "batches in memory: mplan.quantize(model, batches), and compile what it returns"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Options:
    """How to plan.

    ``target`` names a target or a TOML file; ``budget`` limits the arena (bytes; None: what the
    target has); ``minimise`` asks for the smallest one instead. ``memories`` are those of a
    microcontroller that hold activations, some with a limit (``dtcm=64KiB,sram``), and ``budget``
    limits all of them together; by default its arena. ``limit`` is the solvers' time in seconds.
    ``pipeline`` replaces the target's pipeline (text form). ``dump`` is a folder that receives every
    graph and plan. ``quantize`` (``int8``) quantises a PyTorch model first, with the data of the file
    ``calibrate`` or the model's own. ``io`` says what the caller of a quantised model passes on a
    microcontroller: ``float``, ``int8`` or ``int8-nhwc`` (images with channels last); by default what
    the model has, or ``int8`` with ``quantize``. On a microcontroller ``max_mac_factor`` and ``input``
    ask for streams: how much may be computed again, and whether the image lies in the arena, arrives
    by rows (up to ``scans`` times over) or lies in flash.
    """

    target: str = "cpu"
    budget: int | None = None
    minimise: bool = False
    solver: str = "auto"
    limit: float = 10.0
    seed: int = 0
    pipeline: str = ""
    dump: str = ""
    quantize: str = ""
    calibrate: str = ""
    io: str = ""
    max_mac_factor: float | None = None
    input: str = ""
    scans: int = 1
    memories: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Options from loose values (``{"budget": "64KiB"}``).

        UserError MP422 for an unknown key (with a suggestion), MP423 for a bad value.
        """
        known = {f.name for f in fields(cls)}
        for key in given:
            if key not in known:
                raise _unknown_key(key, sorted(known))
        options = replace(cls(), **{k: _convert(k, v) for k, v in given.items() if v is not None})
        if options.minimise and options.budget is not None:
            message = "minimise asks for the smallest budget, but one is given"
            raise UserError("MP423", message, help="leave out one of them")
        if options.calibrate and not options.quantize:
            message = "calibrate names data for a quantisation, but none is asked for"
            raise UserError("MP423", message, help="add quantize=int8 (--quantize int8)")
        if options.scans > 1 and options.input != "rows":
            message = "scans say how often the rows of an image arrive, but none do"
            raise UserError("MP423", message, help="add input=rows (--input rows)")
        if options.memories and options.minimise:
            message = "minimise finds the smallest arena; of several memories there is no smallest one"
            hint = "leave out one of them; budget=64KiB limits all memories together"
            raise UserError("MP423", message, help=hint)
        return options


def parse_bytes(text: str | int) -> int:
    """``65536``, ``"64KiB"``, ``"64 K"`` (binary), ``"1.5MB"`` (decimal) → bytes; UserError MP423."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in _UNITS:
        hint = "write bytes as 65536, 64KiB, 1.5MB or 2GiB"
        raise UserError("MP423", f"{text!r} is not a number of bytes", help=hint)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _total(value: Any) -> int:
    if "=" in str(value):
        message = f"budget={value!r}: a budget is one number, for all memories together"
        raise UserError("MP423", message, help="limits of each: memories=dtcm=64KiB,sram")
    return parse_bytes(value)


def _unknown_key(key: str, known: list[str]) -> UserError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError("MP422", f"unknown option {key!r}", help=f"{hint}options: {', '.join(known)}")


def _convert(key: str, value: Any) -> Any:
    try:
        if key == "budget":
            return _total(value)
        if key == "limit":
            return _positive(float(value))
        if key == "seed":
            return int(value)
        if key == "scans":
            return _count(value)
        if key == "max_mac_factor":
            return _factor(float(value))
        if key == "minimise":
            return _flag(value)
    except (TypeError, ValueError):
        kind = _KINDS.get(key, "a valid number")
        raise UserError("MP423", f"option {key}={value!r} is not {kind}") from None
    choices = CHOICES.get(key)
    if choices and value not in choices:
        raise UserError("MP423", f"unknown {key} {value!r}", help=f"choose from {', '.join(choices)}")
    if not isinstance(value, (str, Path)):
        message = f"option {key} is a {type(value).__name__}, not {_KINDS.get(key, 'a text')}"
        raise UserError("MP423", message, help=_HINTS.get(key, ""))
    return str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if int(value) != float(value) or int(value) < 1:
        raise ValueError
    return int(value)


def _positive(number: float) -> float:
    if not number > 0:
        raise ValueError
    return number


def _factor(number: float) -> float:
    if not number >= 1:
        raise ValueError
    return number
