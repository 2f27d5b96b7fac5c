"""Strict decoding of parsed JSON into the plan's data classes, by their type annotations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

_Decoder: TypeAlias = Callable[[Any], Any]

#: Larger integers are no sizes, offsets or positions, and not exact in other readers of JSON.
MAX_INT = 2**62


class DecodeError(ValueError):
    """A value that does not fit its type; ``path`` is a JSON path such as ``$.plan.order[3]``."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message

    def inside(self, place: str) -> DecodeError:
        """The same error, its path as seen from what holds the value at ``place``."""
        return DecodeError(place + self.path, self.message)


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in ``text``: no duplicate keys, no NaN or infinity. Raises DecodeError."""
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except DecodeError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DecodeError("$", f"not JSON at {place}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DecodeError("$", f"not JSON that mplan reads: {error}") from error
    if not isinstance(document, dict):
        raise DecodeError("$", f"expected an object, found {_kind(document)}")
    return document


def decode(kind: Any, value: Any, path: str) -> Any:
    """``value`` as an instance of ``kind``: data class, int, float, str, bool, tuple, Literal or None.

    Unknown and missing keys, wrong types, and numbers out of range raise DecodeError. Nothing is
    converted but integers where a float is asked for.
    """
    try:
        return _decoder(kind)(value)
    except DecodeError as error:
        raise error.inside(path) from None


@cache
def _decoder(kind: Any) -> _Decoder:
    """A function that decodes values of ``kind``; paths in its errors begin at the value."""
    if is_dataclass(kind):
        return _record(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (inner,) = (_decoder(arm) for arm in args if arm is not NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is Literal:
        return partial(_literal, args)
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return partial(_integers if args[0] is int else _array, _decoder(args[0]))
    if origin is tuple:
        return partial(_tuple, tuple(map(_decoder, args)))
    return partial(_scalar, kind)


def _record(kind: Any) -> _Decoder:
    known = {
        f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind) if f.init
    }
    required = {name for name, needed in known.items() if needed}
    hints = get_type_hints(kind)
    parts = {name: _decoder(hints[name]) for name in known}

    def decode_record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise DecodeError("", f"expected an object, found {_kind(value)}")
        if not parts.keys() >= value.keys() >= required:
            raise _wrong_keys(known, value)
        found = {}
        for key, item in value.items():
            try:
                found[key] = parts[key](item)
            except DecodeError as error:
                raise error.inside(f".{key}") from None
        return kind(**found)

    return decode_record


def _wrong_keys(known: Mapping[str, bool], value: Mapping[str, Any]) -> DecodeError:
    """The error for the first key of ``value`` that is unknown, or of ``known`` that is missing."""
    for key in value:
        if key not in known:
            return DecodeError(f".{key}", f"unknown key; known: {', '.join(known)}")
    missing = next(key for key, required in known.items() if required and key not in value)
    return DecodeError(f".{missing}", "missing")


def _literal(accepted: tuple[str, ...], value: Any) -> str:
    if not isinstance(value, str) or value not in accepted:
        raise DecodeError("", f"expected one of {', '.join(accepted)}, found {_show(value)}")
    return value


def _integers(one: _Decoder, value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(item) is int and abs(item) <= MAX_INT for item in value):
        return tuple(value)
    return _array(one, value)


def _array(one: _Decoder, value: Any) -> tuple[Any, ...]:
    return _tuple((one,) * len(value) if isinstance(value, list) else (), value)


def _tuple(parts: Sequence[_Decoder], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DecodeError("", f"expected an array, found {_kind(value)}")
    if len(value) != len(parts):
        raise DecodeError("", f"expected {len(parts)} items, found {len(value)}")
    found: list[Any] = []
    try:
        for part, item in zip(parts, value, strict=True):
            found.append(part(item))
    except DecodeError as error:
        raise error.inside(f"[{len(found)}]") from None
    return tuple(found)


def _scalar(kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= MAX_INT else value
    if type(value) is not kind:
        raise DecodeError("", f"expected {kind.__name__}, found {_show(value)}")
    if kind is int and abs(value) > MAX_INT:
        raise DecodeError("", f"the integer is out of range (beyond {MAX_INT})")
    if kind is float and not math.isfinite(value):
        raise DecodeError("", "the number is not finite")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DecodeError("$", f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise DecodeError("$", f"{name} is not JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", NoneType: "null"}
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    if isinstance(value, (str, int, float, bool)):
        text = json.dumps(value)[:40] if not isinstance(value, int) or abs(value) <= MAX_INT else ""
        return text or _kind(value)
    return _kind(value)
