"""How bytes, ratios and counts are shown to people, the same in every report and picture."""

from __future__ import annotations


def human_bytes(count: int) -> str:
    """``count`` bytes with three significant digits: ``960 B``, ``61.4 KiB``, ``1.20 GiB``."""
    if abs(count) < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if abs(value) < 999.5 or unit == "PiB":
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def exact_bytes(count: int) -> str:
    """``count`` bytes to the byte: ``62,914 B``."""
    return f"{count:,} B"


def clean(text: str) -> str:
    """``text`` on one line without what no document may hold: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def percent(ratio: float, signed: bool = False) -> str:
    """A ratio as percent: ``3.2 %``; a non-zero ratio never shows as zero."""
    if ratio and abs(ratio) < 0.0005:
        return "<0.1 %" if ratio > 0 else ">-0.1 %"
    return f"{100 * ratio:{'+' if signed else ''}.1f} %"


def seconds(duration_s: float) -> str:
    """A duration: ``120 ms``, ``3.4 s``, ``2 min 05 s``."""
    if duration_s < 0.0995:
        return f"{1000 * duration_s:.2g} ms"
    if duration_s < 99.95:
        return f"{duration_s:.2f} s" if duration_s < 9.995 else f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes} min {rest:02d} s"
