"""The expressions of elementwise ops, in C, over their operands ``a``, ``b``, ``c``.

Comparisons are written so that a NaN operand yields what PyTorch yields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from mplan.codegen.c.pointwise import Operand, Source, copy, fill, pointwise, promote, source
from mplan.codegen.c.render import function
from mplan.codegen.c.table import TABLE, Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor
from mplan.ir.types import DType


@dataclass(frozen=True, slots=True)
class Expression:
    """How a family of kinds computes: for floats, and for integers where they differ.

    ``integers`` None means that there is no integer form. ``predicate`` expressions yield a truth
    value and are computed in the type of the operands, all others in the type of the result.
    ``operands`` name the arguments that become ``a``, ``b``, …; ``scalars`` map a further variable to
    an argument that is a number.
    """

    name: str
    floats: str
    integers: str | None = None
    operands: tuple[str, ...] = ("self",)
    scalars: Mapping[str, str] | None = None
    predicate: bool = False


def _same(name: str, text: str, *operands: str, predicate: bool = False) -> Expression:
    return Expression(name, text, text, operands or ("self",), predicate=predicate)


_PAIR = ("self", "other")

UNARY = {
    "abs": Expression("abs", "fabsf(a)", "a < 0 ? -a : a"),
    "acos": Expression("acos", "acosf(a)"),
    "acosh": Expression("acosh", "acoshf(a)"),
    "asin": Expression("asin", "asinf(a)"),
    "asinh": Expression("asinh", "asinhf(a)"),
    "atan": Expression("atan", "atanf(a)"),
    "atanh": Expression("atanh", "atanhf(a)"),
    "ceil": Expression("ceil", "ceilf(a)", "a"),
    "cos": Expression("cos", "cosf(a)"),
    "cosh": Expression("cosh", "coshf(a)"),
    "erf": Expression("erf", "erff(a)"),
    "erfc": Expression("erfc", "erfcf(a)"),
    "exp": Expression("exp", "expf(a)"),
    "exp2": Expression("exp2", "exp2f(a)"),
    "expm1": Expression("expm1", "expm1f(a)"),
    "floor": Expression("floor", "floorf(a)", "a"),
    "hardsigmoid": Expression("hardsigmoid", "clip(a + 3.0f, 0.0f, 6.0f) / 6.0f"),
    "hardswish": Expression("hardswish", "a * clip(a + 3.0f, 0.0f, 6.0f) / 6.0f"),
    "log": Expression("log", "logf(a)"),
    "log10": Expression("log10", "log10f(a)"),
    "log1p": Expression("log1p", "log1pf(a)"),
    "log2": Expression("log2", "log2f(a)"),
    "mish": Expression("mish", "a * tanhf(log1pf(expf(a > 60.0f ? 60.0f : a)))"),
    "neg": _same("neg", "-a"),
    "reciprocal": Expression("reciprocal", "1.0f / a"),
    "relu": Expression("relu", "a < 0.0f ? 0.0f : a", "a < 0 ? 0 : a"),
    "relu6": Expression("relu6", "clip(a, 0.0f, 6.0f)"),
    "round": Expression("round", "rintf(a)", "a"),
    "rsqrt": Expression("rsqrt", "1.0f / sqrtf(a)"),
    "sigmoid": Expression("sigmoid", "1.0f / (1.0f + expf(-a))"),
    "sign": Expression("sign", "(float)((a > 0.0f) - (a < 0.0f))", "(a > 0) - (a < 0)"),
    "silu": Expression("silu", "a / (1.0f + expf(-a))"),
    "sin": Expression("sin", "sinf(a)"),
    "sinh": Expression("sinh", "sinhf(a)"),
    "sqrt": Expression("sqrt", "sqrtf(a)"),
    "square": _same("square", "a * a"),
    "tan": Expression("tan", "tanf(a)"),
    "tanh": Expression("tanh", "tanhf(a)"),
    "trunc": Expression("trunc", "truncf(a)", "a"),
    "logical_not": _same("logical_not", "a == 0", predicate=True),
    "isnan": Expression("isnan", "a != a", "(a - a) != 0", predicate=True),
    "isinf": Expression("isinf", "fabsf(a) == INFINITY", "(a - a) != 0", predicate=True),
    "elu": Expression(
        "elu",
        "a > 0.0f ? scale * a : alpha * scale * expm1f(a * input_scale)",
        scalars={"alpha": "alpha", "scale": "scale", "input_scale": "input_scale"},
    ),
    "celu": Expression("celu", "a > 0.0f ? a : alpha * expm1f(a / alpha)", scalars={"alpha": "alpha"}),
    "leaky_relu": Expression(
        "leaky_relu", "a > 0.0f ? a : a * slope", scalars={"slope": "negative_slope"}
    ),
    "hardtanh": Expression("clip", "clip(a, low, high)", scalars={"low": "min_val", "high": "max_val"}),
    "softplus": Expression(
        "softplus",
        "a * beta > threshold ? a : log1pf(expf(a * beta)) / beta",
        scalars={"beta": "beta", "threshold": "threshold"},
    ),
}

BINARY = {
    "atan2": Expression("atan2", "atan2f(a, b)", None, _PAIR),
    "maximum": Expression("maximum", "larger(a, b)", "a > b ? a : b", _PAIR),
    "minimum": Expression("minimum", "smaller(a, b)", "a < b ? a : b", _PAIR),
    "mul.Tensor": _same("mul", "a * b", *_PAIR),
    "mul.Scalar": _same("mul", "a * b", *_PAIR),
    "div.Tensor": Expression("div", "a / b", None, _PAIR),
    "div.Scalar": Expression("div", "a / b", None, _PAIR),
    "fmod.Tensor": Expression("fmod", "fmodf(a, b)", "a % b", _PAIR),
    "fmod.Scalar": Expression("fmod", "fmodf(a, b)", "a % b", _PAIR),
    "remainder.Tensor": Expression("remainder", "modulo(a, b)", "(a % b + b) % b", _PAIR),
    "remainder.Scalar": Expression("remainder", "modulo(a, b)", "(a % b + b) % b", _PAIR),
    "pow.Tensor_Tensor": Expression("pow", "powf(a, b)", None, ("self", "exponent")),
    "pow.Scalar": Expression("pow", "powf(a, b)", None, ("self", "exponent")),
    "_prelu_kernel": Expression("leaky_relu", "a > 0.0f ? a : a * b", None, ("self", "weight")),
    "logical_and": _same("logical_and", "a != 0 && b != 0", *_PAIR, predicate=True),
    "logical_or": _same("logical_or", "a != 0 || b != 0", *_PAIR, predicate=True),
    "logical_xor": _same("logical_xor", "(a != 0) != (b != 0)", *_PAIR, predicate=True),
    **{
        f"{name}.{overload}": _same(name, f"a {sign} b", *_PAIR, predicate=True)
        for name, sign in (
            ("eq", "=="),
            ("ne", "!="),
            ("lt", "<"),
            ("le", "<="),
            ("gt", ">"),
            ("ge", ">="),
        )
        for overload in ("Tensor", "Scalar")
    },
    **{
        f"bitwise_{name}.{overload}": Expression(f"bitwise_{name}", "", f"a {sign} b", _PAIR)
        for name, sign in (("and", "&"), ("or", "|"), ("xor", "^"))
        for overload in ("Tensor", "Scalar")
    },
}

TERNARY = {
    "clamp.Tensor": Expression(
        "clamp",
        "smaller(larger(a, b), c)",
        "(a > b ? a : b) < c ? (a > b ? a : b) : c",
        ("self", "min", "max"),
    ),
    "addcmul": Expression(
        "addcmul", "a + value * b * c", None, ("self", "tensor1", "tensor2"), {"value": "value"}
    ),
    "addcdiv": Expression(
        "addcdiv", "a + value * b / c", None, ("self", "tensor1", "tensor2"), {"value": "value"}
    ),
    "lerp.Tensor": Expression("lerp", "a + c * (b - a)", None, ("self", "end", "weight")),
    "lerp.Scalar": Expression("lerp", "a + c * (b - a)", None, ("self", "end", "weight")),
}


def _helpers(text: str) -> tuple[Function, ...]:
    names = ("clip", "larger", "smaller", "modulo")
    return tuple(function(name) for name in names if f"{name}(" in text)


def evaluate(site: Site, expression: Expression) -> Code:
    """The code of an op whose arguments are those of ``expression``."""
    parts: list[Source] = [source(site, name) for name in expression.operands]
    return compute(site, expression, parts)


def compute(site: Site, expression: Expression, parts: list[Source]) -> Code:
    """The result of ``site`` as ``expression`` of ``parts``."""
    result = site.result
    dtype = promote(parts) if expression.predicate or result.dtype is DType.BOOL else result.dtype
    if not dtype.is_float and dtype is not DType.I64:
        dtype = DType.I32  # C computes with narrow integers as int
    text = expression.floats if dtype.is_float else expression.integers
    if not text:
        site.require(False, f"on {dtype.torch_name}")
        return Code()
    operands = {letter: Operand(part, dtype) for letter, part in zip("abc", parts, strict=False)}
    for letter, name in (expression.scalars or {}).items():
        operands[letter] = Operand(site.number(name), dtype)
    yields = DType.BOOL if expression.predicate else dtype
    return pointwise(expression.name, text, result, operands, yields, _helpers(text))


for _name, _row in {**UNARY, **BINARY, **TERNARY}.items():
    TABLE[f"aten.{_name}" if "." in _name else f"aten.{_name}.default"] = partial(
        evaluate, expression=_row
    )


@kernel("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar")
def add(site: Site) -> Code:
    """``self ± alpha * other``."""
    sign, name = ("-", "sub") if ".sub." in site.op.kind else ("+", "add")
    if site.number("alpha") == 1:
        return evaluate(site, _same(name, f"a {sign} b", *_PAIR))
    text = f"a {sign} alpha * b"
    return evaluate(site, Expression(f"{name}_scaled", text, text, _PAIR, {"alpha": "alpha"}))


@kernel("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(site: Site) -> Code:
    """``other - alpha * self``."""
    text = "b - alpha * a"
    return evaluate(site, Expression("rsub", text, text, _PAIR, {"alpha": "alpha"}))


@kernel("aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.floor_divide.default")
def divide(site: Site) -> Code:
    """A quotient rounded towards zero or down, or not rounded."""
    mode = "floor" if "floor_divide" in site.op.kind else site.arg("rounding_mode")
    if mode is None:
        return evaluate(site, BINARY["div.Tensor"])
    if mode == "trunc":
        return evaluate(site, Expression("div_trunc", "truncf(a / b)", "a / b", _PAIR))
    down = "a / b - (a % b != 0 && (a < 0) != (b < 0))"
    return evaluate(site, Expression("div_floor", "floorf(a / b)", down, _PAIR))


@kernel("aten.bitwise_not.default")
def bitwise_not(site: Site) -> Code:
    """The complement of integers, the negation of truth values."""
    if site.result.dtype is DType.BOOL:
        return evaluate(site, UNARY["logical_not"])
    return evaluate(site, Expression("bitwise_not", "", "~a"))


@kernel("aten.gelu.default")
def gelu(site: Site) -> Code:
    """Exact, or with the tanh approximation."""
    if site.arg("approximate") == "tanh":
        inner = "0.79788456f * (a + 0.044715f * a * a * a)"
        return evaluate(site, Expression("gelu_tanh", f"0.5f * a * (1.0f + tanhf({inner}))"))
    return evaluate(site, Expression("gelu", "0.5f * a * (1.0f + erff(a * 0.70710678f))"))


@kernel("aten.pow.Tensor_Scalar")
def power(site: Site) -> Code:
    """Small integer and half exponents without ``powf``."""
    exponent = float(site.number("exponent"))
    simple = {
        0.5: UNARY["sqrt"],
        1.0: _same("copy", "a"),
        2.0: UNARY["square"],
        3.0: _same("cube", "a * a * a"),
        -0.5: UNARY["rsqrt"],
        -1.0: UNARY["reciprocal"],
    }
    return evaluate(site, simple.get(exponent, BINARY["pow.Scalar"]))


@kernel("aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default")
def clamp(site: Site) -> Code:
    """Both bounds, or one."""
    low, high = site.optional_number("min"), site.optional_number("max")
    if low is not None and high is not None:
        if low > high:
            return fill(site.result, high)
        text = "a < low ? low : (a > high ? high : a)"
        return evaluate(site, Expression("clamp", text, text, scalars={"low": "min", "high": "max"}))
    if low is not None:
        text = "a < low ? low : a"
        return evaluate(site, Expression("clamp_min", text, text, scalars={"low": "min"}))
    text = "a > high ? high : a"
    return evaluate(site, Expression("clamp_max", text, text, scalars={"high": "max"}))


@kernel("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(site: Site) -> Code:
    """``self`` where the condition holds, else ``other``."""
    return _select(site, site.tensor("condition"), source(site, "self"), source(site, "other"))


@kernel("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(site: Site) -> Code:
    """``value`` where the mask holds, else ``self``."""
    return _select(site, site.tensor("mask"), source(site, "value"), source(site, "self"))


def _select(site: Site, condition: Tensor, yes: Source, no: Source) -> Code:
    dtype = site.result.dtype
    operands = {
        "a": Operand(condition, condition.dtype),
        "b": Operand(yes, dtype),
        "c": Operand(no, dtype),
    }
    return pointwise("where", "a ? b : c", site.result, operands, dtype)


@kernel(
    "aten._to_copy.default",
    "aten.clone.default",
    "mplan.copy",
)
def clone(site: Site) -> Code:
    """A copy, converted to the type of the result."""
    return copy(site.result, site.tensor("self"))


@kernel("aten.copy.default")
def copy_from(site: Site) -> Code:
    """``src`` in the shape and type of ``self``."""
    return copy(site.result, site.tensor("src"))
