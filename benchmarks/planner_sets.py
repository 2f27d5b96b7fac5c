"""The instances of the planner's benchmark, by set: each set yields names with ways to make problems.

``minimalloc``, ``smallest`` and ``graphs`` are files of ``tests/data``; ``inference``, ``training`` and
``splits`` are the graphs of the test zoo after the passes that precede planning; ``packings``, ``nas``,
``layers`` and ``large`` follow from definitions.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplan.ir.csv_format import parse_csv
from mplan.ir.dag_format import parse_dag
from mplan.ir.plan import Problem, Region

if TYPE_CHECKING:
    from mplan.capture import Captured

Item = tuple[str, Callable[[], Problem]]

DATA = Path(__file__).parents[1] / "tests" / "data"
#: The passes before planning that change no weights.
PASSES = "canonicalize,fuse_attention,inplace"


def read(path: Path) -> Problem:
    """The problem in a CSV (capacity in its name: ``A.1048576.csv``) or a DAG, maybe gzipped."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if ".csv" not in path.suffixes:
        return parse_dag(text, file=str(path))
    capacity = re.search(r"\.(\d+)\.csv", path.name)
    return parse_csv(text, Region("arena", int(capacity[1]) if capacity else None), path.name)


def folder(path: Path) -> Iterator[Item]:
    """Every CSV and DAG in a folder."""
    for file in sorted(path.iterdir()):
        if re.search(r"\.(csv|json)(\.gz)?$", file.name):
            yield re.sub(r"(\.\d+)?\.(csv|json)(\.gz)?$", "", file.name), partial(read, file)


def minimalloc() -> Iterator[Item]:
    """MiniMalloc's instances with their capacity."""
    return folder(DATA / "minimalloc")


def smallest() -> Iterator[Item]:
    """MiniMalloc's instances without a capacity: the smallest one is asked for."""
    for name, make in minimalloc():
        yield name, lambda make=make: make().unlimited()


def graphs() -> Iterator[Item]:
    """The DAG instances."""
    return folder(DATA / "graphs")


# ---- the zoo ----


def inference() -> Iterator[Item]:
    """Every model of the zoo."""
    from tests import zoo

    for name in zoo.ZOO:
        yield name, lambda name=name: problem_of(zoo.captured(name))


def training() -> Iterator[Item]:
    """Forward and backward as one graph."""
    from tests import zoo

    for name in zoo.TRAINABLE:
        yield name, lambda name=name: problem_of(zoo.captured_training(name))


def splits() -> Iterator[Item]:
    """The two graphs into which AOTAutograd cuts a training step."""
    from tests import zoo

    for name in zoo.TRAINABLE:
        for role in ("forward", "backward"):
            yield f"{name}.{role}", lambda name=name, role=role: problem_of(split(name)[role])


def problem_of(captured: Captured) -> Problem:
    """The problem that the planner sees on a CPU."""
    from mplan.ir.storage import problem_of as lower
    from mplan.passes.base import Context
    from mplan.passes.registry import parse_pipeline
    from mplan.pipeline import layout_of, run_passes
    from mplan.targets.load import load_target

    found = captured.with_write_back()
    ctx = Context(layout_of(load_target("cpu")), constants=found.constants)
    graph = run_passes(found.graph, parse_pipeline(PASSES), ctx)
    return lower(graph, ctx.layout).problem


_SPLIT: dict[str, dict[str, Any]] = {}


def split(name: str) -> dict[str, Captured]:
    """The forward and the backward graph of a model of the zoo; a model without breaks has one each."""
    if name in _SPLIT:
        return _SPLIT[name]
    import torch
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import default_partition

    from mplan.capture import capture_fx
    from tests import zoo

    found: dict[str, Any] = {}

    def compiler(role: str) -> Callable[..., Any]:
        def compile_graph(gm: Any, inputs: Any) -> Any:
            found.setdefault(role, capture_fx(gm, inputs, name=f"{name}.{role}"))
            return make_boxed_func(gm.forward)

        return compile_graph

    backend = aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        partition_fn=default_partition,
    )
    module, args, loss = zoo.build_training(name)
    torch._dynamo.reset()
    step = torch.compile(lambda *given: loss(module(*given)), backend=backend, dynamic=False)
    step(*args).backward()
    _SPLIT.clear()
    _SPLIT[name] = found
    return found


# ---- generated ----


def nas() -> Iterator[Item]:
    """Cells of architecture search and randomly wired networks."""
    from nas_graphs import instances

    for name, problem in instances().items():
        yield name, lambda problem=problem: problem


def layers() -> Iterator[Item]:
    """Training steps of a GPT with few layers and with many: from a definition, and from PyTorch."""
    from planner_generated import gpt_training

    for count in (8, 96):
        yield f"gpt_{count}L", partial(gpt_training, count)
        yield f"gpt2_{count}L", partial(_gpt2, count)


def _gpt2(count: int) -> Problem:
    """The DAG of GPT-2 with 96 layers, all but ``count`` of them left out."""
    from mplan.passes.repeats.fold import fold

    whole = read(DATA / "graphs" / "train_gpt2_96L.json.gz")
    folded = fold(whole, "arena", count) if count < 96 else None
    return folded.problem if folded else whole


def packings() -> Iterator[Item]:
    """Full rectangles cut into pieces, with the capacity in which the pieces fit."""
    from planner_packings import packings as make

    return make(3)


def large() -> Iterator[Item]:
    """Ten and fifty thousand steps."""
    from planner_generated import gpt_training, skips

    for count in (10_000, 50_000):
        yield f"skips_{count}", partial(skips, count)
        yield f"gpt_{count}", partial(gpt_training, count // 31)


SETS: dict[str, Callable[[], Iterator[Item]]] = {
    f.__name__: f
    for f in (
        *(minimalloc, smallest, packings, graphs),
        *(inference, training, splits, nas, layers, large),
    )
}
