"""From a planned graph to C sources: places every value, writes every step, fills the templates.

The order of the steps, the offsets of the buffers and the copies between regions are the plan's;
nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mplan.codegen.c import selftest, weights
from mplan.codegen.c.kernels import TABLE
from mplan.codegen.c.memory import Area, Memory, static_type, user_inputs
from mplan.codegen.c.pointwise import copy
from mplan.codegen.c.render import render
from mplan.codegen.c.stream import pushed_input
from mplan.codegen.c.table import Site
from mplan.codegen.c.tensors import Code, Function, Tensor
from mplan.codegen.c.text import is_identifier, literal
from mplan.diagnostics import UnsupportedError, UserError, Where
from mplan.ir.affine import Affine
from mplan.ir.graph import Graph, Op, Ref, Value
from mplan.ir.ops import graph_macs
from mplan.ir.plan import Plan
from mplan.ir.printer import print_type
from mplan.ir.storage import Lowered
from mplan.ir.types import DType

if TYPE_CHECKING:
    from mplan.targets.model import Target


@dataclass(frozen=True, slots=True)
class Step:
    """The statements of one op below a comment that says what and where it is.

    ``position`` is its place in the plan's order; copies between regions have that of the next op.
    """

    position: int
    comment: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AreaView:
    """A region's array as the template shows it."""

    symbol: str
    macro: str
    size_bytes: int
    declared_bytes: int
    section: str


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output; ``offset_bytes`` None means that it does not lie in the arena.

    One with ``rows`` arrives row by row, all of them in each of its ``scans``, and lies nowhere; one
    that is ``outside`` is read where the caller has it, at the pointer of that name. One with a
    ``scale`` holds integers that stand for ``scale * (integer - zero_point)``.
    """

    index: int
    label: str
    parameter: str
    shape: str
    source: str
    elements: int
    size_bytes: int
    offset_bytes: int | None
    pointer: str
    ctype: str
    rows: int = 0
    scans: int = 1
    outside: str = ""
    scale: str = ""
    zero_point: int = 0


def emit_c(
    graph: Graph,
    lowered: Lowered,
    plan: Plan,
    constants: Mapping[str, Any],
    *,
    name: str,
    target: Target | None = None,
    golden: Mapping[str, Any] | None = None,
    affines: Mapping[str, Affine] | None = None,
) -> dict[str, str | bytes]:
    """C99 sources that run ``graph`` as ``plan`` says, by file name.

    ``plan`` answers ``lowered.problem`` and has passed its check. ``name`` is the prefix of all
    symbols and files. ``golden`` maps ``input0`` …, ``output0`` … to arrays for the self-test,
    ``affines`` to what their integers stand for.

    UnsupportedError MP501 lists all ops that cannot be emitted, MP502 values that C cannot hold;
    UserError MP503 if ``name`` is no identifier, MP504 if the arguments do not belong together.
    """
    if not is_identifier(name):
        raise UserError("MP503", f"{name!r} is not a C identifier", help="use letters, digits and _")
    placed = [m for m in target.memories if m.base is not None] if target else []
    sections = {m.name for m in placed if target and m.name != target.arena}
    memory = Memory(graph, lowered, plan, name, sections)
    writer = _Writer(graph, memory, plan, constants, target.name if target else "", affines or {})
    if not plan.order:  # nothing is live at any time, so that there is no arena to hold the inputs
        raise UnsupportedError("MP501", f"the network {name} computes nothing")
    return writer.files(golden)


class _Writer:
    def __init__(
        self,
        graph: Graph,
        memory: Memory,
        plan: Plan,
        constants: Mapping[str, Any],
        target: str,
        affines: Mapping[str, Affine],
    ) -> None:
        self.graph = graph
        self.memory = memory
        self.plan = plan
        self.constants = constants
        self.name = memory.name
        self.target = target
        self.affines = affines
        self.steps, self.functions = _steps(graph, memory, plan)
        self.inputs = [_input(memory, n, i.value) for n, i in enumerate(user_inputs(graph))]
        self.rows = pushed_input(graph, memory)
        names = [arg.name for arg in graph.outputs if isinstance(arg, Ref)]
        self.outputs = [memory.tensor(name, len(plan.order)) for name in names]
        self.sources = [i.source or i.value.name for i in user_inputs(graph)]

    def files(self, golden: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        view = self._view(golden)
        files: dict[str, str | bytes] = {
            f"{self.name}.h": render("header.h.j2", **view),
            f"{self.name}.c": render("source.c.j2", **view),
        }
        if view["fields"]:
            files[f"{self.name}_weights.h"] = render("weights.h.j2", **view)
            files[f"{self.name}_weights.c"] = render("weights.c.j2", **view)
        if golden is not None:
            files[f"{self.name}_selftest.c"] = self._selftest(golden)
        return files

    def _view(self, golden: Mapping[str, Any] | None) -> dict[str, Any]:
        inputs, outputs = self._ports("input", self.inputs), self._ports("output", self.outputs)
        copy_in, copy_out = self._copies(inputs, outputs)
        fields = weights.fields(self.memory.members, self.constants)
        ports = (*inputs, *outputs)
        strided = [
            p.label
            for p, t in zip(ports, self.inputs + self.outputs, strict=True)
            if not t.is_contiguous
        ]
        return {
            "name": self.name,
            "upper": self.name.upper(),
            "target": self.target,
            "digest": self.plan.digest,
            "macs": graph_macs(self.graph),
            "areas": [_area_view(a) for a in self.memory.areas],
            "arena_bytes": self.memory.areas[0].size_bytes,
            "ram_bytes": sum(a.size_bytes for a in self.memory.areas),
            "weights_bytes": self.memory.weights_bytes,
            "has_weights": bool(fields),
            "fields": fields,
            "weight_checks": weights.checks(self.name, self.memory.members),
            "functions": _ordered((*self.functions, *copy_in.functions, *copy_out.functions)),
            "steps": self.steps,
            "inputs": inputs,
            "outputs": outputs,
            "strided": strided,
            "rows": self.rows,
            "outside": [p for p in inputs if p.outside],
            "has_streams": any(op.loop for op in self.graph.ops),
            "signature": _signature(inputs, outputs),
            "copy_in": copy_in.lines,
            "copy_out": copy_out.lines,
            "golden": golden is not None,
            "tolerance": selftest.tolerance(golden) if golden is not None else "",
        }

    def _ports(self, kind: str, tensors: list[Tensor]) -> tuple[Port, ...]:
        return tuple(
            Port(
                index=i,
                label=f"{kind.upper()}_{i}",
                parameter=f"{'in' if kind == 'input' else 'out'}{i}",
                shape=f"{t.ctype}[{', '.join(map(str, t.shape))}]",
                source=_comment_safe(self.sources[i]) if kind == "input" else "",
                elements=t.numel,
                size_bytes=t.numel * t.dtype.itemsize,
                offset_bytes=t.offset_bytes if t.array.name == self.memory.areas[0].macro else None,
                pointer=""
                if t.array.is_pointer or (kind == "input" and self._arrives(i))
                else t.pointer,
                ctype=t.ctype,
                outside=t.array.name if t.array.is_pointer else "",
                **self._rows(kind, i),
                **self._affine(f"{kind}{i}"),
            )
            for i, t in enumerate(tensors)
        )

    def _rows(self, kind: str, index: int) -> dict[str, Any]:
        if self.rows is None or kind != "input" or not self._arrives(index):
            return {}
        return {"rows": self.rows.count, "scans": self.rows.scans}

    def _affine(self, key: str) -> dict[str, Any]:
        found = self.affines.get(key)
        if found is None:
            return {}
        return {"scale": literal(found.scale, DType.F32), "zero_point": found.zero_point}

    def _copies(self, inputs: Iterable[Port], outputs: Iterable[Port]) -> tuple[Code, Code]:
        """From the caller's row-major arrays to the inputs, from the outputs to the caller's."""
        copy_in, copy_out = Code(), Code()
        for port, tensor in zip(inputs, self.inputs, strict=True):
            given = Tensor.dense(port.parameter, tensor.dtype, tensor.shape)
            if port.outside:
                copy_in += Code((f"{port.outside} = {port.parameter};",))
            elif not port.rows:
                copy_in += _unless_same(port, copy(tensor, given))
        for port, tensor in zip(outputs, self.outputs, strict=True):
            taken = Tensor.dense(port.parameter, tensor.dtype, tensor.shape)
            copy_out += _unless_same(port, copy(taken, tensor))
        return copy_in, copy_out

    def _arrives(self, index: int) -> bool:
        """Whether an input arrives by rows."""
        return self.rows is not None and self.rows.index == index

    def _selftest(self, golden: Mapping[str, Any]) -> str:
        outside = {i for i, t in enumerate(self.inputs) if t.array.is_pointer}
        held = [(i, t) for i, t in enumerate(self.inputs) if not self._arrives(i) and i not in outside]
        before = selftest.fill_inputs(self.name, held)
        set_ = (f"(void){self.name}_set_input({i}, input{i});" for i in sorted(outside))
        before = Code(tuple(set_)) + before
        after = selftest.compare_outputs(self.name, self.outputs)
        return render(
            "selftest.c.j2",
            name=self.name,
            arrays=[
                *selftest.arrays(golden, "input", self.inputs),
                *selftest.arrays(golden, "output", self.outputs),
            ],
            functions=_ordered((*before.functions, *after.functions)),
            rows=self.rows,
            before=before.lines,
            after=after.lines,
        )


def _steps(graph: Graph, memory: Memory, plan: Plan) -> tuple[list[Step], list[Function]]:
    """The steps in the plan's order and what they call; UnsupportedError lists what is missing."""
    used = frozenset([*(n for op in graph.ops for n in op.operands), *graph.output_names])
    steps: list[Step] = []
    functions: list[Function] = []
    missing: list[tuple[str, Where | None]] = []
    last_step = {op: step for step, op in enumerate(memory.lowered.op_of)}
    for position, step in enumerate(plan.order):
        number = memory.lowered.op_of[step]
        op = graph.ops[number]
        steps += _transfers(memory, plan, position)
        if op.is_view or step != last_step[number]:  # an op in phases runs when all its memory is there
            continue
        try:
            code = _code(Site(op, position, memory, used))
        except UnsupportedError as e:
            missing.append((e.message, op.loc.where() if op.loc else None))
            continue
        if code.lines:
            steps.append(Step(position, tuple(_comment(position, op, memory)), code.lines))
            functions += code.functions
    if missing:
        raise UnsupportedError(
            "MP501",
            f"{len(missing)} of {len(graph.ops)} ops cannot be emitted as C",
            missing[0][1],
            "see the coverage table for the ops that can",
            tuple(missing),
        )
    steps += _transfers(memory, plan, len(plan.order))
    return _resumable(steps, graph, memory), functions


def _resumable(steps: list[Step], graph: Graph, memory: Memory) -> list[Step]:
    """The steps, of which those before a stream that waits for rows run only at the start."""
    arriving = [n for n, op in enumerate(graph.ops) if any(map(memory.pushed, op.operands))]
    if not arriving:
        return steps
    at = next(p for p, s in enumerate(memory.plan.order) if memory.lowered.op_of[s] == arriving[0])
    return [
        replace(step, lines=Code(step.lines).block("if (fresh)").lines) if step.position < at else step
        for step in steps
    ]


def _input(memory: Memory, index: int, value: Value) -> Tensor:
    """An input where it lies, or as the caller's array if it arrives by rows."""
    if not memory.pushed(value.name):
        return memory.tensor(value.name, 0)
    type_ = static_type(value)
    return Tensor.dense(f"in{index}", type_.dtype, tuple(n for n in type_.shape if isinstance(n, int)))


def _code(site: Site) -> Code:
    emitter = TABLE.get(site.op.kind)
    if emitter is None:
        raise UnsupportedError("MP501", f"{site.op.kind} has no kernel")
    if any(site.memory.weight(value.name) for value in site.op.values):
        raise UnsupportedError("MP501", f"{site.op.kind} overwrites a weight")
    if not site.result.numel:
        return Code()
    return emitter(site)


def _transfers(memory: Memory, plan: Plan, position: int) -> Iterator[Step]:
    """The copies between regions just before ``position``; those that make room come first."""
    due = [t for t in plan.transfers if t.step == position]
    for t in sorted(due, key=lambda t: t.source != memory.areas[0].region):
        source, size = memory.moved(t.buffer, t.source, position, arriving=False)
        target, _ = memory.moved(t.buffer, t.target, position, arriving=True)
        name = memory.lowered.problem.buffers[t.buffer].name
        comment = f"/* {_comment_safe(name)}: {t.source} -> {t.target} */"
        yield Step(position, (comment,), (f"memcpy({target}, {source}, {size});",))


def _comment(position: int, op: Op, memory: Memory) -> Iterator[str]:
    """What the step computes, from what, where it lies, and the line of the model it comes from."""
    yield f"/* {position}: {op.kind}"
    for value in op.values:
        yield f" *   {_comment_safe(_described(value, memory, position))}"
    values = memory.graph.value_table
    for name in dict.fromkeys(op.operands):
        yield f" *   <- {_comment_safe(_described(values[name], memory, position))}"
    if op.loc:
        yield f" *   {_comment_safe(str(op.loc))}"
    yield " */"


def _described(value: Value, memory: Memory, position: int) -> str:
    text = f"{value.name} {print_type(value.type)}"
    if memory.pushed(value.name):
        return f"{text}, whose rows arrive"
    tensor = memory.tensor(value.name, position)
    if not tensor.array.is_macro:
        return f"{text} {tensor.array.name}"
    end = tensor.offset_bytes + static_type(value).nbytes
    return f"{text} {tensor.array.name.lower()} [{tensor.offset_bytes}, {end})"


def _comment_safe(text: str) -> str:
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ")


def _unless_same(port: Port, code: Code) -> Code:
    return code.block(f"if ({port.parameter} != {port.pointer})") if code.lines else code


def _signature(inputs: Iterable[Port], outputs: Iterable[Port]) -> str:
    parameters = [f"const {p.ctype} *{p.parameter}" for p in inputs]
    parameters += [f"{p.ctype} *{p.parameter}" for p in outputs]
    return ", ".join(parameters) or "void"


def _area_view(area: Area) -> AreaView:
    declared = max(area.size_bytes, 1)
    return AreaView(area.symbol, area.macro, area.size_bytes, declared, area.section)


def _ordered(functions: Iterable[Function]) -> list[Function]:
    """Each function once, after those that it needs."""
    found: dict[str, Function] = {}

    def add(function: Function) -> None:
        for needed in function.needs:
            add(needed)
        if found.setdefault(function.name, function) != function:
            raise AssertionError(f"two functions are called {function.name}")

    for function in functions:
        add(function)
    return list(found.values())
