"""The struct of constants: one member per weight, at the plan's offset, with padding in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mplan.codegen.c.memory import Member, static_type
from mplan.codegen.c.text import CTYPES, initialiser
from mplan.diagnostics import UserError
from mplan.ir.printer import print_type
from mplan.ir.types import DType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Field:
    """A member of the struct as the templates show it; padding has no rows."""

    ctype: str
    name: str
    elements: int
    comment: str = ""
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A condition that must hold when the code is compiled, under a name that is unique."""

    condition: str
    name: str


def fields(members: Iterable[Member], constants: Mapping[str, Any]) -> tuple[Field, ...]:
    """The struct's members in order. UserError MP504 if a constant has no value."""
    found: list[Field] = []
    end = 0
    for member in members:
        if not member.size_bytes:
            continue
        ctype = CTYPES[static_type(member.value).dtype]
        if member.offset_bytes > end:
            found.append(Field("unsigned char", f"padding_{end}", member.offset_bytes - end))
        flat = _flat(member, constants)
        comment = f"{print_type(member.value.type)} {member.source}"
        rows = initialiser(flat, static_type(member.value).dtype)
        found.append(Field(ctype, member.name, flat.numel(), comment, rows))
        end = member.offset_bytes + member.size_bytes
    return tuple(found)


def checks(name: str, members: Iterable[Member]) -> tuple[Check, ...]:
    """Every member stands where the plan says."""
    struct = f"struct {name}_weights"
    return tuple(
        Check(f"offsetof({struct}, {m.name}) == {m.offset_bytes}", f"{name}_{m.name}_is_in_its_place")
        for m in members
        if m.size_bytes
    )


def _flat(member: Member, constants: Mapping[str, Any]) -> torch.Tensor:
    """The elements of a weight as a vector in the order of its bytes."""
    import torch

    tensor = constants.get(member.value.name)
    type_ = static_type(member.value)
    if not isinstance(tensor, torch.Tensor) or DType.of_torch(str(tensor.dtype)) is not type_.dtype:
        raise UserError("MP504", f"the constant {member.source} has no {type_.dtype.torch_name} value")
    flat = torch.zeros(member.size_bytes // type_.dtype.itemsize, dtype=tensor.dtype)
    flat.as_strided(tensor.shape, type_.element_strides).copy_(tensor.detach())
    return flat
