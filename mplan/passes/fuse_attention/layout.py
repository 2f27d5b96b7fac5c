"""Which axis is which: layouts track the axes of tensors through views, permutations and broadcasts.

A *layout* writes every dimension of a tensor as a product of *atoms*, indivisible axes shared by all
tensors of one match: ``[B*H, L, S]`` is ``((b, h), (l,), (s,))``. A dimension of size 1 is ``()``; so
is one that a broadcast has made up. Walking backwards through a view regroups the atoms, and an atom
that a view divides is split for all tensors at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from mplan.ir.types import Dim, Sym, Symbol, concrete

Group: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[Group, ...]

#: Sizes are compared at this many points of the symbols' ranges; two products of size expressions
#: that agree at all of them are taken as equal (Schwartz-Zippel), views being valid to begin with.
_POINTS = 6


class Space:
    """The atoms of one match, with their sizes and the splits found so far."""

    def __init__(self, symbols: Mapping[str, Symbol]) -> None:
        self._points = [_point(symbols, i) for i in range(_POINTS)]
        self._names: dict[tuple[int, ...], Dim] = {}
        for symbol in symbols:
            self._simple(Sym(symbol))
        self._sizes: list[Dim] = []
        self._parts: dict[int, tuple[int, int]] = {}

    def group(self, dim: Dim) -> Group:
        """A new atom of size ``dim``, or no atom if that is 1."""
        if self._is_one(dim):
            return ()
        self._sizes.append(self._simple(dim))
        return (len(self._sizes) - 1,)

    def layout(self, shape: Iterable[Dim]) -> Layout:
        """A layout of new atoms for ``shape``."""
        return tuple(self.group(dim) for dim in shape)

    def resolve(self, group: Group) -> Group:
        """``group`` with every atom that was split replaced by its parts."""
        found: list[int] = []
        for atom in group:
            found += self.resolve(self._parts[atom]) if atom in self._parts else (atom,)
        return tuple(found)

    def resolved(self, layout: Layout) -> Layout:
        """``layout`` with every atom that was split replaced by its parts."""
        return tuple(self.resolve(group) for group in layout)

    def size(self, group: Group) -> Dim:
        """The size of a dimension made of ``group``."""
        return self._simple(product(self._sizes[atom] for atom in self.resolve(group)))

    def shape(self, layout: Layout) -> tuple[Dim, ...]:
        """The sizes of all dimensions."""
        return tuple(self.size(group) for group in layout)

    def same(self, a: Dim, b: Dim) -> bool:
        """Whether two sizes are equal."""
        return self._sample(a) == self._sample(b)

    def rank(self, dim: Dim) -> tuple[int, ...]:
        """A key that orders sizes (strides of one tensor) by magnitude."""
        return self._sample(dim)

    def regroup(self, layout: Layout, shape: tuple[Dim, ...]) -> Layout | None:
        """The layout of the same elements, in row-major order, as a tensor of ``shape``.

        Splits atoms where ``shape`` divides them; None if its boundaries do not fit the atoms.
        """
        atoms = deque(a for group in self.resolved(layout) for a in group)
        groups = [self._take(atoms, dim) for dim in shape]
        if atoms or any(g is None for g in groups):
            return None
        return self.resolved(tuple(g for g in groups if g is not None))

    def _take(self, atoms: deque[int], dim: Dim) -> Group | None:
        group: list[int] = []
        rest = dim
        while not self._is_one(rest):
            if not atoms:
                return None
            atom = atoms.popleft()
            if self._divides(self._sizes[atom], rest):
                group.append(atom)
                rest = self._simple(quotient(rest, self._sizes[atom]))
            elif self._divides(rest, self._sizes[atom]):
                major, minor = self._split(atom, rest)
                group.append(major)
                atoms.appendleft(minor)
                break
            else:
                return None
        return tuple(group)

    def _split(self, atom: int, major: Dim) -> tuple[int, int]:
        start = len(self._sizes)
        minor = self._simple(quotient(self._sizes[atom], major))
        self._sizes += [self._simple(major), minor]
        self._parts[atom] = (start, start + 1)
        return self._parts[atom]

    def _sample(self, dim: Dim) -> tuple[int, ...]:
        return tuple(concrete(dim, point) for point in self._points)

    def _simple(self, dim: Dim) -> Dim:
        """The shortest known expression for ``dim``, an integer if it is one."""
        if isinstance(dim, int):
            return dim
        sample = self._sample(dim)
        if len(set(sample)) == 1:
            return sample[0]
        known = self._names.get(sample)
        if known is None or len(str(dim)) < len(str(known)):
            self._names[sample] = dim
        return self._names[sample]

    def _is_one(self, dim: Dim) -> bool:
        return all(n == 1 for n in self._sample(dim))

    def _divides(self, divisor: Dim, dim: Dim) -> bool:
        pairs = zip(self._sample(divisor), self._sample(dim), strict=True)
        return all(a and b % a == 0 for a, b in pairs)


def _point(symbols: Mapping[str, Symbol], index: int) -> dict[str, int]:
    """Values for all symbols: their lowest, their highest, then some in between that are not round.

    No value is 1 where the range has others: a size that can be larger is no broadcast.
    """
    values = {}
    for position, symbol in enumerate(symbols.values()):
        low = min(max(symbol.low, 2), symbol.high)
        step = 7 + 10 * position + 37 * index * (2 * position + 1)
        between = low + step % (symbol.high - low + 1)
        values[symbol.name] = (low, symbol.high, between)[min(index, 2)]
    return values


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes."""
    number = 1
    factors: list[str] = []
    for dim in dims:
        if isinstance(dim, int):
            number *= dim
        else:
            factors.append(f"({dim})" if any(c in dim.text for c in "+-*/% ") else dim.text)
    if not factors:
        return number
    return Sym(" * ".join(factors + ([str(number)] if number != 1 else [])))


def quotient(dim: Dim, divisor: Dim) -> Dim:
    """``dim / divisor`` for a divisor that is known to divide it."""
    if isinstance(dim, int) and isinstance(divisor, int):
        return dim // divisor
    if divisor == 1:
        return dim
    return 1 if dim == divisor else Sym(f"({dim}) // ({divisor})")
