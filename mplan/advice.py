"""What would lower the peak: every piece of advice has been planned anew, so its price is a fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mplan import compiler
from mplan.compiler import Result
from mplan.diagnostics import MplanError
from mplan.options import Options
from mplan.targets.load import list_targets, load_target


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, the arena it leads to and what was planned to know that."""

    text: str
    peak_bytes: int


def advise(subject: str, result: Result, options: Options) -> tuple[Advice, ...]:
    """Changes to ``subject`` (a path that ``compiler.plan`` took) that lower the peak, best first."""
    before = _peak(result)
    found = []
    for text, attempt in _alternatives(subject, result, options):
        try:
            after = _peak(attempt())
        except MplanError:
            continue
        if after < before:
            found.append(Advice(text, after))
    return tuple(sorted(found, key=lambda a: a.peak_bytes))


def larger_target(peak_bytes: int, family: str) -> str | None:
    """The target of ``family`` with the smallest arena memory that holds ``peak_bytes``."""
    fitting = [
        (memory.size_bytes, target.name)
        for target in map(load_target, list_targets())
        if target.family == family
        for memory in [target.arena_memory]
        if memory.size_bytes is not None and memory.size_bytes >= peak_bytes
    ]
    return min(fitting)[1] if fitting else None


def _peak(result: Result) -> int:
    return result.file.plan.peak_bytes(result.file.problem.regions[0].name)


def _alternatives(
    subject: str, result: Result, options: Options
) -> Iterator[tuple[str, Callable[[], Result]]]:
    if result.file.plan.status != "optimal":
        longer = replace(options, limit=4 * options.limit)
        text = f"give the solvers {longer.limit:g} s (--limit)"
        yield text, lambda: compiler.plan(subject, options=longer)
    if Path(subject.partition(":")[0]).suffix != ".py":
        return
    from mplan.capture import load_model

    module, args, kwargs = load_model(subject)[:3]
    if kwargs:
        return
    batch = _batch(args)
    if batch > 1:
        ones = tuple(a[:1] for a in args)
        yield "run one sample at a time", lambda: compiler.plan(module, ones, options=options)
    if all(_is_image(a) for a in args):
        small = tuple(a[..., ::2, ::2].contiguous() for a in args)
        text = f"halve the resolution to {small[0].shape[-2]}×{small[0].shape[-1]}"
        yield text, lambda: compiler.plan(module, small, options=options)
    if load_target(options.target).family != "mcu" and all(a.is_floating_point() for a in args):
        yield "run in bfloat16", lambda: _in_bfloat16(module, args, options)


def _batch(args: tuple[Any, ...]) -> int:
    """The common leading size of all inputs; 1 if there is none."""
    sizes = {a.shape[0] if a.dim() > 1 else 1 for a in args}
    return sizes.pop() if len(sizes) == 1 else 1


def _is_image(tensor: Any) -> bool:
    return bool(tensor.dim() == 4 and min(tensor.shape[-2:]) >= 8)


def _in_bfloat16(module: Any, args: tuple[Any, ...], options: Options) -> Result:
    import copy

    import torch

    converted = copy.deepcopy(module).to(torch.bfloat16)
    return compiler.plan(converted, tuple(a.to(torch.bfloat16) for a in args), options=options)
