"""Draw the picture of the README: ``python tools/picture.py`` writes docs/images/plan.svg.

It is the plan of a small U-Net with attention (tests/models/cnn.py) for an STM32H743.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def _relative(where: str) -> str:
    """``where`` as seen from the project, so that the picture is the same on every machine."""
    return where.removeprefix(f"{ROOT}/")


def main() -> None:
    """Plan and draw."""
    import zoo

    import mplan
    from mplan.files import write_atomic
    from mplan.viz import render_svg

    file = mplan.plan(*zoo.build("unet"), target="stm32h743").file
    steps = tuple(replace(s, where=_relative(s.where)) for s in file.problem.steps)
    buffers = tuple(replace(b, where=_relative(b.where)) for b in file.problem.buffers)
    file = replace(file, problem=replace(file.problem, steps=steps, buffers=buffers))
    path = ROOT / "docs" / "images" / "plan.svg"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, render_svg(file))
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
