"""Peak memory of inference on the CPU: planned, measured in the arena, eager, and Inductor.

    python benchmarks/memory.py                 # the table
    python benchmarks/memory.py --write         # also put it into README.md
    python benchmarks/memory.py --only unet --no-inductor

Peaks are bytes above inputs and weights, counted below PyTorch's allocator, results included. They are
shown as ratios to the lower bound: the bytes that any order of the same kernels needs at once. Each
model runs in processes of its own. Inductor needs g++; without it its column is empty.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HEAD = ("model", "input", "lower bound", "planned", "measured", "eager", "Inductor", "plan")
README_BLOCK = re.compile(
    r"(<!-- measured by benchmarks/memory.py -->\n).*?(<!-- end measured -->)", re.DOTALL
)
TIMEOUT_S = 1200


def resnet18() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import cnn

    return cnn.resnet18(64), (torch.randn(4, 3, 224, 224),)


def mobilenet_v2() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import cnn

    return cnn.mobilenet_v2(), (torch.randn(4, 3, 224, 224),)


def unet() -> tuple[Any, tuple[Any, ...]]:
    """Attention over 32 × 32 positions at the bottom."""
    import torch
    from models import cnn

    return cnn.UNet(32, 2), (torch.randn(1, 3, 128, 128),)


def nasnet() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import cnn

    return cnn.NasNet(6, 32), (torch.randn(1, 3, 64, 64),)


def vit() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import sequence

    return sequence.VisionTransformer(192, 6, 6), (torch.randn(8, 3, 32, 32),)


def gpt() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import sequence

    return sequence.Gpt(8192, 256, 2, 8), (torch.randint(0, 8192, (1, 1024)),)


def evoformer() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from models import sequence

    return sequence.Evoformer(32, 64, 4, 16), (torch.randn(1, 32, 96, 32), torch.randn(1, 96, 96, 64))


MODELS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    f.__name__: f for f in (resnet18, mobilenet_v2, nasnet, unet, vit, gpt, evoformer)
}


def peak_bytes(model: Any, args: tuple[Any, ...]) -> int:
    """The peak of the third call; the earlier ones compile and warm up."""
    from mplan.runtime import heap

    for _ in range(2):
        model(*args)
    with heap.measure() as meter:
        result = model(*args)
    del result
    return meter.peak_bytes


def planned(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Bound, planned and measured peak of the planned model, and eager's beside them."""
    import torch

    from mplan import backend

    fast = torch.compile(model, backend="mplan", options={"limit": 20})
    eager, measured = peak_bytes(model, args), peak_bytes(fast, args)
    (report,) = backend.reports()
    return {
        "eager": eager,
        "measured": measured,
        "planned": report.peak_bytes,
        "bound": report.lower_bound_bytes,
        "status": report.status,
        "fallbacks": len(report.fallbacks),
    }


def inductor(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Inductor's peak with its default options."""
    import torch

    return {"inductor": peak_bytes(torch.compile(model), args)}


def one(name: str, system: str) -> dict[str, Any]:
    """The figures of one model under one system; runs in this process."""
    import torch

    from mplan.runtime import heap

    torch.set_num_threads(1)
    torch.manual_seed(0)
    heap.install()
    module, args = MODELS[name]()
    shapes = ", ".join("×".join(map(str, a.shape)) for a in args)
    with torch.no_grad():
        return {
            "input": shapes,
            **{"mplan": planned, "inductor": inductor}[system](module.eval(), args),
        }


def measured(name: str, system: str) -> dict[str, Any]:
    """``one`` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, system]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{name} under {system} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def row(name: str, with_inductor: bool) -> tuple[str, ...]:
    """One line of the table."""
    figures = measured(name, "mplan")
    if with_inductor:
        figures |= measured(name, "inductor")
    bound = figures["bound"]
    ratios = [
        f"{figures[key] / bound:.3f}" if key in figures else ""
        for key in ("planned", "measured", "eager", "inductor")
    ]
    outside = figures["fallbacks"]
    state = figures["status"] + (f", {outside} ops outside the arena" if outside else "")
    return name, figures["input"], f"{bound / 2**20:.2f} MiB", *ratios, state


def markdown(rows: list[tuple[str, ...]]) -> str:
    """The table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_readme(text: str) -> None:
    """Put the table into README.md."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = README_BLOCK.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old)
    readme.write_text(new, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SYSTEM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    with_inductor = not given.no_inductor and shutil.which("g++") is not None
    rows = []
    for name in given.only:
        rows.append(row(name, with_inductor))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(markdown(rows))
    if given.write:
        write_readme(markdown(rows))


if __name__ == "__main__":
    main()
