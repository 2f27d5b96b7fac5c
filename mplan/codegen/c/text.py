"""Pieces of C text: literals, identifiers, wrapped calls, array initialisers."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

from mplan.ir.types import DType

if TYPE_CHECKING:
    import torch

WIDTH = 100

#: The C type in which an element is stored; types that are absent cannot be emitted.
CTYPES = {
    DType.F32: "float",
    DType.I64: "int64_t",
    DType.I32: "int32_t",
    DType.I16: "int16_t",
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.BOOL: "uint8_t",
}

_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        auto break case char const continue default do double else enum extern float for goto if
        inline int long register restrict return short signed sizeof static struct switch typedef
        union unsigned void volatile while asm class delete new private public template this
        """,
    )
)


def identifier(name: str) -> str:
    """``name`` as a C identifier: ``layer1.0.weight`` becomes ``layer1_0_weight``."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    return f"_{text}" if text[0].isdigit() or text in _KEYWORDS else text


def is_identifier(name: str) -> bool:
    """Whether ``name`` can be a prefix of C symbols as it is."""
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)) and name not in _KEYWORDS


def unique_names(names: Sequence[str]) -> list[str]:
    """The identifiers of ``names``, made distinct by a number where two coincide."""
    taken: set[str] = set()
    found = []
    for name in names:
        base = candidate = identifier(name)
        number = 2
        while candidate in taken:
            candidate, number = f"{base}_{number}", number + 1
        taken.add(candidate)
        found.append(candidate)
    return found


def literal(number: float | int | bool, dtype: DType) -> str:
    """A constant of type ``dtype``; floats are rounded to float32."""
    if dtype.is_float:
        return _float_literal(float(number))
    if dtype is DType.BOOL:
        return str(int(bool(number)))
    if dtype is DType.I64:
        value = int(number)
        return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"
    return "INT32_MIN" if int(number) == -(2**31) else str(int(number))


def _float_literal(number: float) -> str:
    try:
        single: float = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        single = math.copysign(math.inf, number)
    if not math.isfinite(single):
        return _float_word(repr(single))
    text = f"{single:.9g}"
    return (text if re.search(r"[.e]", text) else f"{text}.0") + "f"


def call(function: str, args: Sequence[str], indent: int = 0) -> list[str]:
    """The statement ``function(args);`` broken into lines of at most ``WIDTH`` columns."""
    wrapper = TextWrapper(
        WIDTH - indent,
        subsequent_indent=" " * min(len(function) + 1, 24),
        break_long_words=False,
        break_on_hyphens=False,
    )
    # Spaces inside an argument must not become line breaks.
    joined = ", ".join(arg.replace(" ", "\x00") for arg in args)
    return [line.replace("\x00", " ") for line in wrapper.wrap(f"{function}({joined});")]


def initialiser(flat: torch.Tensor, dtype: DType) -> tuple[str, ...]:
    """The lines between the braces of an array that holds the 1-d tensor ``flat``, bit-exact."""
    words = _words(flat, dtype)
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) + 6 > WIDTH:
            lines.append(line)
            line = ""
        line += f"{' ' if line else ''}{word},"
    return (*lines, line) if line else tuple(lines)


def _words(flat: torch.Tensor, dtype: DType) -> list[str]:
    if dtype is DType.F32:
        # numpy's text of a float32 is the shortest that reads back as the same bits.
        return [_float_word(text) for text in flat.float().numpy().astype("U32").tolist()]
    numbers: list[Any] = flat.tolist()
    return [literal(number, dtype) for number in numbers]


def _float_word(text: str) -> str:
    if text in ("nan", "inf", "-inf"):
        return {"nan": "NAN", "inf": "INFINITY", "-inf": "-INFINITY"}[text]
    return f"{text}f"
