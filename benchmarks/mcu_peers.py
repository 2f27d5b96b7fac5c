"""What other compilers need for the networks of the microcontroller benchmark.

Measured once, under the same emulator (QEMU 7.2) and compiler (arm-none-eabi-gcc 12.2), one inference
in int8; instruction counts are exact and repeat. Bytes of RAM are those of activations and scratch,
flash is that of the whole image. ExecuTorch's are the bytes of its plan (1.5.1). TinyEngine rounds in
float, so its outputs differ from TensorFlow Lite's; the others' are bit-exact. CMSIS-NN and TFLM hold
the image.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A compiler's figures for a network: instructions by core, bytes of RAM and flash."""

    name: str
    ram_bytes: int
    flash_bytes: int | None = None
    instructions: tuple[tuple[str, float], ...] = ()


def _peers(
    cmsis: tuple[int, int | None, float, float],
    tflm: tuple[int, int | None, float],
    tiny: tuple[int, int | None, float],
    executorch: int,
) -> tuple[Peer, ...]:
    return (
        Peer("CMSIS-NN", cmsis[0], cmsis[1], (("cortex-m7", cmsis[2]), ("cortex-m55", cmsis[3]))),
        Peer("TFLM", tflm[0], tflm[1], (("cortex-m7", tflm[2]),)),
        Peer("TinyEngine", tiny[0], tiny[1], (("cortex-m7", tiny[2]),)),
        Peer("ExecuTorch", executorch),
    )


PEERS = {
    "mcunet-in3": _peers(
        (371_712, 860_728, 381.5e6, 81.0e6),
        (503_396, 1_179_532, 389.7e6),
        (266_916, 836_808, 235.4e6),
        464_640,
    ),
    "mcunet-vww1": _peers(
        (96_000, None, 47.5e6, 11.3e6), (219_808, None, 48.4e6), (93_992, None, 34.5e6), 96_000
    ),
    "mbv2-0.35": _peers(
        (311_040, None, 99.9e6, 26.7e6), (573_588, None, 101.1e6), (302_640, None, 76.2e6), 311_040
    ),
    "proxyless-w0.3": _peers(
        (309_760, None, 183.8e6, 43.2e6), (449_828, None, 188.3e6), (266_172, None, 117.4e6), 464_640
    ),
}

#: Peak activation bytes and factor of work that MCUNetV2 (Lin et al. 2021) publishes for MobileNetV2
#: 1.0 at 224 × 224; it leaves out the third tensor of residuals and the image.
MCUNETV2_MBV2 = (172 * 1024, 1.10)
