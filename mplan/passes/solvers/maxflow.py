"""Minimum cuts by OR-tools' maximum flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mplan.diagnostics import InternalError, ToolError

if TYPE_CHECKING:
    from mplan.ir.table import Ints


class MinCut:
    """A network between ``SOURCE`` and ``SINK``; a finite minimum cut must exist."""

    SOURCE = 0
    SINK = 1

    def __init__(self, infinity: int) -> None:
        self._infinity = infinity
        self._nodes = 2
        self._tails: list[int] = []
        self._heads: list[int] = []
        self._capacities: list[int] = []

    def node(self) -> int:
        """A new node."""
        self._nodes += 1
        return self._nodes - 1

    def nodes(self, count: int) -> Ints:
        """New nodes."""
        import numpy as np

        self._nodes += count
        return np.arange(self._nodes - count, self._nodes)

    def arcs(self, tails: Ints, heads: Ints, capacities: Ints | None = None) -> None:
        """An arc for each row."""
        self._tails += tails.tolist()
        self._heads += heads.tolist()
        self._capacities += [self._infinity] * len(tails) if capacities is None else capacities.tolist()

    def arc(self, tail: int, head: int, capacity: int | None = None) -> None:
        """An arc: ``capacity`` (None: never) is paid if ``tail`` alone is on the source's side."""
        self._tails.append(tail)
        self._heads.append(head)
        self._capacities.append(self._infinity if capacity is None else capacity)

    def charge(self, size: int, starts: Sequence[int], ends: Sequence[int]) -> None:
        """Charge ``size`` if a node of ``starts`` (none: always) is on the source's side and one of
        ``ends`` (none: always) is on the sink's."""
        entry = self._one(starts, self.SOURCE)
        exit = self._one(ends, self.SINK)
        if entry == exit:
            return
        self.arc(entry, exit, size)
        for node in starts:
            if node != entry:
                self.arc(node, entry)
        for node in ends:
            if node != exit:
                self.arc(exit, node)

    def _one(self, nodes: Sequence[int], default: int) -> int:
        """A node that stands for the hyperedge end ``nodes``."""
        if len(nodes) == 1:
            return nodes[0]
        return self.node() if nodes else default

    def solve(self, largest: bool = False) -> tuple[int, frozenset[int]]:
        """The value of a minimum cut and its source side: the smallest one, or the largest.

        ToolError MP225 without OR-tools.
        """
        try:
            import numpy as np
            from ortools.graph.python import max_flow
        except ImportError as error:
            raise ToolError("MP225", f"OR-tools cannot be imported: {error}") from error
        if not self._tails:
            return 0, frozenset(range(self._nodes) if largest else ()) - {self.SINK}
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(
            np.array(self._tails, np.int32),
            np.array(self._heads, np.int32),
            np.array(self._capacities, np.int64),
        )
        status = flow.solve(self.SOURCE, self.SINK)
        if status != flow.OPTIMAL:
            raise InternalError("MP227", f"the maximum flow ended with status {status}")
        if largest:
            side = frozenset(range(self._nodes)) - frozenset(flow.get_sink_side_min_cut())
        else:
            side = frozenset(flow.get_source_side_min_cut())
        return int(flow.optimal_flow()), side
