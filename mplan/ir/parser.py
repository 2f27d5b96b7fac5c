"""The reader of the text form that ``printer`` writes (``.mpir``); ``//`` starts a comment.

Grammar, by recursive descent (``NAME`` may be quoted)::

    graph   = "graph" "@" NAME "(" [input {"," input}] ")" ["symbols" "(" symbol {"," symbol} ")"]
              "{" {op} "return" [arg {"," arg}] "}"
    symbol  = NAME "in" "[" INT "," INT "]"
    input   = ["param" | "buffer" | "const" | "symbol"] value [STRING] ["donated"]
    value   = "%" NAME ":" type [("view" | "inplace") "(" "%" NAME ["+" dim] ")"]
    type    = DTYPE "[" [dim {"," dim}] "]" ["<" [dim {"," dim}] ">"] | "int" | "float" | "bool"
    dim     = INT | "{" EXPRESSION "}"
    op      = [result {"," result} "="] KIND "(" [NAME "=" arg {"," NAME "=" arg}] ")"
              ["scratch" "(" INT ["align" INT] ["in" INT "to" INT] {","…} ")"]
              ["births" "(" INT {"," INT} ")"] ["loop" loop]
              ["loc" "(" [STRING ":" INT] ["in" STRING] ")"]
    result  = "_" | value
    arg     = "%" NAME | INT | FLOAT | "nan" | STRING | "true" | "false" | "none"
            | "dtype" "(" DTYPE ")" | "{" EXPRESSION "}" | "[" [arg {"," arg}] "]"
    loop    = "{" {"axis" NAME "=" INT "by" INT} {"in" "%" NAME ["[" slice {";" slice} "]"]}
              {"out" ("carry" "%" NAME | "concat" "[" [INT "by" NAME {";" INT "by" NAME}] "]")}
              ["stream" ("row" | "pixel") ["by" INT] ["up"] {"ring" "%" NAME INT ["and" INT]}]
              "body" graph "}"
    slice   = INT "by" NAME ["scale" INT] ["offset" INT] ["extent" INT]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar, cast, get_args

from mplan.diagnostics import UserError
from mplan.ir.graph import (
    Alias,
    Arg,
    Axis,
    Carry,
    Concat,
    Graph,
    Input,
    Loc,
    Loop,
    Op,
    Ref,
    Ring,
    Role,
    Scratch,
    Slice,
    Stream,
    Value,
    Window,
)
from mplan.ir.scanner import Scanner
from mplan.ir.types import Dim, DType, ScalarType, Sym, Symbol, TensorType, Type

T = TypeVar("T")

_ROLES = tuple(role for role in get_args(Role) if role != "input")
_SCALARS = ("int", "float", "bool")
_DTYPES = {dtype.value: dtype for dtype in DType}
_TYPE_HELP = f"element types: {', '.join(_DTYPES)}; numbers: {', '.join(_SCALARS)}"
_OP_HELP = "an op is written %y: f32[4] = aten.relu.default(self=%x)"
_ARG_HELP = 'arguments are %value, 1, 1.0, true, none, "text", dtype(f32), {s0 * 2} or [a, b]'
_WORDS: dict[str, Arg] = {"true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan}


def parse(text: str, file: str = "<text>") -> Graph:
    """The graph that ``text`` describes; ``parse(str(graph)) == graph``.

    UserError MP101 (or MP106 for text beyond the reader's limits) with line and column in ``file``
    for any other text. Only the syntax is checked; ``verify`` checks the graph.
    """
    reader = _Parser(Scanner(text, file))
    graph = reader.graph()
    reader.scan.finish()
    return graph


class _Parser:
    def __init__(self, scan: Scanner) -> None:
        self.scan = scan

    def graph(self) -> Graph:
        scan = self.scan
        with scan.nested():
            scan.expect_word(
                "graph", "a file holds one graph: graph @name(inputs) { ops return values }"
            )
            scan.expect("@")
            name = scan.name("the graph's name")
            inputs = self.bracketed("(", ")", self.input)
            symbols: tuple[Symbol, ...] = ()
            if scan.accept_word("symbols"):
                symbols = self.bracketed("(", ")", self.symbol)
            scan.expect("{")
            ops = []
            while not scan.accept_word("return"):
                ops.append(self.op())
            outputs = () if scan.at("}") else self.separated(self.arg)
            scan.expect("}")
        return Graph(name, inputs, tuple(ops), outputs, symbols)

    def bracketed(
        self, opening: str, closing: str, item: Callable[[], T], separator: str = ","
    ) -> tuple[T, ...]:
        self.scan.expect(opening)
        items = () if self.scan.at(closing) else self.separated(item, separator)
        if not self.scan.accept(closing):
            raise self.scan.fail(f"{separator!r} or {closing!r}")
        return items

    def separated(self, item: Callable[[], T], separator: str = ",") -> tuple[T, ...]:
        items = [item()]
        while self.scan.accept(separator):
            items.append(item())
        return tuple(items)

    def symbol(self) -> Symbol:
        name = self.scan.name("a symbol's name", "symbols(s0 in [1, 64])")
        self.scan.expect_word("in")
        self.scan.expect("[")
        low = self.scan.integer("the lower bound")
        self.scan.expect(",")
        high = self.scan.integer("the upper bound")
        self.scan.expect("]")
        return Symbol(name, low, high)

    def input(self) -> Input:
        scan = self.scan
        role: Role = "input"
        if not scan.at("%"):
            if not scan.at_word(*_ROLES):
                raise scan.fail("an input", f"%name: type, or a role before it: {', '.join(_ROLES)}")
            role = cast(Role, scan.word("a role"))
        value = self.value()
        source = scan.string("a source") if scan.at('"') else ""
        return Input(value, role, source, scan.accept_word("donated"))

    def ref(self) -> str:
        if not self.scan.accept("%"):
            raise self.scan.fail("a value (%name)")
        return self.scan.name("the value's name")

    def value(self) -> Value:
        name = self.ref()
        self.scan.expect(":", "a value is written %name: type")
        type_ = self.type()
        alias = self.alias() if self.scan.at_word("view", "inplace") else None
        return Value(name, type_, alias)

    def alias(self) -> Alias:
        kind = cast(Literal["view", "inplace"], self.scan.word("an alias"))
        self.scan.expect("(")
        of = self.ref()
        offset = self.dim() if self.scan.accept("+") else 0
        self.scan.expect(")")
        return Alias(of, kind, offset)

    def type(self) -> Type:
        scan, start = self.scan, self.scan.position
        name = scan.word("a type", _TYPE_HELP)
        if not scan.at("["):
            if name not in _SCALARS:
                expected = "the shape, as in f32[1, 8]" if name in _DTYPES else "a type"
                raise scan.fail(expected, _TYPE_HELP, None if name in _DTYPES else start)
            return ScalarType(name)
        if name not in _DTYPES:
            raise scan.fail("an element type", _TYPE_HELP, start)
        shape = self.bracketed("[", "]", self.dim)
        strides = self.bracketed("<", ">", self.dim) if scan.at("<") else None
        if strides is not None and len(strides) != len(shape):
            raise scan.fail(f"{len(shape)} strides before this, there are {len(strides)}")
        return TensorType(_DTYPES[name], shape, strides)

    def dim(self) -> Dim:
        if self.scan.at("{"):
            return self.expression()
        return self.scan.integer("a size", "an integer or an expression such as {s0 * 2}")

    def expression(self) -> Sym:
        text, start = self.scan.expression()
        expression = Sym(text)
        try:
            _ = expression.symbols
        except UserError as e:
            raise UserError("MP101", e.message, self.scan.where(start), "use + - * // %") from None
        return expression

    def op(self) -> Op:
        scan = self.scan
        results: tuple[Value | None, ...] = ()
        if scan.at("%") or scan.at_word("_"):
            results = self.separated(self.result)
            scan.expect("=", _OP_HELP)
        kind = scan.name("an op or 'return'", _OP_HELP)
        args = self.bracketed("(", ")", self.named_arg)
        scratch = self.bracketed("(", ")", self.scratch) if scan.accept_word("scratch") else ()
        births = self.bracketed("(", ")", self.birth) if scan.accept_word("births") else ()
        loop = self.loop() if scan.accept_word("loop") else None
        loc = self.loc() if scan.accept_word("loc") else None
        return Op(kind, args, results, loc, scratch, births, loop)

    def scratch(self) -> Scratch:
        size = self.scan.integer("the bytes of scratch memory")
        alignment = self.scan.integer("an alignment") if self.scan.accept_word("align") else 1
        if not self.scan.accept_word("in"):
            return Scratch(size, alignment=alignment)
        start = self.scan.integer("the first phase")
        self.scan.expect_word("to")
        end = self.scan.integer("the phase after the last one")
        return Scratch(size, start, end, alignment)

    def birth(self) -> int:
        return self.scan.integer("the phase in which a result is claimed")

    def result(self) -> Value | None:
        return None if self.scan.accept_word("_") else self.value()

    def named_arg(self) -> tuple[str, Arg]:
        name = self.scan.name("an argument's name", "arguments are named: self=%x")
        self.scan.expect("=", "arguments are named: self=%x")
        return name, self.arg()

    def arg(self) -> Arg:
        scan = self.scan
        if scan.at("%"):
            return Ref(self.ref())
        if scan.at("["):
            with scan.nested():
                return self.bracketed("[", "]", self.arg)
        if scan.at("{"):
            return self.expression()
        if scan.at('"'):
            return scan.string("text")
        if scan.at("-0123456789"):
            return scan.number()
        if scan.accept_word("dtype"):
            scan.expect("(")
            dtype = self.dtype()
            scan.expect(")")
            return dtype
        if not scan.at_word(*_WORDS):
            raise scan.fail("an argument", _ARG_HELP)
        return _WORDS[scan.word("an argument")]

    def dtype(self) -> DType:
        start = self.scan.position
        name = self.scan.word("an element type", _TYPE_HELP)
        if name not in _DTYPES:
            raise self.scan.fail("an element type", _TYPE_HELP, start)
        return _DTYPES[name]

    def loc(self) -> Loc:
        scan = self.scan
        file, line, module = "", 0, ""
        scan.expect("(")
        if scan.at('"'):
            file = scan.string("the file")
            scan.expect(":")
            line = scan.integer("the line")
        if scan.accept_word("in"):
            module = scan.string("the module")
        scan.expect(")", 'a place is written loc("model.py":7 in "encoder.layer1")')
        return Loc(file, line, module)

    def loop(self) -> Loop:
        scan = self.scan
        axes, windows, results = [], [], []
        scan.expect("{")
        while scan.accept_word("axis"):
            axes.append(self.axis())
        while scan.accept_word("in"):
            window = self.ref()
            slices = self.bracketed("[", "]", self.slice, ";") if scan.at("[") else ()
            windows.append(Window(window, slices))
        while scan.accept_word("out"):
            results.append(self.loop_result())
        stream = self.stream() if scan.accept_word("stream") else None
        scan.expect_word("body", "a loop lists its axes, then in, then out, then the body")
        body = self.graph()
        scan.expect("}")
        return Loop(tuple(axes), tuple(windows), tuple(results), body, stream)

    def stream(self) -> Stream:
        scan = self.scan
        if not scan.at_word("row", "pixel"):
            raise scan.fail("row or pixel", "a stream is written: stream row up, then its rings")
        unit = cast(Literal["row", "pixel"], scan.word("a unit"))
        together = scan.integer("the pixels of a step") if scan.accept_word("by") else 1
        up = scan.accept_word("up")
        rings = []
        while scan.accept_word("ring"):
            value = self.ref()
            rows = scan.integer("the rows that stay")
            pixels = scan.integer("the pixels that stay") if scan.accept_word("and") else 0
            rings.append(Ring(value, rows, pixels))
        return Stream(unit, tuple(rings), up, together)

    def axis(self) -> Axis:
        name = self.scan.name("the axis' name")
        self.scan.expect("=", "an axis is written: axis h = 56 by 8")
        extent = self.scan.integer("the axis' extent")
        self.scan.expect_word("by")
        return Axis(name, extent, self.scan.integer("the axis' step"))

    def pair(self) -> tuple[int, str]:
        dim = self.scan.integer("a dimension", "a slice is written: 2 by h")
        self.scan.expect_word("by")
        return dim, self.scan.name("an axis")

    def slice(self) -> Slice:
        dim, axis = self.pair()
        scale = self.scan.integer("the scale") if self.scan.accept_word("scale") else 1
        offset = self.scan.integer("the offset") if self.scan.accept_word("offset") else 0
        extent = self.scan.integer("the extent") if self.scan.accept_word("extent") else 1
        return Slice(dim, axis, scale, offset, extent)

    def loop_result(self) -> Concat | Carry:
        if self.scan.accept_word("carry"):
            return Carry(self.ref())
        self.scan.expect_word("concat", "a result is written: out concat [1 by h], or out carry %init")
        pairs = self.bracketed("[", "]", self.pair, ";")
        return Concat(tuple(dim for dim, _ in pairs), tuple(axis for _, axis in pairs))
