"""Run compiled C in an emulator and compare it with PyTorch: ``mplan run``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mplan.codegen.bundle import GOLDEN, PLAN, Manifest, area_symbols, load_manifest, target_of_bundle
from mplan.codegen.c.stream import PlannedStage
from mplan.diagnostics import CheckError, UserError, Where
from mplan.ir.plan import Step
from mplan.ir.types import DType
from mplan.runtime.elf import STAGES
from mplan.runtime.emulator import Accessed, EmulatorName, Interval, RunResult, run_firmware
from mplan.runtime.firmware import Firmware, build_firmware
from mplan.runtime.harness import Sample, harness, sent
from mplan.runtime.stack import StackBound, stack_bound

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step of the plan costs: ``name`` and ``kind`` are its op's, ``where`` its source line.

    Of a stream each ``stage`` is one of these; its walk from stage to stage is the one of stage -1.
    """

    position: int
    name: str
    kind: str
    where: str
    instructions: int
    stage: int = -1


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """One run of a network in an emulator, over one or more samples.

    ``outputs[s][i]`` is output i of sample s. ``outputs_match`` compares with the golden outputs
    (None where the caller gave inputs of its own): |difference| ≤ 1e-4 · (1 + |expected|).
    ``instructions`` is the largest count of one inference, ``steps`` are those of that inference by
    step of the plan (what is left is the code around the steps), ``functions`` those of the whole run
    by function, callees left out. ``memories`` says what was written and read of each.
    ``arena_touched_bytes`` is the arena's high-water mark, of several memories the sum.
    ``stack_bytes`` was used, ``stack_bound_bytes`` is the most that could be along ``stack_chain``,
    None if nothing bounds it.
    """

    outputs: tuple[tuple[np.ndarray, ...], ...]
    outputs_match: bool | None
    max_abs_err: float | None
    instructions: int
    steps: tuple[StepCost, ...]
    functions: Mapping[str, int]
    sram_touched_bytes: int | None
    memories: Mapping[str, Accessed]
    arena_bytes: int
    arena_touched_bytes: int | None
    stack_bytes: int
    stack_bound_bytes: int | None
    stack_chain: tuple[str, ...]
    flash_bytes: int
    ram_static_bytes: int
    emulator: str

    def to_json(self) -> dict[str, Any]:
        """Everything but the outputs."""
        names = [n for n in self.__dataclass_fields__ if n != "outputs"]
        plain = {
            "steps": [asdict(step) for step in self.steps],
            "functions": dict(self.functions),
            "memories": {name: asdict(accessed) for name, accessed in self.memories.items()},
            "stack_chain": list(self.stack_chain),
        }
        return {"samples": len(self.outputs), **{n: plain.get(n, getattr(self, n)) for n in names}}


def run_bundle(
    folder: str | Path,
    *,
    inputs: Sequence[Sequence[Any]] | None = None,
    emulator: EmulatorName = "unicorn",
    toolchain: Literal["zig", "gcc"] | None = None,
    timeout_s: float = 300.0,
) -> DeviceRun:
    """Build the folder that ``mplan compile`` wrote and run it on ``inputs`` (arrays per sample).

    Without ``inputs`` it runs on the golden ones and compares. unicorn runs what zig compiles, QEMU
    what gcc does, unless ``toolchain`` says otherwise. Raises what ``build_firmware`` and
    ``run_firmware`` raise, UserError MP425 and MP426 for a bad folder or bad inputs.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    golden_in, golden_out = _golden(folder, manifest) if inputs is None else ((), ())
    samples = [golden_in] if inputs is None else inputs
    target = target_of_bundle(manifest)
    data = sent(samples, manifest.inputs)
    with tempfile.TemporaryDirectory(prefix="mplan-run-") as temporary:
        tools = toolchain or ("zig" if emulator == "unicorn" else "gcc")
        firmware = build_bundle(folder, manifest, Path(temporary), tools, samples)
        result = run_firmware(firmware, target, emulator=emulator, timeout_s=timeout_s, inputs=data)
        bound = stack_bound(firmware)
    if result.exit_code:
        raise CheckError("MP547", f"{manifest.name} ended with exit code {result.exit_code}")
    outputs = _outputs(result.output, manifest, len(samples))
    error = _largest_error(outputs[0], golden_out) if inputs is None else None
    return _device_run(manifest, _problem_steps(folder), result, bound, outputs, error)


def build_bundle(
    folder: Path,
    manifest: Manifest,
    work: Path,
    tools: Literal["zig", "gcc"],
    samples: Sequence[Sample] = (),
) -> Firmware:
    """The image of a compiled network with a harness that talks to the host; files go to ``work``.

    Inputs that are read where the caller has them are constants of the image, for all ``samples``.
    """
    program = work / "harness.c"
    program.write_text(harness(manifest, samples), encoding="utf-8")
    sources = [program, *(folder / s for s in manifest.sources)]
    includes = sorted({path.parent for path in sources[1:]})
    target = target_of_bundle(manifest)
    return build_firmware(sources, includes, target, work / "image", toolchain=tools)


def _problem_steps(folder: Path) -> tuple[Step, ...]:
    """The steps in the order of the plan in ``folder``."""
    from mplan.ir.plan_json import load_plan

    file = load_plan(folder / PLAN)[1]
    return tuple(file.problem.steps[number] for number in file.plan.order)


def _step_costs(
    steps: Sequence[Step], stages: Sequence[PlannedStage], counts: Mapping[int, int]
) -> Iterator[StepCost]:
    """The cost of each step that has code; after the last step come copies between regions."""
    known = {(s.position, s.stage): s for s in stages}
    marks = ((mark % STAGES, mark // STAGES - 1, n) for mark, n in counts.items())
    for position, number, instructions in sorted(marks):
        stage = known.get((position, number))
        step = steps[position] if position < len(steps) else Step("transfers", (), ())
        shown = stage or step
        yield StepCost(position, shown.name, shown.kind, shown.where, instructions, number)


def _device_run(
    manifest: Manifest,
    steps: Sequence[Step],
    result: RunResult,
    bound: StackBound,
    outputs: tuple[tuple[np.ndarray, ...], ...],
    error: tuple[float, bool] | None,
) -> DeviceRun:
    longest = max(result.between(1, 2), key=lambda i: i.instructions, default=Interval(0, {}))
    symbols = area_symbols(manifest, target_of_bundle(manifest))
    areas = [span for name, span in result.touched.items() if name in symbols]
    return DeviceRun(
        outputs=outputs,
        outputs_match=error[1] if error else None,
        max_abs_err=error[0] if error else None,
        instructions=longest.instructions,
        steps=tuple(_step_costs(steps, manifest.stages, longest.steps)),
        functions=result.functions,
        sram_touched_bytes=result.sram_touched_bytes,
        memories=result.accessed,
        arena_bytes=manifest.arena_bytes,
        arena_touched_bytes=sum(a.high_water_bytes for a in areas) if areas else None,
        stack_bytes=result.stack_bytes,
        stack_bound_bytes=bound.bytes,
        stack_chain=bound.chain,
        flash_bytes=result.flash_bytes,
        ram_static_bytes=result.ram_static_bytes,
        emulator=result.emulator,
    )


def _golden(folder: Path, manifest: Manifest) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    from safetensors.numpy import load_file

    path = folder / GOLDEN
    try:
        tensors = load_file(str(path))
        inputs = tuple(tensors[f"input{i}"] for i in range(len(manifest.inputs)))
        return inputs, tuple(tensors[f"output{i}"] for i in range(len(manifest.outputs)))
    except Exception as e:  # safetensors raises its own error type, KeyError or OSError
        message = f"the golden data {path} cannot be read: {e}"
        raise UserError("MP425", message, Where(str(path)), "compile the model again") from None


def _outputs(data: bytes, manifest: Manifest, samples: int) -> tuple[tuple[np.ndarray, ...], ...]:
    import numpy as np

    if len(data) != samples * sum(p.nbytes for p in manifest.outputs):
        raise CheckError("MP547", f"{manifest.name} returned {len(data):,} B for {samples} samples")
    found, position = [], 0
    for _ in range(samples):
        arrays = []
        for port in manifest.outputs:
            dtype = getattr(np, DType(port.dtype).numpy_name)
            part = data[position : position + port.nbytes]
            steps = [stride * dtype().itemsize for stride in port.strides]
            strided = np.ndarray(port.shape, dtype, part, strides=steps)
            arrays.append(np.ascontiguousarray(strided))
            position += port.nbytes
        found.append(tuple(arrays))
    return tuple(found)


def _largest_error(outputs: Sequence[Any], expected: Sequence[Any]) -> tuple[float, bool]:
    """The largest absolute difference, and whether all are within the tolerance (NaN is not)."""
    import numpy as np

    worst, match = 0.0, True
    for ours, theirs in zip(outputs, expected, strict=True):
        wanted = theirs.astype(np.float64)
        difference = np.abs(ours.astype(np.float64) - wanted)
        worst = max(worst, float(difference.max(initial=0.0)))
        match = match and bool((difference <= 1e-4 * (1 + np.abs(wanted))).all())
    return worst, match
