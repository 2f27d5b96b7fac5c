"""Matrix products: one blocked kernel with strides for mm, bmm, linear and 1×1 convolutions."""

from __future__ import annotations

from mplan.codegen.c.render import function
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Number, Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor, each
from mplan.codegen.c.text import literal
from mplan.ir.types import DType

#: Columns that the kernel computes at a time.
_COLUMNS = 4


def product(
    a: Tensor,
    b: Tensor,
    result: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: Number = 1,
    beta: Number = 1,
) -> Code:
    """``result = alpha * a @ b + beta * bias`` for ``[*, M, K]`` and ``[*, K, N]``, all broadcast."""
    batch = result.shape[:-2]
    a, b = a.expand((*batch, *a.shape[-2:])), b.expand((*batch, *b.shape[-2:]))
    bias = bias and bias.expand(result.shape)

    def body(y: Tensor, left: Tensor, right: Tensor, offset: Tensor | None) -> Code:
        return _matrix(left, right, y, offset, alpha, beta)

    return each([result, a, b, bias], 2, body)


def _matrix(a: Tensor, b: Tensor, y: Tensor, bias: Tensor | None, alpha: Number, beta: Number) -> Code:
    (m, k), n = a.shape, b.shape[1]
    if n < _COLUMNS <= m:  # compute the transpose, whose rows are long
        a, b, y = (t.permute((1, 0)) for t in (b, a, y))
        bias, m, n = bias and bias.permute((1, 0)), n, m
    struct = function("gemm_t")
    fields: dict[str, int | str] = {
        **{"m": m, "n": n, "k": k},
        **{"a_row": a.strides[0], "a_column": a.strides[1]},
        **{"b_row": b.strides[0], "b_column": b.strides[1]},
        **{"y_row": y.strides[0], "y_column": y.strides[1]},
        **({"bias_row": bias.strides[0], "bias_column": bias.strides[1]} if bias else {}),
        **{"alpha": literal(alpha, DType.F32), "beta": literal(beta, DType.F32)},
    }
    return invoke_with(_variant(a, b, m, n, struct), struct, fields, a, b, bias, y)


def _variant(a: Tensor, b: Tensor, m: int, n: int, struct: Function) -> Function:
    """The kernel for these sizes, with unit strides as constants."""
    if n < _COLUMNS:
        return function("gemm_small", needs=(struct,))
    strides = {"a_column": a.strides[1], "b_row": b.strides[0], "b_column": b.strides[1]}
    text = {key: "1" if stride == 1 else f"p->{key}" for key, stride in strides.items()}
    pattern = "".join("1" if stride == 1 else "s" for stride in strides.values())
    store = function("gemm_store", needs=(struct,))
    if m == 1:
        return function(f"gemv_{pattern}", "gemv", (store,), **text)
    rows = 2 if m < 4 else 4
    return function(f"gemm_{rows}x4_{pattern}", "gemm", (store,), rows=range(rows), **text)


@kernel("aten.mm.default", "aten.bmm.default")
def matmul(site: Site) -> Code:
    """A product of matrices, or of batches of them."""
    return _checked(site, site.tensor("self"), site.tensor("mat2"))


@kernel("aten.addmm.default", "aten.baddbmm.default")
def addmm(site: Site) -> Code:
    """``beta * self + alpha * product``."""
    names = ("mat1", "mat2") if "addmm" in site.op.kind else ("batch1", "batch2")
    a, b = (site.tensor(name) for name in names)
    beta = site.number("beta")
    bias = site.tensor("self") if beta else None
    return _checked(site, a, b, bias, alpha=site.number("alpha"), beta=beta)


@kernel("aten.linear.default")
def linear(site: Site) -> Code:
    """``input @ weight.T + bias``."""
    x, weight, result = site.tensor("input"), site.tensor("weight"), site.result
    site.require(weight.rank == 2, "with a weight of another rank than 2")
    if x.rank == 1:
        x, result = x.unflatten(0, (1, x.shape[0])), result.unflatten(0, (1, result.shape[0]))
    return product(x, weight.permute((1, 0)), result, site.maybe("bias"))


@kernel("aten.matmul.default")
def general_matmul(site: Site) -> Code:
    """``self @ other`` with broadcast batch dimensions."""
    a, b = site.tensor("self"), site.tensor("other")
    site.require(a.rank >= 2 and b.rank >= 2, "of vectors")
    return _checked(site, a, b)


def _checked(
    site: Site, a: Tensor, b: Tensor, bias: Tensor | None = None, alpha: Number = 1, beta: Number = 1
) -> Code:
    site.require_float(a, b, bias)
    return product(a, b, site.result, bias, alpha=alpha, beta=beta)
