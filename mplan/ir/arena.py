"""Execution inside planned memory: one byte tensor per region, every value where the plan puts it.

Bytes are poisoned when a buffer is claimed and when it is freed, scratch memory also after its op
has run. A plan that lets two live buffers share bytes therefore changes the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UserError
from mplan.ir.execution import (
    bind_symbols,
    call,
    check_value,
    first_byte,
    laid_out,
    named_inputs,
    overlay,
    shares_storage,
)
from mplan.ir.graph import Graph, Loop, Op, Value
from mplan.ir.ops import bind_arg, bound_args
from mplan.ir.plan import Placement, Plan
from mplan.ir.storage import Lowered, Storages
from mplan.ir.stream_run import run_stream
from mplan.ir.types import ScalarType, Sym, TensorType

if TYPE_CHECKING:
    from torch import Tensor


def run_in_arena(
    graph: Graph,
    lowered: Lowered,
    plan: Plan,
    inputs: Mapping[str, Any] | Sequence[Any],
    poison: int = 0xA5,
    symbols: Mapping[str, int] | None = None,
) -> tuple[Any, ...]:
    """The outputs of ``graph`` when it runs in the order and the memory of ``plan``.

    ``lowered`` must stem from ``graph``. Inputs that the plan places are copied to their places
    first; the others stay with the caller. Transfers of one step read all their sources before any
    target is written. Outputs are copies. The plan is obeyed, not checked: UserError MP110 if a
    value has no place at all when it is used, or one that its element type cannot have.
    """
    import torch

    values = named_inputs(graph, inputs)
    with torch.no_grad():
        table = bind_symbols(graph, values, symbols)
        return _Arena(graph, lowered, plan, poison, table).run(values)


class _Arena:
    def __init__(
        self, graph: Graph, lowered: Lowered, plan: Plan, poison: int, symbols: Mapping[str, int]
    ) -> None:
        self.graph = graph
        self.lowered = lowered
        self.plan = plan
        self.poison = poison
        self.symbols = symbols
        self.values = graph.value_table
        self.start = _starts(graph, symbols, lowered.storages)
        self.numbers: dict[str, Any] = {}
        self.outside: dict[str, Tensor] = {}
        self.segments: dict[int, list[Placement]] = {}
        for p in sorted(plan.placements, key=lambda p: (p.start, p.end)):
            self.segments.setdefault(p.buffer, []).append(p)
        self.memory = self._memories()

    def _memories(self) -> dict[str, Tensor]:
        import torch

        size = {r.name: 0 for r in self.lowered.problem.regions}
        for p in self.plan.placements:
            size[p.region] = max(size[p.region], p.offset + self._size(p.buffer))
        return {name: torch.full((n,), self.poison, dtype=torch.uint8) for name, n in size.items()}

    def _size(self, buffer: int) -> int:
        return self.lowered.problem.buffers[buffer].size_bytes

    def run(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        for item in self.graph.inputs:
            self._load(item.value, inputs[item.value.name])
        last_phase = {op: step for step, op in enumerate(self.lowered.op_of)}
        for position, step in enumerate(self.plan.order):
            self._turn_over(position)
            index = self.lowered.op_of[step]
            if last_phase[index] == step:
                self._run_op(self.graph.ops[index], index, position)
        end = len(self.plan.order)
        env = {name: self._value(name, end - 1, output=True) for name in self.graph.output_names}
        copies = {name: getattr(value, "clone", lambda v=value: v)() for name, value in env.items()}
        return tuple(bind_arg(arg, copies, self.symbols) for arg in self.graph.outputs)

    def _load(self, value: Value, given: Any) -> None:
        """Put an input into its first place, or keep it outside if the plan does not place it."""
        check_value(f"input %{value.name}", given, value.type, self.symbols)
        if isinstance(value.type, ScalarType):
            self.numbers[value.name] = given
        elif value.alias is None and value.name not in self.lowered.buffer_of:
            own = laid_out(given.detach(), value.type.bound(self.symbols))
            self.outside[value.name] = own.clone() if self._is_overwritten(value.name) else own
        elif value.alias is None:
            self._value(value.name, 0, output=True).copy_(given)

    def _is_overwritten(self, root: str) -> bool:
        owner = self.lowered.storages.root
        aliases = (v.alias for op in self.graph.ops for v in op.values)
        return any(a and a.kind == "inplace" and owner[a.of] == root for a in aliases)

    def _turn_over(self, position: int) -> None:
        """What happens just before ``position``: copies between regions, frees and claims."""
        moved = [t for t in self.plan.transfers if t.step == position]
        carried = [self._bytes(self._source(t.buffer, t.source, position)).clone() for t in moved]
        for placement in self.plan.placements:
            live_in = self.lowered.problem.buffers[placement.buffer].live_in and position == 0
            claimed = placement.start == position and not live_in
            if claimed or placement.end == position:
                self._bytes(placement).fill_(self.poison)
        for transfer, content in zip(moved, carried, strict=True):
            for placement in self.segments[transfer.buffer]:
                if placement.region == transfer.target and placement.start == position:
                    self._bytes(placement).copy_(content)

    def _source(self, buffer: int, region: str, position: int) -> Placement:
        for placement in self.segments[buffer]:
            if placement.region == region and placement.start < position <= placement.end:
                return placement
        name = self.lowered.problem.buffers[buffer].name
        raise UserError("MP110", f"{name} is copied from {region} at {position}, where it is not")

    def _bytes(self, placement: Placement) -> Tensor:
        memory = self.memory[placement.region]
        return memory[placement.offset : placement.offset + self._size(placement.buffer)]

    def _run_op(self, op: Op, index: int, position: int) -> None:
        if op.is_view:
            return
        env = {name: self._value(name, position) for name in op.operands}
        if op.loop and op.loop.stream:
            self._run_stream(op, op.loop, index, position)
            return
        results = call(op, bound_args(op, env, self.symbols), self.symbols)
        written = []
        for value, result in zip(op.results, results, strict=True):
            if value is None or (value.alias and value.alias.kind == "view"):
                continue
            if isinstance(value.type, ScalarType):
                self.numbers[value.name] = result
                continue
            place = self._value(value.name, position)
            if not _same_tensor(place, result):
                shared = shares_storage(result, env.values())
                written.append((place, result.clone() if shared else result))
        for place, result in written:
            place.copy_(result)
        for scratch in self._scratch(index, position):
            scratch.fill_(self.poison)

    def _run_stream(self, op: Op, loop: Loop, index: int, position: int) -> None:
        """A stream works in its scratch and writes its results as it goes."""
        operands = [self._value(name, position) for name in op.operands]
        results = [self._value(value.name, position) for value in op.values]
        scratch = self._scratch(index, position)
        run_stream(loop, operands, results, scratch, self.symbols)
        for ring in scratch:
            ring.fill_(self.poison)

    def _scratch(self, index: int, position: int) -> list[Tensor]:
        """The scratch of an op that is there at ``position``."""
        buffers = self.lowered.scratch_of.get(index, ())
        placements = (p for buffer in buffers for p in self.segments.get(buffer, ()))
        return [self._bytes(p) for p in placements if p.start <= position < p.end]

    def _value(self, name: str, position: int, output: bool = False) -> Any:
        """The value where it lies at ``position``; an ``output`` may lie in any region."""
        type_ = self.values[name].type
        if isinstance(type_, ScalarType):
            return self.numbers[name]
        static = type_.bound(self.symbols)
        root = self.lowered.storages.root[name]
        if root in self.outside:
            base = self.outside[root]
            return overlay(base, static, first_byte(base) + self.start[name])
        buffer, before = self.lowered.pieces.get(name, (self.lowered.buffer_of.get(root, -1), 0))
        placement = self._place(name, buffer, position, output)
        start = placement.offset + self.start[name] - before
        return overlay(self.memory[placement.region], static, start)

    def _place(self, name: str, buffer: int, position: int, output: bool) -> Placement:
        """Where the buffer lies at ``position``, or lay last if the plan has freed it by then."""
        regions = {r.name for r in self.lowered.problem.regions if output or r.addressable}
        segments = self.segments.get(buffer, [])
        begun = [p for p in segments if p.start <= position and p.region in regions]
        if not begun:
            raise UserError("MP110", f"%{name} is used at position {position} but lies nowhere then")
        return next((p for p in begun if position < p.end), begun[-1])


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _starts(graph: Graph, symbols: Mapping[str, int], found: Storages) -> dict[str, int]:
    """How many bytes after its storage's first byte each tensor starts."""
    table: dict[str, int] = {}
    for value in graph.values:
        if not isinstance(value.type, TensorType):
            continue
        offset = value.alias.offset_bytes if value.alias else 0
        moved = offset.evaluate(symbols) if isinstance(offset, Sym) else offset
        base = table[value.alias.of] if value.alias else found.lead[value.name]
        table[value.name] = base + moved
    return table
