"""What ``mplan compile`` writes: C sources, the plan, golden data, and a manifest that comes last.

``mplan.json`` (the manifest) names the files, the inputs and the outputs, so that ``mplan run`` and
other tools need nothing but the folder. A folder that has a manifest is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mplan.codegen.c.stream import PlannedStage
from mplan.diagnostics import UserError, Where
from mplan.files import make_folder, read_text, write_atomic
from mplan.ir.affine import Affine
from mplan.ir.graph import Graph, Value
from mplan.ir.rings import Arriving
from mplan.ir.types import TensorType
from mplan.targets.load import target_of
from mplan.targets.model import Target

MANIFEST = "mplan.json"
SCHEMA_VERSION = 2
GOLDEN = "golden.safetensors"
PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the compiled network.

    ``dtype`` is the IR's name, ``strides`` count elements, ``nbytes`` reaches from the first to the
    last element in memory. An input with ``rows`` is given row by row, so many of them, and all of them
    in each of its ``scans``; one that is ``outside`` is read where the caller has it.
    Integers with a ``scale`` stand for ``scale * (integer - zero_point)``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int
    rows: int = 0
    scans: int = 1
    outside: bool = False
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``mplan.json``; ``machine`` is the whole target file that the code is for."""

    name: str
    target: str
    machine: Mapping[str, Any]
    sources: tuple[str, ...]
    files: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stages: tuple[PlannedStage, ...]
    arena_bytes: int
    digest: str
    schema_version: int = SCHEMA_VERSION


def identifier(text: str) -> str:
    """``text`` as a C identifier in lower case."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "net"
    return f"net_{name}" if name[0].isdigit() else name


def area_symbols(manifest: Manifest, target: Target) -> set[str]:
    """The C symbols that the arrays of planned memories may have, those of weights left out."""
    names = (m.name for m in target.memories if m.name != target.weights)
    return {f"{manifest.name}_{label}" for label in ("arena", *map(identifier, names))}


def ports(
    graph: Graph,
    rows: Mapping[str, Arriving],
    held: Collection[str],
    affines: Mapping[str, Affine] | None = None,
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The user's inputs and the outputs of ``graph``, in order.

    ``rows`` says how the inputs arrive that come row by row, ``held`` which lie in a
    memory of the plan (the others are read where the caller has them), ``affines`` what the integers
    of ``input0`` …, ``output0`` … stand for.
    """
    table, known = graph.value_table, affines or {}
    names = [i.value.name for i in graph.inputs if i.role == "input"]
    inputs = (
        replace(
            _port(table[n], known.get(f"input{i}")),
            **(asdict(rows[n]) if n in rows else {}),
            outside=n not in rows and n not in held,
        )
        for i, n in enumerate(names)
    )
    outputs = (_port(table[n], known.get(f"output{i}")) for i, n in enumerate(graph.output_names))
    return tuple(inputs), tuple(outputs)


def _port(value: Value, affine: Affine | None) -> Port:
    type_ = value.type
    assert isinstance(type_, TensorType)
    shape = tuple(d for d in type_.shape if isinstance(d, int))
    scale, zero_point = (affine.scale, affine.zero_point) if affine else (None, None)
    return Port(
        value.name,
        type_.dtype.value,
        shape,
        type_.element_strides,
        type_.nbytes,
        scale=scale,
        zero_point=zero_point,
    )


def golden_tensors(inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, Any]:
    """Arrays for ``golden.safetensors``: ``input0`` …, ``output0`` …, contiguous."""
    import numpy as np

    named = [*((f"input{i}", t) for i, t in enumerate(inputs))]
    named += [(f"output{i}", t) for i, t in enumerate(outputs)]
    return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in named}


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> tuple[str, ...]:
    """Write all ``files`` under ``folder`` (made if absent) in place of an earlier compilation.

    The old manifest goes first and the new one comes last, so a failure midway leaves no folder that
    looks complete. UserError MP491 if the folder cannot be written.
    """
    for name in files:
        make_folder((folder / name).parent)
    stale = _files_of(folder) - set(files)
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
    for name in sorted(files, key=lambda n: n == MANIFEST):
        write_atomic(folder / name, files[name])
    for name in stale:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    return tuple(files)


def _files_of(folder: Path) -> set[str]:
    """The files that an earlier compilation left in ``folder``."""
    try:
        return set(load_manifest(folder).files)
    except UserError:
        return set()


def manifest_json(manifest: Manifest) -> str:
    """The text of ``mplan.json``."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read ``mplan.json``; UserError MP425 if the folder was not written by ``mplan compile``."""
    path = folder / MANIFEST
    hint = "give a folder that `mplan compile` wrote"
    if not path.is_file():
        raise UserError("MP425", f"{folder} has no {MANIFEST}", Where(str(folder)), hint)
    try:
        data = json.loads(read_text(path))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}")
        return _checked_names(
            {
                **data,
                "sources": tuple(data["sources"]),
                "files": tuple(data["files"]),
                "inputs": tuple(_load_port(p) for p in data["inputs"]),
                "outputs": tuple(_load_port(p) for p in data["outputs"]),
                "stages": tuple(PlannedStage(**stage) for stage in data["stages"]),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError("MP425", f"{path} is not a manifest: {e}", Where(str(path)), hint) from None


def target_of_bundle(manifest: Manifest) -> Target:
    """The target that a folder is compiled for. Raises UserError if the manifest's is none."""
    return target_of(manifest.target, manifest.machine)


def _checked_names(fields: dict[str, Any]) -> Manifest:
    """The manifest of ``fields``; ValueError for names that lead out of the folder or are no C."""
    manifest = Manifest(**fields)
    if identifier(manifest.name) != manifest.name:
        raise ValueError(f"{manifest.name!r} is no name of a network")
    for name in (*manifest.sources, *manifest.files):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is not in the folder")
    return manifest


def _load_port(data: Mapping[str, Any]) -> Port:
    shape, strides = tuple(data["shape"]), tuple(data["strides"])
    return Port(**{**data, "shape": shape, "strides": strides})
