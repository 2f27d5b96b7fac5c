"""From the operand of the value product back to the scores: dropout, casts, views and the softmax."""

from __future__ import annotations

from mplan.ir.graph import Op, Ref
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.region import Mismatch, Operand
from mplan.passes.fuse_attention.views import base_name, broadcast, is_cast, source, through_view

SOFTMAX = frozenset(("_softmax", "softmax", "_safe_softmax", "special_softmax"))
_REACH = 16


def leads_to_softmax(facts: Facts, name: str) -> bool:
    """Whether a softmax, or the exponential of a decomposed one, stands a few ops before ``name``."""
    front, seen = [name], {name}
    for _ in range(_REACH):
        ops = [facts.producers[n] for n in front if n in facts.producers]
        if any(base_name(op) in SOFTMAX or base_name(op) in ("exp", "log_softmax") for op in ops):
            return True
        found = dict.fromkeys(n for op in ops if _is_step(op) for n in op.operands)
        front = [n for n in found if n not in seen]
        seen.update(front)
    return False


def _is_step(op: Op) -> bool:
    moves = ("view", "expand", "permute", "clone", "dropout", "native_dropout", "_unsafe_view")
    more = ("transpose", "reshape", "mul", "div", "where", "masked_fill", "unsqueeze", "squeeze")
    return is_cast(op) or base_name(op) in (*moves, *more, "t", "slice", "nan_to_num")


class WeightWalk:
    """Walks from the attention weights to the scores; ``path`` gathers the values in between."""

    def __init__(self, facts: Facts, space: Space, keys: Group) -> None:
        self.facts = facts
        self.space = space
        self.keys = keys
        self.path: list[str] = []

    def scores(self, name: str, layout: Layout) -> Operand:
        """The scores whose softmax over the keys the value ``name`` is; else Mismatch."""
        while True:
            op = self._enter(name)
            layout = self.space.resolved(layout)
            base = base_name(op)
            if base in SOFTMAX:
                return self._softmax(op, layout)
            if base == "div":
                return self._normalised(op, layout)
            if base == "exp":
                return self._of_logarithms(op, layout)
            name, layout = self._step(op, layout)

    def _enter(self, name: str) -> Op:
        self.path.append(name)
        op = self.facts.producers.get(name)
        if op is None:
            raise Mismatch("the weights are an input")
        return op

    def _step(self, op: Op, layout: Layout) -> tuple[str, Layout]:
        name = base_name(op)
        if name in ("dropout", "native_dropout"):
            if op.arg("train") not in (False, None) and op.arg("p") != 0.0:
                raise Mismatch("dropout is active on the attention weights", op)
            return source(op), layout
        if name == "where":
            return self._unmasked(op, layout)
        if is_cast(op):
            if not self.facts.type(op.result.name).dtype.is_float:
                raise Mismatch("the attention weights become integers", op)
            return source(op), layout
        before = through_view(self.space, self.facts, op, layout)
        if before is None:
            raise Mismatch(f"{op.kind} stands between softmax and the product with the values", op)
        return source(op), before

    def _softmax(self, op: Op, layout: Layout) -> Operand:
        self._require_keys(op, layout, op.arg("dim"))
        return Operand(source(op), layout)

    def _require_keys(self, op: Op, layout: Layout, dim: object) -> None:
        keys = self.space.resolve(self.keys)
        if not isinstance(dim, int) or layout[dim] != keys:
            over = layout[dim] if isinstance(dim, int) else ()
            what = "part of the keys" if set(over) & set(keys) else "another axis than the keys"
            raise Mismatch(f"the softmax runs over {what}", op)

    # --- softmax in pieces ----------------------------------------------------------------------

    def _normalised(self, op: Op, layout: Layout) -> Operand:
        """``exp(x) / sum(exp(x))``, the scores being x."""
        above, below = op.arg("self"), op.arg("other")
        if not isinstance(above, Ref) or not isinstance(below, Ref) or op.arg("rounding_mode"):
            raise Mismatch("the attention weights are divided after the softmax", op)
        exp, at = self._origin(above.name, self._operand(op, above.name, layout))
        total, total_at = self._origin(below.name, self._operand(op, below.name, layout))
        if base_name(exp) != "exp" or base_name(total) != "sum":
            raise Mismatch("a division that is no softmax stands before the product", op)
        summed, summed_at = self._origin(source(total), self._reduced(total, total_at))
        same = self.space.resolved(summed_at) == self.space.resolved(at)
        if summed is not exp or not same:
            raise Mismatch("the divisor is not the sum of the exponentials over the keys", total)
        return Operand(source(exp), at)

    def _origin(self, name: str, layout: Layout) -> tuple[Op, Layout]:
        """Back through views and casts to an op that computes."""
        while True:
            op = self._enter(name)
            before = layout if is_cast(op) else through_view(self.space, self.facts, op, layout)
            if before is None:
                return op, layout
            name, layout = source(op), before

    def _reduced(self, op: Op, layout: Layout) -> Layout:
        """The layout of the operand of a reduction over the keys, given that of its result."""
        arg = op.arg("dim")
        dims = arg if isinstance(arg, tuple) else (arg,)
        rank = len(self.facts.shape(source(op)))
        if len(dims) != 1 or not isinstance(dims[0], int):
            raise Mismatch("a reduction runs over several axes", op)
        position = dims[0] % rank
        keep = bool(op.arg("keepdim", False))
        rest = layout[position + 1 :] if keep else layout[position:]
        return (*layout[:position], self.space.resolve(self.keys), *rest)

    def _of_logarithms(self, op: Op, layout: Layout) -> Operand:
        """``exp(log_softmax(x))`` and ``exp(x - logsumexp(x))``."""
        log, at = self._origin(source(op), layout)
        if base_name(log) in ("log_softmax", "_log_softmax"):
            return self._softmax(log, self.space.resolved(at))
        below = log.arg("other")
        if base_name(log) == "sub" and isinstance(below, Ref):
            total, total_at = self._origin(below.name, self._operand(log, below.name, at))
            if self._is_logsumexp(total, total_at, source(log), at):
                return Operand(source(log), at)
        raise Mismatch("exponentials without a sum over the keys", op)

    def _is_logsumexp(self, op: Op, layout: Layout, of: str, of_layout: Layout) -> bool:
        """Whether ``op`` is the logarithm of the sum over the keys of the exponentials of ``of``."""
        if base_name(op) == "logsumexp":
            reduced = self._reduced(op, layout)
            return source(op) == of and reduced == self.space.resolved(of_layout)
        first, top = op.arg("self"), op.arg("other")
        if base_name(op) != "add" or not isinstance(first, Ref) or not isinstance(top, Ref):
            return False
        log, at = self._origin(first.name, self._operand(op, first.name, layout))
        if base_name(log) != "log":
            return False
        total, at = self._origin(source(log), at)
        if base_name(total) != "sum":
            return False
        exp, at = self._origin(source(total), self._reduced(total, at))
        shifted = self.facts.producers.get(source(exp)) if base_name(exp) == "exp" else None
        if shifted is None or base_name(shifted) != "sub" or source(shifted) != of:
            return False
        below = shifted.arg("other")
        same = isinstance(below, Ref) and self._behind_views(below.name) == self._behind_views(top.name)
        return same and self.space.resolved(at) == self.space.resolved(of_layout)

    def _operand(self, op: Op, name: str, layout: Layout) -> Layout:
        """The layout of an operand of the pointwise ``op``, whose result has ``layout``."""
        return broadcast(self.space, layout, self.facts.shape(name), self.facts.shape(op.result.name))

    def _behind_views(self, name: str) -> str:
        while (op := self.facts.producers.get(name)) is not None and op.is_view:
            name = source(op)
        return name

    def _unmasked(self, op: Op, layout: Layout) -> tuple[str, Layout]:
        """``where(no key is visible, 0, weights)``, which attention does by itself."""
        condition, fill, kept = op.arg("condition"), op.arg("self"), op.arg("other")
        if isinstance(condition, Ref) and isinstance(kept, Ref) and self.facts.number(fill) == 0.0:
            kinds: list[str] = []
            name = condition.name
            while name in self.facts.producers and len(kinds) < 6:
                step = self.facts.producers[name]
                kinds.append(base_name(step))
                name = source(step) if step.operands else ""
            if kinds[:4] == ["logical_not", "any", "logical_not", "eq"]:
                return kept.name, layout
        raise Mismatch("the attention weights are masked after the softmax", op)
