"""As much of the Thumb instruction set as it takes to follow calls and the stack pointer.

Encodings: Arm v7-M and v8-M Architecture Reference Manuals (DDI 0403, DDI 0553), "Thumb instruction
set encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_LR, _PC = 14, 15


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its address and its halfwords (``second`` is 0 for a narrow one)."""

    address: int
    first: int
    second: int

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 if self.first >> 11 >= 0x1D else 2


@dataclass(frozen=True, slots=True)
class Jump:
    """A branch: to an address, or, with None, to where a register or a table says."""

    kind: Literal["call", "branch"]
    target: int | None


def decode(code: bytes, address: int) -> Iterator[Instruction]:
    """The instructions in ``code``, which lies at ``address``."""
    offset = 0
    while offset + 2 <= len(code):
        first, second = (int.from_bytes(code[offset + k : offset + k + 2], "little") for k in (0, 2))
        instruction = Instruction(address + offset, first, second if first >> 11 >= 0x1D else 0)
        yield instruction
        offset += instruction.size


def pushed_bytes(instruction: Instruction) -> int | None:
    """By how much the instruction moves the stack pointer down; None: by the value of a register."""
    first, second = instruction.first, instruction.second
    if first & 0xFE00 == 0xB400:  # push
        return 4 * (first & 0x1FF).bit_count()
    if first & 0xFF80 == 0xB080:  # sub sp, #4n
        return 4 * (first & 0x7F)
    if first == 0xE92D:  # push.w
        return 4 * second.bit_count()
    if first == 0xF84D and second & 0x0F00 == 0x0D00:  # str Rt, [sp, #-n]!
        return second & 0xFF
    if first == 0xE96D:  # strd Rt, Rt2, [sp, #-4n]!
        return 4 * (second & 0xFF)
    if first & 0xFFBF == 0xED2D and second & 0x0E00 == 0x0A00:  # vpush
        return 4 * (second & 0xFF)
    if second >> 8 & 0xF != 13:
        return 0
    if first & 0xFBEF == 0xF1AD:  # sub.w sp, sp, #modified
        return _modified(_immediate12(first, second))
    if first & 0xFBFF == 0xF2AD:  # subw sp, sp, #n
        return _immediate12(first, second)
    return None if first & 0xFFEF == 0xEBAD else 0  # sub.w sp, sp, Rm


def jump(instruction: Instruction) -> Jump | None:
    """Where the instruction may go, if not to the next one; returns through ``lr`` are no jump."""
    first, second, here = instruction.first, instruction.second, instruction.address + 4
    if first & 0xF000 == 0xD000 and first & 0x0E00 != 0x0E00:  # b<condition>
        return Jump("branch", here + _signed(first & 0xFF, 8) * 2)
    if first & 0xF800 == 0xE000:  # b
        return Jump("branch", here + _signed(first & 0x7FF, 11) * 2)
    if first & 0xF800 == 0xF000 and second & 0x8000:
        return _wide_branch(first, second, here)
    if first & 0xFF87 == 0x4780:  # blx Rm
        return Jump("call", None)
    if first & 0xFF87 == 0x4700 and first >> 3 & 0xF != _LR:  # bx Rm
        return Jump("branch", None)
    if first & 0xFF70 == 0xF850 and second >> 12 == _PC and first & 0xF != 13:  # ldr pc, [Rn, ...]
        return Jump("branch", None)
    return None


def popped_registers(instruction: Instruction) -> int:
    """The registers below r8 that a narrow ``pop`` loads, as a bit set."""
    return instruction.first & 0xFF if instruction.first & 0xFE00 == 0xBC00 else 0


def _wide_branch(first: int, second: int, here: int) -> Jump | None:
    sign, j1, j2 = first >> 10 & 1, second >> 13 & 1, second >> 11 & 1
    if second & 0x1000:  # bl, b.w
        high = sign << 23 | (1 - (j1 ^ sign)) << 22 | (1 - (j2 ^ sign)) << 21
        offset = _signed(high | (first & 0x3FF) << 11 | second & 0x7FF, 24)
        return Jump("call" if second & 0x4000 else "branch", here + 2 * offset)
    if second & 0x4000 or first >> 6 & 0xE == 0xE:  # not a conditional branch
        return None
    offset = sign << 19 | j2 << 18 | j1 << 17 | (first & 0x3F) << 11 | second & 0x7FF
    return Jump("branch", here + 2 * _signed(offset, 20))


def _immediate12(first: int, second: int) -> int:
    return (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF


def _modified(immediate: int) -> int:
    """A modified immediate constant (ThumbExpandImm)."""
    byte = immediate & 0xFF
    if immediate >> 10 == 0:
        return byte * (0x1, 0x10001, 0x1000100, 0x1010101)[immediate >> 8]
    value, turn = 0x80 | immediate & 0x7F, immediate >> 7
    return (value >> turn | value << (32 - turn)) & 0xFFFFFFFF


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
