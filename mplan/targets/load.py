"""Read target files: TOML with inheritance, validated strictly against ``targets.model``.

A file may say ``inherits = "other"`` (a built-in name, or a path relative to the file); its tables
are then laid over the parent's, key by key. Every error names the file, the line and the key.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mplan.diagnostics import MplanError, UserError, Where
from mplan.targets.model import Costs, Isa, Memory, Target, Toolchain

toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
DATA = Path(__file__).parent / "data"
T = TypeVar("T")
Table = Mapping[str, Any]
_NOTHING: Table = MappingProxyType({})


def list_targets() -> tuple[str, ...]:
    """The names of the built-in targets, sorted."""
    return tuple(sorted(path.stem for path in DATA.glob("*.toml")))


def load_target(name_or_path: str | Path) -> Target:
    """The target called so, or described by the TOML file at that path.

    A text that ends in ``.toml`` or holds a path separator is a path. Raises UserError: MP401
    unknown target, MP402 unknown key, MP403 missing key, MP404 wrong value, MP405 unreadable file,
    MP406 circular inheritance.
    """
    path = _locate(name_or_path, Path())
    return _Reader(path).target(_merged(path, ()))


def target_table(name_or_path: str | Path) -> dict[str, Any]:
    """The tables of a target file with all that it inherits. Raises UserError like ``load_target``."""
    return _merged(_locate(name_or_path, Path()), ())


def target_of(name: str, table: Table) -> Target:
    """The target ``name`` of which ``target_table`` has returned ``table``."""
    return _Reader(Path(f"{name}.toml")).target(deepcopy(dict(table)))


def _locate(name_or_path: str | Path, base: Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return base / text
    if text in list_targets():
        return DATA / f"{text}.toml"
    near = get_close_matches(text, list_targets(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        "MP401", f"unknown target {text!r}", help=f"{hint}known: {', '.join(list_targets())}"
    )


def _unreadable(path: Path, error: Exception) -> MplanError:
    line = re.search(r"at line (\d+), column (\d+)", str(error))
    where = Where(str(path), *(int(n) for n in line.groups())) if line else Where(str(path))
    return UserError("MP405", f"cannot read the target file: {error}", where)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return dict(toml.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise _unreadable(path, error) from error


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of ``path`` laid over those of the targets it inherits from."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.stem for p in (*seen, path))
        raise UserError("MP406", f"targets inherit in a circle: {chain}", _where(seen[-1], "inherits"))
    table = _parse(path)
    parent = table.pop("inherits", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise UserError("MP404", "inherits must be a string", _where(path, "inherits"))
    return _overlay(_merged(_locate(parent, path.parent), (*seen, path)), table)


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _overlay(result[key], value) if both else value
    return result


def _where(path: Path, key: str) -> Where:
    """The line of dotted ``key`` in the file, or of its table, or just the file."""
    *table, leaf = key.split(".")
    header, found = "", 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return Where(str(path))
    for number, line in enumerate(lines, 1):
        if heading := re.match(r"\s*\[([^\]]+)\]", line):
            header = heading.group(1).strip()
            found = number if header == ".".join(table) else found
            if header == key:
                return Where(str(path), number)
        elif header == ".".join(table) and re.match(rf"\s*{re.escape(leaf)}\s*=", line):
            return Where(str(path), number)
    return Where(str(path), found)


class _Reader:
    """Turns the merged tables of one file into a Target, or says which key is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def target(self, table: dict[str, Any]) -> Target:
        memories = self.take(table, "memory", {})
        tools = self.take(table, "toolchain", None)
        parts = {
            "name": self.path.stem,
            "memories": tuple(self.memory(name, t) for name, t in memories.items()),
            "isa": self.record(Isa, self.take(table, "isa", {}), "isa"),
            "costs": self.record(Costs, self.take(table, "costs", {}), "costs"),
            "toolchain": None if tools is None else self.record(Toolchain, tools, "toolchain"),
        }
        target = self.record(Target, table, "", parts)
        self.check(target)
        return target

    def take(self, table: dict[str, Any], key: str, default: Any) -> Any:
        value = table.pop(key, default)
        if value is not default and not isinstance(value, dict):
            raise self.error("MP404", key, f"must be a table, not {value!r}")
        return value

    def memory(self, name: str, table: Any) -> Memory:
        key = f"memory.{name}"
        if not isinstance(table, dict):
            raise self.error("MP404", key, f"must be a table, not {table!r}")
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise self.error("MP404", key, "has a name that is no lower-case identifier")
        memory = self.record(Memory, table, key, {"name": name})
        if memory.size_bytes is not None and memory.size_bytes <= 0:
            raise self.error("MP404", f"{key}.size_bytes", f"must be positive: {memory.size_bytes}")
        if memory.alignment < 1 or memory.alignment & (memory.alignment - 1):
            raise self.error("MP404", f"{key}.alignment", f"no power of two: {memory.alignment}")
        return memory

    def record(self, cls: type[T], table: Table, key: str, parts: Table = _NOTHING) -> T:
        """An instance of the dataclass ``cls``: its fields are the keys of ``table``, or ``parts``."""
        known: dict[str, Field[Any]] = {
            f.name: f
            for f in fields(cls)  # type: ignore[arg-type]
            if f.name not in parts
        }
        hints = get_type_hints(cls)
        for name in table:
            if name not in known:
                raise self.unknown(name, key, tuple(known))
        for name, f in known.items():
            if name not in table and f.default is MISSING:
                raise self.error("MP403", _join(key, name), "is missing")
        given = {n: self.value(v, hints[n], _join(key, n)) for n, v in table.items()}
        return cls(**given, **parts)

    def value(self, value: Any, hint: Any, key: str) -> Any:
        """``value`` if it has the type ``hint``, lists as tuples and integers as floats."""
        if hint is float and type(value) is int:
            return float(value)
        if get_origin(hint) is tuple and isinstance(value, list | tuple):
            return tuple(self.value(v, get_args(hint)[0], key) for v in value)
        if get_origin(hint) in (Union, UnionType):
            return self.value(value, get_args(hint)[0], key)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                choice = ", ".join(get_args(hint))
                raise self.error("MP404", key, f"is {value!r}, but must be one of {choice}")
            return value
        if type(value) is not hint:
            kind = getattr(hint, "__name__", str(hint))
            raise self.error("MP404", key, f"is {value!r}, but must be of type {kind}")
        return value

    def check(self, target: Target) -> None:
        """Raise UserError unless the parts of ``target`` fit together."""
        names = [m.name for m in target.memories]
        for key, name in (("arena", target.arena), ("weights", target.weights)):
            if name not in names:
                raise self.error("MP404", key, f"names no memory: {name!r}; have {', '.join(names)}")
        vectors = target.toolchain.vectors if target.toolchain else ""
        if vectors and vectors not in names:
            raise self.error("MP404", "toolchain.vectors", f"names no memory: {vectors!r}")
        placed = sorted((m for m in target.memories if m.base is not None), key=lambda m: m.base or 0)
        for low, high in pairwise(placed):
            if (low.base or 0) + (low.size_bytes or 0) > (high.base or 0):
                raise self.error("MP404", f"memory.{high.name}.base", f"lies inside {low.name}")

    def unknown(self, name: str, key: str, known: tuple[str, ...]) -> MplanError:
        known = known if key else (*known, "inherits", "memory", "isa", "costs", "toolchain")
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        place = _where(self.path, _join(key, name))
        text = f"unknown key {_join(key, name)!r}"
        return UserError("MP402", text, place, help=f"{hint}known: {', '.join(known)}")

    def error(self, code: str, key: str, text: str) -> MplanError:
        return UserError(code, f"{key} {text}", _where(self.path, key))


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
