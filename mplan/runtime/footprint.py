"""What a compiled network takes of its part, exactly: its folder is built and linked, and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mplan.codegen.bundle import Manifest, area_symbols, load_manifest, target_of_bundle
from mplan.runtime import elf
from mplan.runtime.device import build_bundle
from mplan.runtime.firmware import Firmware
from mplan.runtime.stack import stack_bound
from mplan.targets.model import Target
from mplan.units import clean, exact_bytes, percent

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of RAM and of flash that something takes."""

    name: str
    ram_bytes: int
    flash_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """The RAM and flash of a linked image, by what takes them; ``capacity`` is the part's.

    ``memories`` are the RAMs in use: what the image takes of each (the stack as reserved) and its size.
    The last part is what belongs to no network: start-up code, the harness that feeds the network, and
    functions of the compiler's library. The stack is an upper bound; 0 with ``stack_bounded`` false if
    there is none.
    """

    toolchain: str
    parts: tuple[Part, ...]
    capacity: Part
    stack_bounded: bool
    memories: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def total(self) -> Part:
        """The sum of the parts."""
        ram, flash = (
            sum(sizes)
            for sizes in zip(*((p.ram_bytes, p.flash_bytes) for p in self.parts), strict=True)
        )
        return Part("in all", ram, flash)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this class and the total."""
        return {**asdict(self), "total": asdict(self.total)}


def is_measurable(folder: str | Path) -> bool:
    """Whether the target of a compiled folder says how to build for it."""
    tools = target_of_bundle(load_manifest(Path(folder))).toolchain
    return tools is not None and bool(tools.zig_target)


def measure(folder: str | Path, toolchain: Literal["zig", "gcc"] = "zig") -> Footprint:
    """Build the folder that ``mplan compile`` wrote for its part and measure the image.

    Raises what ``build_firmware`` raises, InfeasibleError MP540 if the image does not fit among them,
    and UserError MP425 for a bad folder.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    target = target_of_bundle(manifest)
    with tempfile.TemporaryDirectory(prefix="mplan-build-") as work:
        firmware = build_bundle(folder, manifest, Path(work), toolchain)
        own = _own_symbols(firmware.elf.parent, manifest)
        bound = stack_bound(firmware)
        areas = area_symbols(manifest, target)
        parts = _parts(firmware, manifest.name, areas, own, bound.bytes or 0)
    memories = {
        m.name: (firmware.used_bytes[m.name], m.size_bytes or 0)
        for m in firmware.memories
        if m.kind != "flash" and firmware.used_bytes[m.name]
    }
    return Footprint(toolchain, parts, _capacity(target), bound.bytes is not None, memories)


def _own_symbols(objects: Path, manifest: Manifest) -> set[str]:
    """The functions and objects that the network's sources define."""
    stems = {Path(source).stem for source in manifest.sources}
    paths = [p for p in objects.glob("*.o") if p.stem.partition("-")[2] in stems]
    return {name for path in paths for name in elf.symbol_sizes(path)}


def _parts(
    firmware: Firmware, name: str, areas: set[str], own: set[str], stack_bytes: int
) -> tuple[Part, ...]:
    """The image by what takes it; what cannot be told apart is in the last part."""
    weights = f"{name}_weights"
    sizes: dict[str, dict[bool, int]] = {}
    for label, symbol in firmware.symbols.items():
        memory = firmware.memory_of(symbol.address)
        if memory is None or symbol.kind == "label":
            continue
        kind = "arena" if label in areas else "weights" if label == weights else "network"
        if kind != "network" or label in own:
            by_memory = sizes.setdefault(kind, {True: 0, False: 0})
            by_memory[memory.kind == "flash"] += symbol.size
    arena, fixed, network = (sizes.get(k, {}) for k in ("arena", "weights", "network"))
    known = (
        Part("arena", arena.get(False, 0), 0),
        Part("weights", fixed.get(False, 0), fixed.get(True, 0)),
        Part("network: code, tables, state", network.get(False, 0), network.get(True, 0)),
    )
    rest_ram = firmware.static_ram_bytes - sum(p.ram_bytes for p in known)
    rest_flash = firmware.flash_bytes - sum(p.flash_bytes for p in known)
    return (
        *known,
        Part("stack, at most", stack_bytes, 0),
        Part("start-up, harness, library", rest_ram, rest_flash),
    )


def _capacity(target: Target) -> Part:
    sizes: Mapping[bool, int] = {
        flash: sum(
            m.size_bytes or 0
            for m in target.memories
            if m.base is not None and (m.kind == "flash") == flash
        )
        for flash in (True, False)
    }
    return Part(target.name, sizes[False], sizes[True])


def render(found: Footprint, console: Console) -> None:
    """Print the table of RAM and flash, which fits 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"image ({found.toolchain})")
    for name in ("RAM", "flash"):
        table.add_column(name, justify="right")
    for part in found.parts:
        unbounded = part.name.startswith("stack") and not found.stack_bounded
        ram = "unknown" if unbounded else _cell(part.ram_bytes)
        table.add_row(Text(clean(part.name)), Text(ram), Text(_cell(part.flash_bytes)))
    total, part = found.total, found.capacity
    both = ((total.ram_bytes, part.ram_bytes), (total.flash_bytes, part.flash_bytes))
    table.add_row(Text(total.name, style="bold"), *(Text(exact_bytes(used)) for used, _ in both))
    table.add_row(Text(f"  of {clean(part.name)}"), *(Text(_cell(size)) for _, size in both))
    table.add_row("  share", *(Text(percent(used / size) if size else "") for used, size in both))
    for name, (used, size) in found.memories.items() if len(found.memories) > 1 else ():
        share = f"{exact_bytes(used)}, {percent(used / size)} of {exact_bytes(size)}"
        table.add_row(Text(f"  of {clean(name)}"), Text(share), Text(""))
    console.print(table)


def _cell(size: int) -> str:
    return exact_bytes(size) if size else ""
