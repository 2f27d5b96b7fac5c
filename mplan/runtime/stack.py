"""How deep the stack of an image can get: a bound from its code, beside what a run has measured.

Emitted code has neither recursion nor function pointers, so its call graph is that of its branches.
A function's frame is what the compiler says (``-fstack-usage``), or, for functions from libraries, the
sum of all that it pushes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mplan.runtime import elf
from mplan.runtime.firmware import Firmware
from mplan.runtime.thumb import Instruction, decode, jump, popped_registers, pushed_bytes

ROOT = "Reset_Handler"


@dataclass(frozen=True, slots=True)
class StackBound:
    """The most that the stack can take from reset on, without interrupts.

    ``chain`` is the path of calls that may take it. ``bytes`` is None if there is no bound; ``chain``
    then leads to the function that has none, and ``reason`` says why.
    """

    bytes: int | None
    chain: tuple[str, ...]
    reason: str = ""


@dataclass(slots=True)
class Routine:
    """A function's frame in bytes (None: its size varies), what it calls and where it ends in a jump.

    ``indirect`` says that some target is not known.
    """

    name: str
    frame: int | None = 0
    calls: set[int] = field(default_factory=set)
    tails: set[int] = field(default_factory=set)
    indirect: bool = False


def stack_bound(firmware: Firmware) -> StackBound:
    """The bound for ``firmware``, from its code and what its compiler reports."""
    table = routines(firmware.elf)
    frames = compiler_frames(firmware.stack_reports)
    for routine in table.values():
        routine.frame = frames.get(routine.name.split(".")[0], routine.frame)
    start = next(address for address, routine in table.items() if routine.name == ROOT)
    return _Walk(table).bound(start)


def routines(path: Path) -> dict[int, Routine]:
    """The functions of an ELF file by address, each with the frame that its code shows."""
    found = {}
    for (start, end, name), code in elf.function_code(path):
        found[start] = _routine(name, start, end, [i for at, part in code for i in decode(part, at)])
    return found


def compiler_frames(reports: Iterable[Path]) -> dict[str, int | None]:
    """The frames that the compiler's ``.su`` files state; None where the size varies.

    Functions of the same name have the largest frame of all. Versions of a function that the compiler
    makes (``name.part.0``) go by its name.
    """
    frames: dict[str, int | None] = {}
    for report in reports:
        for line in report.read_text(encoding="utf-8").splitlines():
            place, size, kind = line.split("\t")
            name = place.rsplit(":", 1)[1].split(".")[0]
            known = frames.get(name, 0)
            varies = known is None or kind == "dynamic"
            frames[name] = None if varies else max(known or 0, int(size))
    return frames


def _routine(name: str, start: int, end: int, code: list[Instruction]) -> Routine:
    routine = Routine(name)
    popped = 0
    for instruction in code:
        pushed = pushed_bytes(instruction)
        routine.frame = None if pushed is None or routine.frame is None else routine.frame + pushed
        popped |= popped_registers(instruction)
        found = jump(instruction)
        if found is None:
            continue
        if found.target is not None:
            if found.kind == "call":
                routine.calls.add(found.target)
            elif not start <= found.target < end:
                routine.tails.add(found.target)
        elif found.kind == "call" or not _returns(instruction, popped):
            routine.indirect = True
    return routine


def _returns(instruction: Instruction, popped: int) -> bool:
    """Whether a ``bx`` goes back to the caller: Armv6-M pops the address into a low register."""
    return instruction.size == 2 and bool(popped >> (instruction.first >> 3 & 0xF) & 1)


class _Walk:
    """A depth-first walk over the calls, each function once."""

    def __init__(self, table: Mapping[int, Routine]) -> None:
        self._table = table
        self._known: dict[int, StackBound] = {}
        self._open: set[int] = set()

    def bound(self, address: int) -> StackBound:
        """The bound for what runs from the function at ``address`` until it returns."""
        if address in self._open:
            return StackBound(None, (self._table[address].name,), "calls itself")
        if address not in self._known:
            self._open.add(address)
            self._known[address] = self._bound(address)
            self._open.remove(address)
        return self._known[address]

    def _bound(self, address: int) -> StackBound:
        routine = self._table.get(address)
        if routine is None:
            return StackBound(None, (f"{address:#010x}",), "is no function of the image")
        if routine.indirect or routine.frame is None:
            why = "calls through a pointer" if routine.indirect else "has a frame of variable size"
            return StackBound(None, (routine.name,), why)
        deepest = StackBound(routine.frame, (routine.name,))
        steps = [(routine.frame, target) for target in sorted(routine.calls)]
        steps += [(0, target) for target in sorted(routine.tails)]
        for frame, target in steps:
            below = self.bound(target)
            chain = (routine.name, *below.chain)
            if below.bytes is None:
                return StackBound(None, chain, below.reason)
            if frame + below.bytes > (deepest.bytes or 0):
                deepest = StackBound(frame + below.bytes, chain)
        return deepest
