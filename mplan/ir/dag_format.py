"""Reader of DAG instances: operators and the tensors between them, in captured order.

``{"name", "nodes": [{"name", "op", "ins": [tensor], "outs": [tensor]}], "tensors": [{"size": bytes,
"prod": node or -1, "cons": [node], "kind"}]}``. A tensor without a producer is live from the start, if
it is used at all; kinds ``output`` and ``inout`` live to the end. ``"adjacent": [[tensor]]`` may name
tensors that lie one directly behind the other, as the parts of a concatenation do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mplan.diagnostics import UserError, Where
from mplan.files import read_text
from mplan.ir.decode import DecodeError, decode, parse_object
from mplan.ir.plan import Buffer, BufferKind, Problem, Region, Step

_LASTING = ("output", "inout")


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    op: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    size: int
    prod: int
    cons: tuple[int, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Dag:
    name: str
    nodes: tuple[_Node, ...]
    tensors: tuple[_Tensor, ...] = field(default=())
    adjacent: tuple[tuple[int, ...], ...] = ()


def load_dag(path: str | Path, region: Region | None = None) -> Problem:
    """The problem in the file ``path``; UserError MP490 if it cannot be read, MP231 if malformed."""
    return parse_dag(read_text(path), region, str(path))


def parse_dag(text: str, region: Region | None = None, file: str = "<dag>") -> Problem:
    """``load_dag`` of a text. All tensors go to ``region`` (default: an unlimited ``arena``)."""
    try:
        document = parse_object(text)
        document.pop("meta", None)
        dag: _Dag = decode(_Dag, document, "$")
        _check(dag)
    except DecodeError as error:
        help = "a DAG has `name`, `nodes` (name, op, ins, outs) and `tensors` (size, prod, cons, kind)"
        raise UserError("MP231", f"not a DAG instance: {error}", Where(file), help) from error
    where = region or Region("arena")
    return Problem(
        name=dag.name,
        regions=(where,),
        buffers=tuple(_buffer(i, t, where.name) for i, t in enumerate(dag.tensors)),
        steps=tuple(_step(node, dag) for node in dag.nodes),
        adjacent=dag.adjacent,
    )


def _buffer(i: int, tensor: _Tensor, region: str) -> Buffer:
    lasting = tensor.kind in _LASTING
    live_in = tensor.prod < 0 and (lasting or bool(tensor.cons))
    kind: BufferKind = "output" if lasting else "input" if tensor.prod < 0 else "intermediate"
    return Buffer(f"t{i}", tensor.size, (region,), kind=kind, live_in=live_in, live_out=lasting)


def _step(node: _Node, dag: _Dag) -> Step:
    after = {dag.tensors[t].prod for t in node.ins} - {-1}
    return Step(node.name, node.ins, node.outs, tuple(sorted(after)), node.op)


def _check(dag: _Dag) -> None:
    """Raise DecodeError if indices, sizes or the two views of the edges do not agree."""
    for i, tensor in enumerate(dag.tensors):
        if tensor.size < 0:
            raise DecodeError(f"$.tensors[{i}].size", f"{tensor.size} bytes")
        if not -1 <= tensor.prod < len(dag.nodes):
            raise DecodeError(f"$.tensors[{i}].prod", f"there is no node {tensor.prod}")
    readers: list[set[int]] = [set() for _ in dag.tensors]
    for i, node in enumerate(dag.nodes):
        _check_node(dag, i, node)
        for t in node.ins:
            readers[t].add(i)
    for i, tensor in enumerate(dag.tensors):
        if set(tensor.cons) != readers[i]:
            raise DecodeError(
                f"$.tensors[{i}].cons", f"the nodes that read it are {sorted(readers[i])}"
            )
        if tensor.prod >= 0 and i not in dag.nodes[tensor.prod].outs:
            raise DecodeError(f"$.tensors[{i}].prod", f"node {tensor.prod} does not make it")

    grouped: set[int] = set()
    for i, group in enumerate(dag.adjacent):
        for k, t in enumerate(group):
            if not 0 <= t < len(dag.tensors) or t in grouped:
                fault = "stands in a group already" if t in grouped else "does not exist"
                raise DecodeError(f"$.adjacent[{i}][{k}]", f"tensor {t} {fault}")
            grouped.add(t)


def _check_node(dag: _Dag, i: int, node: _Node) -> None:
    for name, ends in (("ins", node.ins), ("outs", node.outs)):
        for k, t in enumerate(ends):
            path = f"$.nodes[{i}].{name}[{k}]"
            if not 0 <= t < len(dag.tensors):
                raise DecodeError(path, f"there is no tensor {t}")
            producer = dag.tensors[t].prod
            if name == "outs" and producer != i:
                raise DecodeError(path, f"tensor {t} is made by node {producer}")
            if name == "ins" and producer >= i:
                raise DecodeError(path, f"tensor {t} is made later")
