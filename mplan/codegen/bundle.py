"""What ``mplan compile`` writes: C sources, the plan, golden data, a manifest; all or nothing.

``mplan.json`` (the manifest) names the sources and the inputs and outputs, so that ``mplan run`` and
other tools need nothing but the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UserError, Where
from mplan.files import read_text, write_atomic
from mplan.ir.graph import Graph, Value
from mplan.ir.types import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "mplan.json"
GOLDEN = "golden.safetensors"
PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the compiled network.

    ``dtype`` is the IR's name, ``strides`` count elements, ``nbytes`` reaches from the first to the
    last element in memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``mplan.json``."""

    name: str
    target: str
    sources: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena_bytes: int
    digest: str
    schema_version: int = 1


def identifier(text: str) -> str:
    """``text`` as a C identifier in lower case."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "net"
    return f"net_{name}" if name[0].isdigit() else name


def ports(graph: Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The user's inputs and the outputs of ``graph``, in order."""
    table = graph.value_table
    inputs = tuple(_port(i.value) for i in graph.inputs if i.role == "input")
    return inputs, tuple(_port(table[name]) for name in graph.output_names)


def _port(value: Value) -> Port:
    type_ = value.type
    assert isinstance(type_, TensorType)
    shape = tuple(d for d in type_.shape if isinstance(d, int))
    return Port(value.name, type_.dtype.value, shape, type_.element_strides, type_.nbytes)


def golden_tensors(inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, Any]:
    """Arrays for ``golden.safetensors``: ``input0`` …, ``output0`` …, contiguous."""
    import numpy as np

    named = [*((f"input{i}", t) for i, t in enumerate(inputs))]
    named += [(f"output{i}", t) for i, t in enumerate(outputs)]
    return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in named}


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> tuple[str, ...]:
    """Write all ``files`` under ``folder`` (made if absent); the manifest comes last.

    Everything exists in memory before the first byte is written. UserError MP491 if the folder
    cannot be written.
    """
    with _reported(folder):
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda n: n == MANIFEST):
        write_atomic(folder / name, files[name])
    return tuple(files)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        message = f"cannot make the folder {folder}: {e.strerror or e}"
        raise UserError("MP491", message, Where(str(folder)), "give a writable place") from None


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
        return Manifest(
            **{
                **data,
                "sources": tuple(data["sources"]),
                "inputs": tuple(_load_port(p) for p in data["inputs"]),
                "outputs": tuple(_load_port(p) for p in data["outputs"]),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError("MP425", f"{path} is not a manifest: {e}", Where(str(path)), hint) from None


def _load_port(data: Mapping[str, Any]) -> Port:
    shape, strides = tuple(data["shape"]), tuple(data["strides"])
    return Port(data["name"], data["dtype"], shape, strides, data["nbytes"])
