"""Row kernels of the quantised ops that move a window over an image: convolutions and pools.

A kernel gets the pixels under the window as an array of pointers, in which those beside the image
lead to constant padding (as the indirection buffer of Dukhan 2019, "The Indirect Convolution
Algorithm"), so that rings, padding, strides and dilation are no cases of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod

from mplan.codegen.c.conv import Geometry
from mplan.codegen.c.render import function
from mplan.codegen.c.rows import LARGEST, Row, image_type, row_kernel
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site
from mplan.codegen.c.tensors import Code, Function, Tensor, argument
from mplan.ir.columns import GATHERED, ROUND, filled
from mplan.ir.quantized_transposed import phases

#: Output channels that a kernel computes at a time: they share loads, addresses and loops.
_LANES = 4


def rescale() -> Function:
    """The C function that multiplies by a factor in ``double`` rounding."""
    return function("rescale", needs=(function("rounding_shift"),))


def store() -> Function:
    """The C function that clamps a result."""
    return function("store_q8")


@row_kernel(
    "mplan.qconv2d",
    "mplan.qdepthwise_conv2d",
    "mplan.qconv_transpose2d",
    "mplan.qdepthwise_conv_transpose2d",
)
def convolution(row: Row) -> Code:
    """Pixels of a row of a convolution, transposed or not."""
    site = row.site
    w, channels = site.tensor("weight"), site.tensor("input").shape[3]
    depthwise, transposed = (word in site.op.kind for word in ("depthwise", "transpose"))
    stride, padding, dilation = (site.integers(n) for n in ("stride", "padding", "dilation"))
    padded = transposed or any(padding)
    zero = site.integer("input_zero_point")
    value = site.optional_number("padding_value")
    pixel = _padding(zero if value is None else int(value), channels)
    outside = (pixel,) if padded else ()
    fields = {
        **_window(site, w.shape[1:3], stride, padding, dilation),
        "outside": outside[0].name if outside else 0,
    }
    depth = 1 if depthwise else w.shape[3]
    taps = w.shape[1] * w.shape[2]
    if transposed:
        form = _transposed(site, depth)
    else:
        form = _depthwise(site, taps) if depthwise else _deep(site, taps, depth, padded)
    return Code((), outside) + _layer(row, form, depth, fields)


def dense(row: Row) -> Code:
    """Pixels of a row, each of which a fully connected layer makes of the same pixel of the input."""
    depth = row.site.tensor("weight").shape[1]
    window = _window(row.site, (1, 1), (1, 1), (0,) * 4, (1, 1))
    return _layer(row, _deep(row.site, 1, depth, False), depth, window)


def _layer(row: Row, form: _Form, depth: int, fields: dict[str, int | str]) -> Code:
    """A layer whose outputs sum over ``depth`` channels each."""
    site = row.site
    w, channels = site.tensor("weight"), site.tensor("input").shape[-1]
    site.require(w.is_contiguous, "with strided weights")
    out_channels = site.result.shape[-1]
    share = out_channels * depth // channels
    given = {
        **fields,
        "weight": argument(w),
        **_factors(site),
        "out_c": out_channels,
        "depth": depth,
        "share": share,
        "x_zero": site.integer("input_zero_point"),
        **result_range(site, site.integer("output_zero_point")),
        "rounding": 1 + (2 * site.integer("output_zero_point") if is_full(site) else 0),
    }
    blocked = share == 1 and out_channels >= _LANES if form.depthwise else share >= _LANES
    kernel = _blocked(site, form) if blocked else _single(site, form)
    columns = row.columns()
    if columns is None:
        return _invoke(row, kernel, given)
    return _invoke(row, _by_columns(site, form, kernel), given, columns)


@dataclass(frozen=True, slots=True)
class _Form:
    """A kernel before it is known how many channels it computes at a time and how it rounds.

    ``options`` are its template's; ``products`` sums four channels of plain products; ``needs`` find
    its pixels. A ``depthwise`` one makes channels of single ones.
    """

    name: str
    template: str
    options: Mapping[str, object]
    products: Function
    needs: tuple[Function, ...]
    depthwise: bool = False


def _depthwise(site: Site, taps: int) -> _Form:
    paired = site.arg("weight_order") == "pairs"
    even = bool(site.arg("bounded")) and site.result.shape[3] % _LANES == 0
    template = "taps_4_pairs" if paired else "taps_4"
    products = function(f"{template}_{taps}", template, (instructions(),), taps=taps)
    name = f"qdepthwise_conv2d_{taps}{'_pairs' if paired else '_even' if even else ''}"
    options = {"taps": taps, "even": even, "paired": paired}
    return _Form(name, "qdepthwise_conv2d", options, products, (_taps(),), depthwise=True)


def _transposed(site: Site, depth: int) -> _Form:
    """Results by phase: those of one are a convolution with stride 1 (``quantized_transposed``)."""
    kind, bias = site.op.kind.removeprefix("mplan."), site.maybe("bias")
    depthwise, phased = "depthwise" in kind, bias is not None and bias.rank > 1
    kernel = site.tensor("weight").shape[1:3]
    (down, across), dilation = site.integers("stride"), site.integers("dilation")
    rows, columns = phases(kernel[0], down, dilation[0]), phases(kernel[1], across, dilation[1])
    reach = max(phase.before for phase in (*rows, *columns))
    site.require(reach <= LARGEST, f"that reaches more than {LARGEST:,} pixels")
    shared = gcd(down, dilation[0]), gcd(across, dilation[1])
    options = {
        "kernel": kernel,
        "stride": (down, across),
        "rows": rows,
        "columns": columns,
        "most": max(len(r.taps) for r in rows) * max(len(c.taps) for c in columns),
        "step": (down // shared[0], across // shared[1]),
        "dilation": (dilation[0] // shared[0], dilation[1] // shared[1]),
        "phased": phased,
        "depthwise": depthwise,
    }
    tag = Geometry(kernel[0], kernel[1], down, across, 0, 0, dilation[0], dilation[1]).tag
    name = f"{kind}_{tag}{'_phased' if phased else ''}"
    needs = (_taps(), function("phase_t"))
    if depthwise:
        one = function("taps_4_1", "taps_4", (instructions(),), taps=1)
        return _Form(name, kind, options, one, needs, depthwise)
    even = bool(site.arg("bounded")) and depth % 8 == 0
    return _Form(f"{name}_even" if even else name, kind, options, products(even), needs)


def _deep(site: Site, taps: int, depth: int, padded: bool) -> _Form:
    """Pixels inside the image need no taps; windows over few channels are gathered into one run."""
    direct = taps == 1 and not padded
    whole = site.tensor("input").shape[-1] == depth
    gathered = taps * depth if taps > 1 and whole and taps * depth <= GATHERED else 0
    run = gathered or depth
    even = bool(site.arg("bounded")) and whole and run % 8 == 0
    even = even and site.result.shape[-1] % _LANES == 0
    options = {"taps": taps, "direct": direct, "gathered": gathered, "even": even}
    name = "qpointwise" if direct else f"qconv2d_{taps}_{gathered}" if gathered else f"qconv2d_{taps}"
    name = f"{name}_even" if even else name
    return _Form(name, "qconv2d", options, products(even), _walk() if direct else (_taps(),))


def _single(site: Site, form: _Form) -> Function:
    """The kernel that computes one channel at a time."""
    scale = _scale(site)
    needs = (_conv_t(), *form.needs, scale, store())
    options = {**form.options, "lanes": range(1), "wide": "", "rescale": scale.name}
    return function(f"{form.name}_1{_ending(site)}", form.template, needs, **options)


def _blocked(site: Site, form: _Form) -> Function:
    """The kernel that computes four channels at a time: as its sums are bounded, or by plain C."""
    centered = site.integer("input_zero_point") != 0
    sums = function("products_4_centered") if centered else form.products
    finish = results(site)
    ending = finish.name.removeprefix("results_4")
    name = f"{form.name}{'_centered' if centered else ''}{ending}"
    given = bool(site.arg("bounded"))
    biases = function("biases_4" if given else "biases_4_if_any", "biases_4", (_conv_t(),), given=given)
    needs = (*form.needs, biases, sums, finish)
    options = {**form.options, "lanes": range(_LANES), "centered": centered, "wide": ""}
    wide = _vectors(site, form, ending) if given else None
    if wide:
        options, needs = {**options, "wide": wide.name}, (*needs, wide)
    names = {"biases": biases.name, "products": sums.name, "results": finish.name}
    return function(name, form.template, needs, **options, **names)


def _vectors(site: Site, form: _Form, ending: str) -> Function | None:
    """What vectors make at once of a bounded layer: 16 channels of a pixel, or two pixels."""
    scaled, taps = scaled_4(site), form.options.get("taps")
    if form.template == "qdepthwise_conv2d" and not form.options["paired"]:
        view = {"taps": taps, "full": "_full" in ending, "scaled": scaled.name}
        return function(f"channels_16_{taps}{ending}", "channels_16", (_conv_t(), scaled), **view)
    if form.options.get("direct") and form.options["even"]:
        name = scaled.name.replace("scaled_4", "two_pixels")
        return function(name, "two_pixels", (_conv_t(), scaled), scaled=scaled.name)
    return None


def _by_columns(site: Site, form: _Form, rest: Function) -> Function:
    """The kernel that lays out windows as columns and leaves the last pixels to ``rest``."""
    direct, shape = bool(form.options["direct"]), site.tensor("weight").shape[1:]
    size, depth = prod(shape), shape[-1]
    gathered = size if depth % ROUND else 0
    dsp, ending = (instructions(),), "full" if is_full(site) else "clamped"
    made = (
        function("two_columns" if direct and not gathered else "one_column", needs=dsp),
        function("products_1x4_loose", "products_1x4", dsp, loose=True)
        if gathered
        else function("products_1x4", needs=dsp, loose=False),
        function(
            f"results_1x4_{ending}", "results_1x4", (_conv_t(), *dsp, store()), full=is_full(site)
        ),
        rest,
    )
    names = dict(zip(("products", "results", "rest"), (f.name for f in made[1:]), strict=True))
    view = {"taps": size // depth, "direct": direct, "gathered": gathered, **names}
    view["padded"] = filled(gathered)
    needs = (*(_walk() if direct else (_taps(),)), *made)
    plain, many = rest.name.removesuffix(f"_{ending}"), f"_{gathered}" if gathered else ""
    name = f"{plain}{many}_{ending}_columns"
    return function(name, "qconv2d_columns", needs, **view)


def instructions() -> Function:
    """The macros that say which instructions there are."""
    return function("dsp")


def products(even: bool = False) -> Function:
    """The C function that multiplies numbers, by eights if ``even``, with four rows of weights."""
    name = "products_4_even" if even else "products_4"
    return function(name, "products_4", (instructions(),), even=even)


def results(site: Site) -> Function:
    """The C function that makes results of four sums: for bounded layers one of two fast ones."""
    if not site.arg("bounded"):
        scale = _scale(site)
        plain = (_conv_t(), scale, store())
        return function(f"results_4{_ending(site)}", "results_4", plain, rescale=scale.name)
    full = is_full(site)
    mixed, scaled = not site.arg("below_half"), scaled_4(site)
    needs = (_conv_t(), high_mul_small(), store(), scaled)
    name = f"results_4_{'full' if full else 'clamped'}{'_mixed' if mixed else ''}"
    view = {"full": full, "mixed": mixed, "scaled": scaled.name}
    return function(name, "results_4_bounded", needs, **view)


def is_full(site: Site) -> bool:
    """Whether results take all values of int8."""
    return (site.integer("clamp_min"), site.integer("clamp_max")) == (-128, 127)


def _ending(site: Site) -> str:
    return "_once" if site.arg("rounding") == "single" else ""


def _scale(site: Site) -> Function:
    """The C function that multiplies a sum by a factor in the layer's rounding."""
    return function("rescale_once") if site.arg("rounding") == "single" else rescale()


def scaled_4(site: Site) -> Function:
    """The C function that scales four sums of a bounded layer in a vector."""
    mixed = not site.arg("below_half")
    return function(
        "scaled_4_mixed" if mixed else "scaled_4", "scaled_4", (instructions(),), mixed=mixed
    )


def high_mul_small() -> Function:
    """The C function that multiplies a number below 2^30 with a factor."""
    return function("high_mul_small", "high_mul", (instructions(),), small=True)


def _walk() -> tuple[Function, ...]:
    """The C functions that go from pixel to pixel of a row."""
    image = image_type()
    return function("first_pixel", needs=(image,)), function("next_pixel", needs=(image,))


def _taps() -> Function:
    """The C function that finds the pixels under a window."""
    return function("window_taps", needs=(function("window_t"), *_walk()))


@row_kernel("mplan.qavg_pool2d", "mplan.qmax_pool2d")
def pool(row: Row) -> Code:
    """Pixels of a row of a pool; padding is the least number in a maximum, 0 in a mean."""
    site = row.site
    channels = site.tensor("input").shape[3]
    largest = site.op.kind == "mplan.qmax_pool2d"
    size, stride, padding = (site.integers(n) for n in ("kernel_size", "stride", "padding"))
    outside = _padding(-128 if largest else 0, channels)
    fields = {
        **_window(site, size, stride, padding, (1, 1)),
        "outside": outside.name,
        "out_c": channels,
        **result_range(site, 0),
    }
    kind, taps = site.op.kind.removeprefix("mplan."), size[0] * size[1]
    made = function(f"{kind}_{taps}", kind, (_conv_t(), _taps(), store()), taps=taps)
    return Code((), (outside,)) + _invoke(row, made, fields)


def _conv_t() -> Function:
    return function("q8_conv_t", needs=(function("window_t"),))


def _invoke(row: Row, made: Function, fields: dict[str, int | str], *more: str) -> Code:
    where = (row.images["input"], row.target, row.row, row.column, row.count, *more)
    return invoke_with(made, _conv_t(), fields, *where)


def _window(
    site: Site,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> dict[str, int | str]:
    pairs = {"kernel": size, "stride": stride, "pad": padding[::2], "dilation": dilation}
    for name, numbers in pairs.items():
        site.require(max(numbers) <= LARGEST, f"with a {name} of more than {LARGEST:,}")
    return {
        f"window.{name}_{axis}": number
        for name, numbers in pairs.items()
        for axis, number in zip("hw", numbers, strict=True)
    }


def _padding(zero: int, channels: int) -> Function:
    """A constant pixel of ``zero``, shared by images of up to as many channels."""
    size = 64 if channels <= 64 else -(-channels // 512) * 512
    sign = "minus_" if zero < 0 else ""
    return function(f"padding_{sign}{abs(zero)}_{size}", "padding", size=size, zero=zero)


def _factors(site: Site) -> dict[str, int | str]:
    """Bias and factors, and how far apart those of neighbouring channels lie."""
    names = ("bias", "multiplier", "shift")
    given = {name: argument(t) for name in names if (t := _constant(site, name))}
    return {**given, "factor_step": int(site.tensor("multiplier").numel > 1)}


def _constant(site: Site, name: str) -> Tensor | None:
    found = site.maybe(name)
    site.require(found is None or found.is_contiguous, f"with a strided {name}")
    return found


def result_range(site: Site, zero: int) -> dict[str, int]:
    """The output's zero point and the range before it is added."""
    low, high = site.integer("clamp_min"), site.integer("clamp_max")
    return {"y_zero": zero, "low": low - zero, "high": high - zero}
