"""int8 networks in the IR, layer by layer, with random weights: for tests of streams and kernels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mplan.ir.graph import Graph
from mplan.ir.parser import parse

ONE = 1 << 30  # a multiplier of a half


@dataclass
class QuantizedNet:
    """Builds a graph op by op; methods take and return names of values of shape [1, H, W, C]."""

    height: int
    width: int
    channels: int
    seed: int = 0
    lines: list[str] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        self.shapes["x"] = (1, self.height, self.width, self.channels)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.random)

    def number(self, low: int, high: int) -> int:
        return int(self.integers(low, high))

    def constant(self, kind: str, value: torch.Tensor) -> str:
        name = f"{kind}{len(self.constants)}"
        self.constants[name] = value
        return f"%{name}"

    def op(self, kind: str, shape: tuple[int, ...], *args: str) -> str:
        name = f"v{len(self.lines)}"
        sizes = ",".join(map(str, shape))
        self.lines.append(f"%{name}: i8[{sizes}] = {kind}({', '.join(args)})")
        self.shapes[name] = shape
        return name

    def conv(
        self,
        x: str,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> str:
        """A convolution; as many groups as channels make it depthwise."""
        _, h, w, c = self.shapes[x]
        depthwise = groups == c and channels % c == 0
        w_shape = (1, *kernel, channels) if depthwise else (channels, *kernel, c // groups)
        sizes = [
            (n + sum(padding[2 * d : 2 * d + 2]) - (kernel[d] - 1) * dilation[d] - 1) // stride[d] + 1
            for d, n in enumerate((h, w))
        ]
        taps = kernel[0] * kernel[1] * (1 if depthwise else c // groups)
        kind = "mplan.qdepthwise_conv2d" if depthwise else "mplan.qconv2d"
        place = (f"stride={list(stride)}", f"padding={list(padding)}", f"dilation={list(dilation)}")
        return self._layer(kind, x, w_shape, taps, (1, *sizes, channels), place)

    def transposed(
        self,
        x: str,
        channels: int,
        kernel: tuple[int, int] = (2, 2),
        stride: tuple[int, int] = (2, 2),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> str:
        """A transposed convolution; as many groups as channels make it depthwise."""
        _, h, w, c = self.shapes[x]
        depthwise = groups == c and channels % c == 0
        w_shape = (1, *kernel, channels) if depthwise else (channels, *kernel, c // groups)
        sizes = [
            (n - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - sum(padding[2 * d : 2 * d + 2])
            for d, n in enumerate((h, w))
        ]
        reads = max(kernel[0] * kernel[1] // (stride[0] * stride[1]), 1) * w_shape[3]
        kind = "mplan.qdepthwise_conv_transpose2d" if depthwise else "mplan.qconv_transpose2d"
        place = (f"stride={list(stride)}", f"padding={list(padding)}", f"dilation={list(dilation)}")
        return self._layer(kind, x, w_shape, reads, (1, *sizes, channels), place)

    def _layer(
        self,
        kind: str,
        x: str,
        weights: tuple[int, ...],
        reads: int,
        shape: tuple[int, ...],
        place: tuple[str, ...],
    ) -> str:
        """A layer of ``weights`` that sums ``reads`` products for a result."""
        channels, shift = shape[-1], -5 - (reads.bit_length() + 1) // 2
        factors = self.integers(ONE, 2 * ONE - 1, channels).to(torch.int32)
        args = (
            f"input=%{x}",
            f"weight={self.constant('w', self.integers(-127, 128, *weights).to(torch.int8))}",
            f"bias={self.constant('b', self.integers(-2000, 2000, channels).to(torch.int32))}",
            f"multiplier={self.constant('m', factors)}",
            f"shift={self.constant('s', torch.full((channels,), shift, dtype=torch.int8))}",
            *place,
            f"input_zero_point={self.number(-20, 20)}",
            f"output_zero_point={self.number(-20, 20)}",
            f"clamp_min={self.number(-128, -90)}",
        )
        return self.op(kind, shape, *args)

    def pool(self, x: str, kind: str, size: int, stride: int, padding: int = 0) -> str:
        """A ``max`` or ``avg`` pool."""
        _, h, w, c = self.shapes[x]
        sizes = [(n + 2 * padding - size) // stride + 1 for n in (h, w)]
        args = (f"kernel_size=[{size}, {size}]", f"stride=[{stride}, {stride}]")
        return self.op(
            f"mplan.q{kind}_pool2d", (1, *sizes, c), f"input=%{x}", *args, f"padding={[padding] * 4}"
        )

    def add(self, a: str, b: str) -> str:
        """The sum of two values."""
        factors = ", ".join(
            f"{n}_zero_point={self.number(-9, 9)}, {n}_multiplier={ONE + 12345}, {n}_shift=0"
            for n in ("input", "other")
        )
        rest = f"multiplier={ONE}, shift=-19, output_zero_point={self.number(-9, 9)}"
        return self.op("mplan.qadd", self.shapes[a], f"input=%{a}, other=%{b}, {factors}, {rest}")

    def mul(self, a: str, b: str) -> str:
        """The product of a value and one of a pixel for all, or the same shape."""
        rest = f"multiplier={ONE + 999}, shift=-5, output_zero_point={self.number(-9, 9)}"
        zeros = f"input_zero_point={self.number(-9, 9)}, other_zero_point={self.number(-9, 9)}"
        return self.op("mplan.qmul", self.shapes[a], f"input=%{a}, other=%{b}, {zeros}, {rest}")

    def table(self, x: str) -> str:
        """A function by a table."""
        table = self.integers(-128, 128, 256).to(torch.int8)
        return self.op(
            "mplan.qtable", self.shapes[x], f"input=%{x}", f"table={self.constant('t', table)}"
        )

    def mean(self, x: str) -> str:
        """The mean of all pixels."""
        _, h, w, c = self.shapes[x]
        factor = int(2**31 / (h * w)) >> 1 if h * w > 1 else ONE
        rest = f"input_zero_point={self.number(-9, 9)}, multiplier={factor}, shift=1"
        zero = f"output_zero_point={self.number(-9, 9)}"
        return self.op("mplan.qmean", (1, 1, 1, c), f"input=%{x}, dim=[1, 2], keepdim=true", rest, zero)

    def graph(self, *outputs: str) -> Graph:
        """The graph that returns ``outputs``."""
        names = {"w": "i8", "b": "i32", "m": "i32", "s": "i8", "t": "i8"}
        inputs = [f"%x: i8[{','.join(map(str, self.shapes['x']))}]"]
        for name, value in self.constants.items():
            inputs.append(f"const %{name}: {names[name[0]]}[{','.join(map(str, value.shape))}]")
        body = "\n  ".join([*self.lines, f"return {', '.join(f'%{o}' for o in outputs)}"])
        return parse(f"graph @net({', '.join(inputs)}) {{\n  {body}\n}}")

    def image(self) -> torch.Tensor:
        """An input."""
        return self.integers(-128, 128, *self.shapes["x"]).to(torch.int8)


def mobile(net: QuantizedNet) -> Graph:
    """Inverted residuals behind a first convolution, with squeeze and excitation."""
    x = net.conv("x", 8, (3, 3), (2, 2), (1, 1, 1, 1))
    y = net.conv(net.conv(x, 24), 24, (5, 5), padding=(2, 2, 2, 2), groups=24)
    gate = net.table(net.conv(net.conv(net.mean(y), 6), 24))
    x = net.add(x, net.conv(net.mul(y, gate), 8))
    y = net.conv(net.conv(x, 20), 20, (3, 3), (2, 2), (1, 1, 1, 1), groups=20)
    return net.graph(net.mean(net.conv(y, 12)))


def plain(net: QuantizedNet) -> Graph:
    """Convolutions and pools, odd sizes, dilation and a multiplier of depth."""
    x = net.pool(net.conv("x", 5, (3, 2), padding=(0, 2, 1, 0)), "max", 3, 2, 1)
    y = net.conv(x, 10, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=5)
    y = net.table(net.conv(y, 7, (2, 3), (1, 2)))
    return net.graph(net.pool(y, "avg", 2, 1))


def residual(net: QuantizedNet) -> Graph:
    """Two paths of different reach that meet, and a result in the middle."""
    x = net.conv("x", 6)
    y = net.conv(net.conv(x, 6, (3, 3), padding=(1, 1, 1, 1)), 6, (3, 3), padding=(1, 1, 1, 1))
    return net.graph(net.conv(net.add(x, y), 4, (3, 3), (2, 2), (1, 1, 1, 1)))
