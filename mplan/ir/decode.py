"""Strict decoding of parsed JSON into the plan's data classes, by their type annotations."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Larger integers are no sizes, offsets or positions, and not exact in other readers of JSON.
MAX_INT = 2**62


class DecodeError(ValueError):
    """A value that does not fit its type; ``path`` is a JSON path such as ``$.plan.order[3]``."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


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
    if is_dataclass(kind):
        return _record(kind, value, path)
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _optional(kind, value, path)
    if origin is Literal:
        accepted = get_args(kind)
        if not isinstance(value, str) or value not in accepted:
            raise DecodeError(path, f"expected one of {', '.join(accepted)}, found {_show(value)}")
        return value
    if origin is tuple:
        return _tuple(get_args(kind), value, path)
    return _scalar(kind, value, path)


def _record(kind: Any, value: Any, path: str) -> Any:
    known, hints = _fields(kind)
    if not isinstance(value, dict):
        raise DecodeError(path, f"expected an object, found {_kind(value)}")
    for key in value:
        if key not in known:
            raise DecodeError(f"{path}.{key}", f"unknown key; known: {', '.join(known)}")
    for key, required in known.items():
        if required and key not in value:
            raise DecodeError(f"{path}.{key}", "missing")
    return kind(**{key: decode(hints[key], item, f"{path}.{key}") for key, item in value.items()})


@cache
def _fields(kind: Any) -> tuple[dict[str, bool], dict[str, Any]]:
    """Per field whether it is required; the types of the fields."""
    known = {
        f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind) if f.init
    }
    return known, get_type_hints(kind)


def _optional(kind: Any, value: Any, path: str) -> Any:
    if value is None:
        return None
    (inner,) = (arm for arm in get_args(kind) if arm is not NoneType)
    return decode(inner, value, path)


def _tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DecodeError(path, f"expected an array, found {_kind(value)}")
    if len(args) == 2 and args[1] is ...:
        if args[0] is int and all(type(item) is int and abs(item) <= MAX_INT for item in value):
            return tuple(value)
        return tuple(decode(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise DecodeError(path, f"expected {len(args)} items, found {len(value)}")
    pairs = zip(args, value, strict=True)
    return tuple(decode(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(pairs))


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= MAX_INT else value
    if type(value) is not kind:
        raise DecodeError(path, f"expected {kind.__name__}, found {_show(value)}")
    if kind is int and abs(value) > MAX_INT:
        raise DecodeError(path, f"the integer is out of range (beyond {MAX_INT})")
    if kind is float and not math.isfinite(value):
        raise DecodeError(path, "the number is not finite")
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
