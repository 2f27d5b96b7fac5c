"""Draw the picture of the README: ``python tools/picture.py`` writes docs/images/plan.svg.

It is the plan of a small U-Net with attention (tests/models/cnn.py) for an STM32H743.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    """Plan and draw."""
    import zoo

    import mplan
    from mplan.files import write_atomic
    from mplan.viz import render_svg

    result = mplan.plan(*zoo.build("unet"), target="stm32h743")
    path = ROOT / "docs" / "images" / "plan.svg"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, render_svg(result.file))
    print(f"wrote {path.relative_to(ROOT)}: {result.report.headline()}")


if __name__ == "__main__":
    main()
