"""Symbolic sizes: from SymPy expressions of torch's shape environment to ``Sym`` texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.types import Dim, Sym, Symbol

if TYPE_CHECKING:
    import sympy

#: Upper bounds from here on are what torch writes for "no bound known".
UNBOUNDED = 1 << 48


class DataDependent(Exception):
    """A size depends on the values of a tensor."""


@dataclass
class SymbolReader:
    """Translates sizes and collects the symbols that occur in them.

    ``ranges`` are the known ranges by symbol name (inclusive); symbols without one take torch's.
    ``unbounded`` is the upper bound for symbols that have none; with None they are an error.
    """

    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unbounded: int | None = None
    found: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def dim(self, size: Any) -> Dim:
        """``size`` (int, SymInt or SymPy expression) as a dimension; DataDependent if it is."""
        if isinstance(size, int):
            return size
        node = getattr(size, "node", None)
        expr = node.expr if node is not None else size
        if expr.is_Integer:
            return int(expr)
        for symbol in sorted(expr.free_symbols, key=str):
            self._note(symbol, node.shape_env if node is not None else None)
        return Sym(text(expr))

    def _note(self, symbol: sympy.Symbol, env: Any) -> None:
        name = str(symbol)
        if is_data_dependent(symbol):
            raise DataDependent(name)
        if self.found.get(name, (0, None))[1] is not None:
            return
        if name in self.ranges:
            self.found[name] = self.ranges[name]
        elif env is not None and symbol in env.var_to_range:
            self.found[name] = read_range(env.var_to_range[symbol])
        else:
            self.found.setdefault(name, (0, None))

    def symbols(self) -> tuple[Symbol, ...]:
        """All symbols found, by name; UserError MP304 lists those without an upper bound."""
        open_ended = [name for name, (_, high) in self.found.items() if high is None]
        if open_ended and self.unbounded is None:
            names = ", ".join(sorted(open_ended))
            raise UserError(
                "MP304",
                f"the sizes {names} have no upper bound",
                help="give one: torch.export.Dim('n', min=1, max=…) in dynamic_shapes",
            )
        table = sorted(self.found.items())
        return tuple(
            Symbol(name, low, (self.unbounded or 0) if high is None else high)
            for name, (low, high) in table
        )


def is_data_dependent(symbol: sympy.Symbol) -> bool:
    """Whether torch made the symbol for a size or number that it reads from a tensor."""
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    return symbol_is_type(symbol, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT))


def read_range(range_: Any) -> tuple[int, int | None]:
    """The bounds of a torch ``ValueRanges``; None for an upper bound that is not known."""
    high = _finite(range_.upper)
    return max(_finite(range_.lower) or 0, 0), high


def _finite(bound: Any) -> int | None:
    if not getattr(bound, "is_Integer", False) or abs(int(bound)) >= UNBOUNDED:
        return None
    return int(bound)


def text(expr: sympy.Expr) -> str:
    """``expr`` in the grammar of ``Sym``; UnsupportedError MP305 for anything beyond integers."""
    return _print(expr, 0)


def _print(expr: sympy.Expr, level: int) -> str:
    """Levels: 0 sum, 1 term, 2 factor. An expression of a lower level needs parentheses."""
    if expr.is_Integer:
        return str(expr) if expr >= 0 or level == 0 else f"({expr})"
    if expr.is_Symbol:
        return str(expr)
    name = type(expr).__name__
    if name == "Add":
        return _wrap(_sum(expr), 0, level)
    if name == "Mul" and all(not a.is_Rational or a.is_Integer for a in expr.args):
        return _wrap(" * ".join(_print(a, 2) for a in _sorted(expr.args)), 1, level)
    if name == "Pow" and expr.args[1].is_Integer and 0 < int(expr.args[1]) <= 64:
        return _wrap(" * ".join([_print(expr.args[0], 2)] * int(expr.args[1])), 1, level)
    if name in ("FloorDiv", "CleanDiv"):
        return _wrap(" // ".join(_print(a, 2) for a in expr.args), 1, level)
    if name in ("Mod", "PythonMod"):
        return _wrap(" % ".join(_print(a, 2) for a in expr.args), 1, level)
    if name == "ModularIndexing":
        base, divisor, modulus = (_print(a, 2) for a in expr.args)
        return _wrap(f"({base} // {divisor}) % {modulus}", 1, level)
    if name in ("Max", "Min"):
        return f"{name.lower()}({', '.join(_print(a, 0) for a in _sorted(expr.args))})"
    if name == "Identity":
        return _print(expr.args[0], level)
    raise UnsupportedError("MP305", f"the size {expr} is not an integer expression that mplan knows")


def _sum(expr: sympy.Expr) -> str:
    parts: list[str] = []
    for term in _sorted(expr.args):
        negative = term.could_extract_minus_sign()
        size = -term if negative else term
        if parts:
            parts.append((" - " if negative else " + ") + _print(size, 1))
        else:  # a leading minus binds more tightly than an operator after it
            parts.append("-" + _print(size, 2) if negative else _print(size, 1))
    return "".join(parts)


def _sorted(args: tuple[sympy.Expr, ...]) -> list[sympy.Expr]:
    """What is subtracted last, numbers behind names: the same text in every process."""
    return sorted(args, key=lambda a: (a.could_extract_minus_sign(), a.is_Integer, str(a)))


def _wrap(body: str, own: int, wanted: int) -> str:
    return f"({body})" if own < wanted else body
