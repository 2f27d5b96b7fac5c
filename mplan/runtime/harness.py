"""The program around a compiled network in an emulator: it gets inputs and gives outputs to the host.

Inputs that the network reads where the caller has them are constants of the program, one array for
all samples; the host sends the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from mplan import templates
from mplan.codegen.bundle import Manifest, Port
from mplan.codegen.c.text import CTYPES
from mplan.diagnostics import UserError
from mplan.ir.types import DType
from mplan.runtime.toolchain import SUPPORT

Sample = Sequence[Any]
_BYTES_PER_LINE = 24


@dataclass(frozen=True, slots=True)
class Given:
    """The bytes of an input for all samples, as lines of C."""

    index: int
    nbytes: int
    lines: tuple[str, ...]


def harness(manifest: Manifest, samples: Sequence[Sample] = ()) -> str:
    """The C source of the program; without ``samples`` it is only good for its size."""
    inputs = _in_order(manifest.inputs)
    given = [
        Given(i, port.nbytes, _lines(b"".join(_bytes(sample[i], port) for sample in samples)))
        for i, port in enumerate(manifest.inputs)
        if port.outside
    ]
    view = {
        "name": manifest.name,
        "inputs": [port for port in inputs if not port["outside"]],
        "given": given,
        "samples": max(len(samples), 1),
        "outputs": manifest.outputs,
    }
    return templates.render(SUPPORT, "harness.c.j2", view)


def _lines(data: bytes) -> tuple[str, ...]:
    if not data:
        return ("0,",)
    step = _BYTES_PER_LINE
    return tuple("".join(f"{b}," for b in data[i : i + step]) for i in range(0, len(data), step))


def _in_order(ports: Sequence[Port]) -> list[dict[str, Any]]:
    """The inputs as the harness reads them: those that are given whole come first."""
    ordered = sorted(enumerate(ports), key=lambda numbered: numbered[1].rows)
    return [
        {
            **asdict(port),
            "index": index,
            "first": place == 0,
            "ctype": CTYPES[DType(port.dtype)],
            "row_elements": prod(port.shape) // max(port.rows, 1),
        }
        for place, (index, port) in enumerate(ordered)
    ]


def sent(samples: Sequence[Sample], expected: Sequence[Port]) -> bytes:
    """What the host sends for all samples. UserError MP426 for inputs that are not the network's."""
    parts: list[bytes] = []
    for sample in samples:
        if len(sample) != len(expected):
            raise UserError("MP426", f"{len(sample)} inputs given, the network has {len(expected)}")
        pairs = sorted(zip(sample, expected, strict=True), key=lambda pair: pair[1].rows)
        for array, port in pairs:
            parts += [_bytes(array, port)] * (0 if port.outside else port.scans)
    return b"".join(parts)


def _bytes(array: Any, port: Port) -> bytes:
    import numpy as np

    if tuple(array.shape) != port.shape:
        message = f"input {port.name} has the shape {list(array.shape)}, not {list(port.shape)}"
        raise UserError("MP426", message)
    dtype = getattr(np, DType(port.dtype).numpy_name)
    return np.ascontiguousarray(array, dtype=dtype).tobytes()
