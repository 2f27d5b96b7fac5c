"""Normalisation of int8 rows: the bytes of ``mplan.ir.quantized_norm``."""

from __future__ import annotations

from mplan.codegen.c.render import function
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, each
from mplan.ir import quantized_norm


@kernel("mplan.qlayer_norm")
def layer_norm(site: Site) -> Code:
    """A layer norm over the last dimension, row by row."""
    x, y = site.tensor("input"), site.result
    constants = [site.maybe(name) for name in ("bias", "multiplier", "shift")]
    struct = function("q8_norm_t")
    made = function(
        "qlayer_norm",
        needs=(
            struct,
            function("reciprocal_root"),
            function("rescale", needs=(function("rounding_shift"),)),
            function("store_q8"),
        ),
        normal_bits=quantized_norm.NORMAL_BITS,
        radicand_bits=quantized_norm.RADICAND_BITS,
        sum_bits=quantized_norm.SUM_BITS,
    )
    zero = site.integer("output_zero_point")

    def body(target: Tensor, source: Tensor) -> Code:
        fields = {
            "n": source.shape[0],
            "x_step": source.strides[0],
            "y_step": target.strides[0],
            "factor_step": int(site.tensor("multiplier").numel > 1),
            "epsilon": site.integer("epsilon"),
            "y_zero": zero,
            "low": site.integer("clamp_min") - zero,
            "high": site.integer("clamp_max") - zero,
        }
        return invoke_with(made, struct, fields, source, *constants, target)

    return each([y, x], 1, body)
