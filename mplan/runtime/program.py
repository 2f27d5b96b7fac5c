"""A planned graph as a callable for the CPU: every tensor at its planned address, in one arena.

The graph becomes a Python function, one line per op in schedule order, each value dropped after its
last use. While an op runs, the heap serves its requests from the slots that the plan gave them.
When the call ends the arena is closed: the returned tensors keep their own pages, everything else
goes back to the system.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from mplan.diagnostics import InternalError, MplanError
from mplan.ir.graph import Arg, Graph, Input, Op, Ref
from mplan.ir.ops import lookup
from mplan.ir.plan import Plan
from mplan.ir.storage import Lowered, storages
from mplan.ir.types import Sym, TensorType, bounded
from mplan.runtime import heap
from mplan.runtime.profile import callable_of, pattern_of
from mplan.targets.model import Target


@dataclass(frozen=True, slots=True)
class Fallback:
    """An op whose memory is not served from the arena, and why."""

    op: str
    kind: str
    where: str
    reason: str


@dataclass
class Program:
    """Runs a planned graph; call it with a list of inputs, which it empties (boxed calling).

    ``graph`` stands in schedule order and is what ``lowered`` and ``plan`` speak of. On a GPU (a
    ``target`` of that family) it runs the same schedule with PyTorch's own allocation and generated
    attention kernels.

    ``fallbacks`` are the ops that allocate eagerly. ``source`` is the Python function that runs.
    ``misses`` counts, over all calls, requests that the plan did not foresee (they are served by the
    heap, so results are right but memory is more than planned).
    """

    graph: Graph
    lowered: Lowered
    plan: Plan
    target: Target | None = None
    source: str = ""
    fallbacks: tuple[Fallback, ...] = ()
    misses: int = 0
    calls: int = 0
    _boxed_call: bool = True
    _function: Callable[..., Any] | None = None
    _table: Any = None
    _arena_bytes: int = field(default=0)

    def __post_init__(self) -> None:
        writer = _Writer(self.graph, self.lowered, self.plan, self.target)
        self.source, self._function = writer.compile()
        self.fallbacks = tuple(writer.fallbacks)
        self._arena_bytes = self.plan.peak_bytes(writer.region)
        if writer.in_arena:
            self._table = heap.SlotTable(writer.slots)

    @property
    def arena_bytes(self) -> int:
        """The planned peak: the size of the arena; 0 where the heap is not available."""
        return self._arena_bytes if self._table is not None else 0

    def __call__(self, args: list[Any]) -> list[Any]:
        """Run once, without autograd; ``args`` are the graph's inputs in order."""
        import torch
        from torch.utils._python_dispatch import _disable_current_modes

        assert self._function is not None
        self.calls += 1
        # AOTAutograd makes the first call under a mode that turns numbers into more tensors.
        watched = torch._C._len_torch_dispatch_stack() > 0
        with torch.no_grad(), _disable_current_modes() if watched else nullcontext():
            return self._run(self._function, args)

    def _run(self, function: Callable[..., Any], args: list[Any]) -> list[Any]:
        if self._table is None:
            return list(function(args, _idle, _idle))
        with heap.Arena(self._arena_bytes) as arena:
            with arena.replay(self._table) as run:
                outputs = list(function(args, run.enter, run.leave))
            self.misses += len(run.misses)
        return outputs


def _idle(*_: int) -> int:
    return 0


class _Writer:
    """Writes the function's source and gathers the slots of every op."""

    def __init__(self, graph: Graph, lowered: Lowered, plan: Plan, target: Target | None) -> None:
        self.graph = graph
        self.lowered = lowered
        self.plan = plan
        self.region = lowered.problem.regions[0].name
        self.target = target
        self.on_gpu = target is not None and target.family == "gpu"
        self.in_arena = not self.on_gpu and heap.unavailable() is None
        self.table = self.graph.symbol_table
        self.types = {v.name: bounded(v.type, self.table) for v in self.graph.values}
        self.roots = storages(self.graph).root
        self.offset_of = {p.buffer: p.offset for p in plan.placements}
        self.slots: list[list[heap.Slot]] = []
        self.fallbacks: list[Fallback] = []
        self.scope: dict[str, Any] = {}
        self.local = {name: f"v{i}" for i, name in enumerate(self.types)}
        self.symbol_local = {s.name: f"s{i}" for i, s in enumerate(self.graph.symbols)}
        self.alive: set[str] = set()

    def compile(self) -> tuple[str, Callable[..., Any]]:
        lines = ["def run(args, enter, leave):", *(f"    {line}" for line in self._body())]
        source = "\n".join(lines) + "\n"
        name = f"<mplan {self.graph.name} {self.plan.digest[:12]}>"
        exec(compile(source, name, "exec"), self.scope)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        function: Callable[..., Any] = self.scope["run"]
        return source, function

    def _body(self) -> Iterator[str]:
        yield from self._prologue()
        last_use = self._last_uses()
        for index, op in enumerate(self.graph.ops):
            yield from self._op_lines(index, op)
            dead = [self.local[n] for n in last_use.get(index, ())]
            if dead:
                yield f"del {', '.join(dead)}"
        yield f"return [{', '.join(self._expression(a) for a in self.graph.outputs)}]"

    def _prologue(self) -> Iterator[str]:
        names = [self.local[i.value.name] for i in self.graph.inputs]
        if names:
            yield f"{', '.join(names)}, = args"
        yield "args.clear()"
        bound: set[str] = set()
        for item in self.graph.inputs:
            for symbol, expression in _bindings(item, self.local[item.value.name]):
                if symbol in self.symbol_local and symbol not in bound:
                    bound.add(symbol)
                    yield f"{self.symbol_local[symbol]} = {expression}"
        used = {n for op in self.graph.ops for n in op.operands} | set(self.graph.output_names)
        unused = [self.local[i.value.name] for i in self.graph.inputs if i.value.name not in used]
        if unused:
            yield f"del {', '.join(unused)}"

    def _last_uses(self) -> dict[int, list[str]]:
        """The values that no op after the ``k``-th needs, results that nobody uses included."""
        last: dict[str, int] = {}
        for index, op in enumerate(self.graph.ops):
            last |= {v.name: index for v in op.values}
            last |= dict.fromkeys(op.operands, index)
        for name in self.graph.output_names:
            last.pop(name, None)
        table: dict[int, list[str]] = {}
        for name, index in last.items():
            table.setdefault(index, []).append(name)
        return table

    def _op_lines(self, index: int, op: Op) -> Iterator[str]:
        self.scope[f"f{index}"] = self._function(op)
        call = f"{self._targets(op)}{self._call(index, op)}"
        slots = self._slots(index, op) if self.in_arena and not op.is_view else []
        comment = f"  # {op.loc}" if op.loc else ""
        if not slots:
            yield call + comment
            return
        yield f"enter({len(self.slots)}); {call}; leave()" + comment
        self.slots.append(slots)

    def _function(self, op: Op) -> Callable[..., Any]:
        """What runs ``op`` on the target."""
        if op.kind != "mplan.attention" or not self.on_gpu or self.target is None:
            return callable_of(op)
        from mplan.codegen.triton.spec import Attention
        from mplan.runtime.triton_attention import attention_callable

        try:
            values = self.graph.value_table
            run = attention_callable(Attention.of(op, values), self.target)
        except MplanError as e:  # no kernel for these types: PyTorch's attention computes them all
            self._fall_back(op, f"no generated kernel: {e.message}")
            return callable_of(op)
        return lambda query, key, value, attn_mask=None, **_: run(query, key, value, attn_mask)

    def _targets(self, op: Op) -> str:
        names = ["_" if v is None else self.local[v.name] for v in op.results]
        if not names:
            return ""
        if len(names) == 1 and "[]" not in "".join(lookup(op.kind).returns):
            return f"{names[0]} = "
        return f"{', '.join(names)}, = "

    def _call(self, index: int, op: Op) -> str:
        function = f"f{index}"
        if op.loop:
            operands = ", ".join(self.local[n] for n in op.operands)
            self.scope[f"loop{index}"] = op.loop
            call = f"{function}(loop=loop{index}, operands=({operands},))"
        else:
            types = {p.name: p.type.rstrip("?") for p in lookup(op.kind).params}
            args = (f"{k}={self._argument(v, types.get(k, ''), op.kind)}" for k, v in op.args)
            call = f"{function}({', '.join(args)})"
        flat = len(lookup(op.kind).returns) > 1 and "[]" in "".join(lookup(op.kind).returns)
        if flat:
            from mplan.ir.aten_ops import flat_results

            self.scope["flat"] = flat_results
        return f"flat({call})" if flat else call

    def _argument(self, arg: Arg, type_: str, kind: str) -> str:
        """An expression for ``arg``; constants are converted now, once."""
        if not _is_dynamic(arg):
            return self._constant(arg, type_, kind)
        if isinstance(arg, tuple):
            return "[" + ", ".join(self._argument(a, type_, kind) for a in arg) + "]"
        return self._expression(arg)

    def _constant(self, arg: Arg, type_: str, kind: str) -> str:
        if arg is None or isinstance(arg, (bool, int)):
            return repr(arg)
        from mplan.ir.aten_ops import torch_value

        name = f"c{len(self.scope)}"
        self.scope[name] = torch_value(arg, type_)
        return name

    def _expression(self, arg: Arg) -> str:
        if isinstance(arg, Ref):
            return self.local[arg.name]
        if isinstance(arg, Sym):
            return f"({_renamed(arg, self.symbol_local)})"
        return repr(arg)

    def _slots(self, index: int, op: Op) -> list[heap.Slot]:
        pattern = pattern_of(op, self.types, self.table)
        if pattern.fault:
            self._fall_back(op, pattern.fault)
            return []
        if op.scratch != pattern.scratch:
            self._fall_back(op, "its scratch memory was not planned (no profile_scratch)")
            return []
        scratch = self.lowered.scratch_of[index]
        slots = []
        for request in pattern.requests:
            if request.result is None:
                base = self.offset_of[scratch[request.scratch]]
                slots.append(heap.Slot(request.size_bytes, base + request.offset))
            else:
                slots.append(self._result_slot(op, request.result, request.size_bytes))
        return slots

    def _result_slot(self, op: Op, number: int, size_bytes: int) -> heap.Slot:
        value = op.results[number] if number < len(op.results) else None
        buffer = self.lowered.buffer_of.get(self.roots[value.name]) if value is not None else None
        if value is None or buffer is None:
            self._fall_back(op, f"allocates {size_bytes:,} B for a result that is not planned")
            return heap.UNPLANNED
        room = self.lowered.problem.buffers[buffer].size_bytes
        if size_bytes > room:
            self._fall_back(op, f"allocates {size_bytes:,} B for a result of {room:,} B")
            return heap.UNPLANNED
        in_place = value.alias is not None and value.alias.kind == "inplace"
        return heap.Slot(room, self.offset_of[buffer], in_place)

    def _fall_back(self, op: Op, reason: str) -> None:
        name = op.values[0].name if op.values else op.kind
        self.fallbacks.append(Fallback(name, op.kind, str(op.loc or ""), reason))


def _is_dynamic(arg: Arg) -> bool:
    if isinstance(arg, tuple):
        return any(_is_dynamic(a) for a in arg)
    return isinstance(arg, (Ref, Sym))


def _bindings(item: Input, local: str) -> Iterator[tuple[str, str]]:
    """Symbols whose value an input shows, and the expression that reads it."""
    if item.role == "symbol":
        yield item.source or item.value.name, local
    if isinstance(item.value.type, TensorType):
        for i, size in enumerate(item.value.type.shape):
            if isinstance(size, Sym) and size.text.isidentifier():
                yield size.text, f"{local}.shape[{i}]"


def _renamed(sym: Sym, names: Mapping[str, str]) -> str:
    import ast

    tree = ast.parse(sym.text, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in ("max", "min"):
            if node.id not in names:
                raise InternalError("MP598", f"the symbol {node.id} has no value")
            node.id = names[node.id]
    return ast.unparse(tree)
