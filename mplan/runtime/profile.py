"""What each op allocates when PyTorch runs it on the CPU, learnt by running it once by itself.

An op asks PyTorch's allocator for its results and, often, for temporaries of which no schema tells
(a contiguous copy, a layer norm's statistics, flash attention's accumulators). ``pattern_of`` runs the
op on zeros of the right types and writes down the requests in order: which becomes which result, and
which are scratch, in which phase of the op. The plan then knows the scratch memory, and at run time
the same sequence of requests is served from planned addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mplan.ir.graph import Graph, Op, Scratch
from mplan.ir.ops import bind_arg, lookup
from mplan.ir.types import Symbol, Type, bounded
from mplan.passes.base import Context, Pass
from mplan.runtime import heap


@dataclass(frozen=True, slots=True)
class Request:
    """One allocation: for result number ``result``, or (None) at ``offset`` of scratch ``scratch``."""

    size_bytes: int
    result: int | None
    scratch: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Pattern:
    """The allocations of an op in order, and the memory they need, in the terms of ``Op``.

    ``fault`` says why they cannot be planned, if so.
    """

    requests: tuple[Request, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    births: tuple[int, ...] = ()
    fault: str = ""


#: Ops with more temporaries than this get them packed into one scratch area.
_MOST_TEMPORARIES = 24
_PATTERNS: dict[object, Pattern] = {}


def callable_of(op: Op) -> Callable[..., Any]:
    """The function that runs ``op`` on the CPU: PyTorch's operator, or what mplan has for its own."""
    if op.kind == "mplan.attention":
        from mplan.runtime.attention import cpu_attention

        return cpu_attention
    if op.kind.startswith("mplan."):
        return lookup(op.kind).reference
    from mplan.ir.aten_ops import overload

    function: Callable[..., Any] = overload(op.kind)
    return function


def arguments(op: Op, env: Mapping[str, Any], symbols: Mapping[str, int]) -> dict[str, Any]:
    """The arguments of ``op`` as its callable takes them."""
    if op.loop:
        return {"loop": op.loop, "operands": tuple(env[name] for name in op.operands)}
    bound = {name: bind_arg(arg, env, symbols) for name, arg in op.args}
    if op.kind.startswith("mplan."):
        return bound
    from mplan.ir.aten_ops import to_torch

    return to_torch(op.kind, bound)


def pattern_of(op: Op, types: Mapping[str, Type], symbols: Mapping[str, Symbol]) -> Pattern:
    """What ``op`` allocates at the upper bound of all sizes; ``types`` are bounded already."""
    highs = {s.name: s.high for s in symbols.values()}
    key = _signature(op, types, highs)
    if key not in _PATTERNS:
        _PATTERNS[key] = _learn(op, types, highs)
    return _PATTERNS[key]


def _signature(op: Op, types: Mapping[str, Type], highs: Mapping[str, int]) -> object:
    import torch

    bound = repr([(name, bind_arg(arg, types, highs)) for name, arg in op.args])  # 1 is not 1.0
    results = tuple((types[v.name], v.alias and v.alias.kind) for v in op.values)
    return (
        op.kind,
        bound,
        op.loop,
        tuple(types[n] for n in op.operands),
        results,
        torch.get_num_threads(),
    )


def _learn(op: Op, types: Mapping[str, Type], highs: Mapping[str, int]) -> Pattern:
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        state = torch.get_rng_state()
        try:
            samples = {name: _sample(types[name]) for name in dict.fromkeys(op.operands)}
            return _observe(op, arguments(op, samples, highs))
        except Exception as e:  # an operator may reject zeros (a Cholesky factor of them, say)
            return Pattern(fault=f"cannot be tried on zeros: {str(e).splitlines()[0]}")
        finally:
            torch.set_rng_state(state)


def _sample(type_: Type) -> Any:
    from mplan.ir.aten_ops import sample_of

    sample = sample_of(type_)
    return sample.zero_() if hasattr(sample, "zero_") else sample


def _observe(op: Op, args: dict[str, Any]) -> Pattern:
    from mplan.ir.aten_ops import flat_results

    function = callable_of(op)
    with heap.record() as tape:
        results = flat_results(function(**args))
    owners: dict[int, int] = {}
    for number, result in enumerate(results):
        if hasattr(result, "untyped_storage") and result.untyped_storage().nbytes():
            index = tape.index_of(result.untyped_storage().data_ptr())
            if index is not None:
                owners.setdefault(index, number)
    kept = [a for a in tape.allocations if a.index not in owners and a.freed_at is None]
    if kept:
        return Pattern(fault=f"keeps {sum(a.size_bytes for a in kept):,} B beyond its results")
    if len(tape.allocations) - len(owners) > _MOST_TEMPORARIES:
        return _packed(tape, owners)
    return _phased(tape, owners, len(op.results))


def _phased(tape: heap.Tape, owners: Mapping[int, int], results: int) -> Pattern:
    """Every temporary as scratch of its own; a request after a release begins a new phase."""
    phase_at: list[int] = []
    phase, released = 0, False
    for event in tape.events:
        born = isinstance(event, heap.Alloc)
        phase += born and released
        released = not born
        phase_at.append(phase)
    births = [0] * results
    requests: list[Request] = []
    scratch: list[Scratch] = []
    for a in tape.allocations:
        owner = owners.get(a.index)
        requests.append(Request(a.size_bytes, owner, len(scratch)))
        if owner is not None:
            births[owner] = phase_at[a.at]
        else:
            assert a.freed_at is not None
            scratch.append(Scratch(a.size_bytes, phase_at[a.at], phase_at[a.freed_at] + 1))
    return Pattern(tuple(requests), tuple(scratch), tuple(births) if any(births) else ())


def _packed(tape: heap.Tape, owners: Mapping[int, int]) -> Pattern:
    """All temporaries in one scratch area, larger ones at the lowest free offset first."""
    offsets: dict[int, int] = {}
    placed: list[tuple[heap.Alloc, int]] = []
    temporaries = [a for a in tape.allocations if a.index not in owners]
    for a in sorted(temporaries, key=lambda a: (-a.size_bytes, a.index)):
        offsets[a.index] = _lowest_offset(a, placed)
        placed.append((a, offsets[a.index]))
    height = max((offset + a.size_bytes for a, offset in placed), default=0)
    requests = tuple(
        Request(a.size_bytes, owners.get(a.index), 0, offsets.get(a.index, 0)) for a in tape.allocations
    )
    return Pattern(requests, (Scratch(height),))


def _lowest_offset(a: heap.Alloc, placed: list[tuple[heap.Alloc, int]]) -> int:
    offset = 0
    for other, start in sorted(placed, key=lambda guest: guest[1]):
        assert a.freed_at is not None and other.freed_at is not None
        together = other.at < a.freed_at and a.at < other.freed_at
        if together and start < offset + a.size_bytes and offset < start + other.size_bytes:
            offset = -(-(start + other.size_bytes) // heap.ALIGNMENT_BYTES) * heap.ALIGNMENT_BYTES
    return offset


@dataclass(frozen=True, slots=True)
class ProfileScratch(Pass):
    """Write the scratch memory of every op into the graph, as PyTorch's CPU kernels need it.

    Nothing to do where the heap cannot be installed (the graph will run with eager allocation).
    """

    name: ClassVar[str] = "profile_scratch"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with ``scratch`` and ``births`` set."""
        if heap.unavailable():
            return graph
        table = graph.symbol_table
        types = {v.name: bounded(v.type, table) for v in graph.values}
        ops = tuple(self._annotated(op, types, table) for op in graph.ops)
        return graph if ops == graph.ops else replace(graph, ops=ops)

    def _annotated(self, op: Op, types: Mapping[str, Type], table: Mapping[str, Symbol]) -> Op:
        if op.is_view:
            return op
        found = pattern_of(op, types, table)
        return replace(op, scratch=found.scratch, births=found.births)
