"""What would lower the peak: every piece of advice has been planned anew, so its price is a fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from mplan import compiler
from mplan.compiler import Result
from mplan.diagnostics import InfeasibleError, MplanError
from mplan.ir.graph import Graph
from mplan.ir.types import DType, TensorType
from mplan.options import Options
from mplan.targets.load import list_targets, load_target

#: How to stream an image, in words, and the work allowed.
_WAYS = (
    ("rows", "stream rows of the image as they arrive", 1.0),
    ("rows", "stream rows of the image as they arrive, computing up to a tenth again", 1.1),
    ("flash", "stream the image from flash", 1.0),
    ("whole", "stream the image from the arena", 1.0),
)
#: How often the rows of an image may arrive where arriving once does not keep within the budget.
_SCANS = 4


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, the arena it leads to and what was planned to know that."""

    text: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Advised:
    """A plan with changes that lower its peak. ``refused`` says why there is none within the budget, if
    so; the plan is then that of an arena without a limit."""

    result: Result
    advice: tuple[Advice, ...]
    refused: str = ""


def advised(subject: str, options: Options) -> Advised:
    """The plan of the model at the path ``subject``, and what would lower its peak.

    Raises MplanError.
    """
    try:
        result = compiler.plan(subject, options=options)
    except InfeasibleError as error:
        limit = options.budget or load_target(options.target).arena_memory.size_bytes
        options = replace(options, budget=None, minimise=True)
        result = compiler.plan(subject, options=options)
        advice = advise(subject, result, options, limit)
        return Advised(result, advice, f"{error.code}: {error.message}")
    return Advised(result, advise(subject, result, options))


def advise(
    subject: str, result: Result, options: Options, limit: int | None = None
) -> tuple[Advice, ...]:
    """Changes to ``subject`` (a path that ``compiler.plan`` took) that lower the peak, best first; of
    ways to stream that need the same the first one.

    If ``result`` is not within the bytes of a ``limit``, rows that arrive several times may be.
    """
    before = _peak(result)
    found = _priced(_alternatives(subject, result, options), before)
    ways = _priced(_streams(subject, result, options, limit), before)
    streams = {a.peak_bytes: a for a in reversed(ways)}
    return tuple(sorted([*found, *streams.values()], key=lambda a: a.peak_bytes))


def _priced(attempts: Iterator[tuple[str, Callable[[], Result]]], before: int) -> list[Advice]:
    """The attempts whose plan is lower than ``before``."""
    found = []
    for text, attempt in attempts:
        try:
            after = _peak(attempt())
        except MplanError:
            continue
        if after < before:
            found.append(Advice(text, after))
    return found


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
    if not _is_python(subject):
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


def _streams(
    subject: str, result: Result, options: Options, limit: int | None
) -> Iterator[tuple[str, Callable[[], Result]]]:
    """On microcontrollers: integers, for which C that streams is generated, and the ways to stream them
    for fewest bytes."""
    if result.planned is None or result.planned.target.family != "mcu":
        return
    float_ = not _has_integers(result.planned.graph)
    if float_ and not _is_python(subject):
        return
    flags = "--quantize int8 --io int8-nhwc" if float_ else ""

    @cache
    def model() -> Any:
        if not float_:
            return result.captured or subject
        quantised = replace(options, quantize="int8", io="int8-nhwc")
        return compiler.capture_for(subject, None, None, quantised)

    def stream(way: str, factor: float) -> Result:
        asked = replace(options, budget=None, input=way, max_mac_factor=factor)
        return compiler.plan(model(), options=asked)

    if float_:
        yield f"compute in integers ({flags})", lambda: compiler.plan(model(), options=options)
    for way, text, factor in _WAYS:
        more = f" --max-mac-factor {factor:g}" if factor > 1 else ""
        yield f"{text} ({f'{flags} --input {way}{more}'.strip()})", partial(stream, way, factor)
    if limit is not None:
        within = replace(options, budget=limit, minimise=False, input="rows", scans=_SCANS)
        asked = f"{flags} --budget {limit} --input rows".strip()
        yield from _scanned(lambda: compiler.plan(model(), options=within), asked)


def _scanned(attempt: Callable[[], Result], flags: str) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Rows that arrive several times, as often and for as much work as the plan says; none if they
    need to arrive only once or nothing keeps within its budget."""
    try:
        found = attempt()
    except MplanError:
        return
    made = found.planned.streamed if found.planned else None
    if made is not None and made.scans > 1:
        text = f"stream rows of the image, which arrive {made.scans} times"
        work = f"at {made.mac_factor:.3f} times the multiply-accumulates"
        yield f"{text}, {work} ({flags} --scans {made.scans})", lambda: found


def _is_python(subject: str) -> bool:
    return Path(subject.partition(":")[0]).suffix == ".py"


def _has_integers(graph: Graph) -> bool:
    """Whether any op computes in bytes."""
    types = (v.type for op in graph.ops for v in op.values)
    return any(isinstance(t, TensorType) and t.dtype is DType.I8 for t in types)


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
