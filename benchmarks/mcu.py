"""int8 networks on microcontrollers: bytes and instructions, beside other compilers.

    python benchmarks/mcu.py                    # the tables; runs everything twice and compares
    python benchmarks/mcu.py --write            # also benchmarks/results/mcu.{md,json} and README.md
    python benchmarks/mcu.py --only mcunet-vww1 --once

Each network is compiled with an image that arrives by rows: for the least bytes at the model's own
number of multiply-accumulates, which are the same on all cores, and within a somewhat larger budget
for fewer instructions, on a Cortex-M4, -M7 and -M55; and for the least bytes at 1.05 times the work
where the rows may arrive several times, once for each strip of columns. It runs in QEMU. Bytes of RAM
are the arena's, all scratch included; "written" are those that the emulator saw written. Outputs must
equal the integer reference's, every number must be the same in two runs. Needs arm-none-eabi-gcc and
QEMU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.mcu_nets import images, int8_network  # noqa: E402
from benchmarks.mcu_peers import MCUNETV2_MBV2, PEERS, Peer  # noqa: E402
from mplan.compiler import compile_model, plan  # noqa: E402
from mplan.ir.interp import run  # noqa: E402
from mplan.pipeline import PIPELINES  # noqa: E402
from mplan.runtime.device import run_bundle  # noqa: E402

CORES = {"cortex-m7": "stm32f746", "cortex-m4": "stm32f412", "cortex-m55": "mps3-an547"}
#: Networks that run, and those that are too large for the parts and are only planned.
RUN = ("mcunet-in3", "mcunet-vww1", "mbv2-0.35", "proxyless-w0.3")
#: The core on which the plans of the least bytes run.
LEAST_ON = "cortex-m7"
#: How often the rows of the image may arrive for strips of columns, and the limit of work of these.
SCANS, STRIPS_FACTOR = 64, 1.05
#: Somewhat more bytes than the least, in which layers have room to work on several pixels at a time.
BUDGETS = {
    "mcunet-in3": 57_000,
    "mcunet-vww1": 13_100,
    "mbv2-0.35": 22_000,
    "proxyless-w0.3": 41_000,
}
PLANNED = ("mcunet-in3", "mcunet-vww1", "mbv2-0.35", "proxyless-w0.3", "mcunet-320kb", "mbv2-1.0")
HELD = ("mcunet-in3", "mcunet-vww1")
FACTORS = (1.0, 1.05)
#: The default pipeline without what other ways for the image to arrive would need.
PIPELINE = PIPELINES["mcu"].replace("compare=true", "compare=false")
PART = str(Path(__file__).with_name("mcu_large.toml"))

Row = dict[str, Any]


def asks(name: str, core: str) -> dict[str, Row]:
    """What is asked of a network on a core: the least bytes, or the least work within a budget."""
    least = {"least": {}, "strips": {"scans": SCANS, "max_mac_factor": STRIPS_FACTOR}}
    return {**(least if core == LEAST_ON else {}), "budget": {"budget": BUDGETS[name]}}


def run_row(captured: Any, name: str, core: str, asked_for: str, once: bool) -> Row:
    """Compile a network for a core as it is asked for and run it; the same integers twice."""
    ask = asks(name, core)[asked_for]
    asked: dict[str, Any] = {"target": CORES[core], "input": "rows", "io": "int8-nhwc", "name": "net"}
    asked |= {"pipeline": PIPELINE, **ask}
    samples = images(captured)
    wanted = list(references(captured, samples))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_model(captured, out=folder, **asked)
        for _ in range(1 if once else 2):
            found = run_bundle(folder, emulator="qemu", inputs=[[x.numpy()] for x in samples])
            ours = [outputs[0] for outputs in found.outputs]
            rows.append(
                {
                    "network": name,
                    "core": core,
                    "asked": asked_for,
                    "budget_bytes": ask.get("budget"),
                    "scans": compiled.report.stream.scans,
                    "mac_factor": compiled.report.mac_factor,
                    "macs": compiled.report.macs,
                    "arena_bytes": found.arena_bytes,
                    "written_bytes": found.arena_touched_bytes,
                    "stack_bytes": found.stack_bytes,
                    "flash_bytes": found.flash_bytes,
                    "instructions": found.instructions,
                    "exact": all(map(np.array_equal, ours, wanted)),
                }
            )
    if any(row != rows[0] for row in rows):
        raise SystemExit(f"{name} on {core}: two runs differ: {rows}")
    return {**rows[0], "runs": len(rows)}


def references(captured: Any, samples: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """What the integer reference makes of images, layer by layer."""
    layers = PIPELINE.replace("stream{when=needed,compare=false},", "")
    planned = plan(captured, target=PART, io="int8-nhwc", pipeline=layers).planned
    name = next(i.value.name for i in planned.graph.inputs if i.role == "input")
    for image in samples:
        yield run(planned.graph, {**planned.constants, name: image})[0].numpy()


def plan_rows(name: str) -> Iterator[Row]:
    """Plans of a network: bytes within factors of work, and with the image held in the arena."""
    captured = int8_network(name)
    for factor in FACTORS:
        yield _planned(captured, name, factor, "rows")
    yield _planned(captured, name, STRIPS_FACTOR, "rows", SCANS)
    if name in HELD:
        yield _planned(captured, name, 1.0, "whole")


def _planned(captured: Any, name: str, factor: float, arrival: str, scans: int = 1) -> Row:
    started = time.process_time()
    asked = {"target": PART, "input": arrival, "io": "int8-nhwc", "pipeline": PIPELINE, "scans": scans}
    result = plan(captured, max_mac_factor=factor, **asked)
    report = result.report
    certificate = next(
        (c for c in result.file.plan.certificates if c.subject.startswith("stream:")), None
    )
    return {
        "network": name,
        "input": arrival,
        "scans": report.stream.scans,
        "limit": factor,
        "arena_bytes": result.file.plan.peak_bytes("sram"),
        "bound_bytes": certificate.lower_bound_bytes if certificate else None,
        "mac_factor": report.mac_factor,
        "cpu_s": round(time.process_time() - started, 1),
    }


HEAD = (
    "network",
    "core",
    "asked, B",
    *("scans", "work"),
    "SRAM, B",
    "written, B",
    *("flash, B", "M instructions", "per MAC"),
)
PEER_HEAD = ("least SRAM of peers", "ratio", "fewest M instructions of peers", "ratio", "lost")
PLAN_HEAD = (
    "network",
    "image",
    "scans",
    "limit of work",
    "arena, B",
    "bound, B",
    "gap",
    "work",
    "CPU s",
)


def run_table(rows: Sequence[Row]) -> str:
    """What ran, beside the best peer in bytes and the best in instructions."""
    return _table((*HEAD, *PEER_HEAD), (_run_line(row) for row in rows))


def _run_line(row: Row) -> Iterator[str]:
    peers = PEERS[row["network"]]
    small = min(peers, key=lambda peer: peer.ram_bytes)
    counts = {p: c for p in peers if (c := dict(p.instructions).get(row["core"])) is not None}
    fast: Peer | None = min(counts, key=lambda peer: counts[peer], default=None)
    budget = row["budget_bytes"]
    yield from (row["network"], row["core"], f"{budget:,}" if budget else row["asked"])
    yield from (str(row["scans"]), f"{row['mac_factor']:.3f}×")
    yield from (f"{row['arena_bytes']:,}", f"{row['written_bytes']:,}")
    yield from (f"{row['flash_bytes']:,}", f"{row['instructions'] / 1e6:.1f}")
    yield f"{row['instructions'] / row['macs']:.2f}"
    yield from (f"{small.name} {small.ram_bytes:,}", f"{row['arena_bytes'] / small.ram_bytes:.3f}")
    if fast is None:
        yield from ("", "", "")
        return
    ratio = row["instructions"] / counts[fast]
    yield from (f"{fast.name} {counts[fast] / 1e6:.1f}", f"{ratio:.3f}", "lost" if ratio > 1 else "")


SHORT_HEAD = (
    *("network", "SRAM, B", "least of peers, B", "ratio", "in scans, B"),
    *("within, B", "Cortex-M7, M instructions", "TinyEngine", "Cortex-M55", "CMSIS-NN"),
)


def short_table(rows: Sequence[Row]) -> str:
    """A line per network: the fewest bytes, those with strips, whose rows come in several scans, and
    instructions within its budget beside peers'."""
    return _table(
        SHORT_HEAD, (_short_line(name, rows) for name in dict.fromkeys(r["network"] for r in rows))
    )


def _short_line(name: str, rows: Sequence[Row]) -> Iterator[str]:
    peers = {peer.name: peer for peer in PEERS[name]}
    own = {(r["core"], r["asked"]): r for r in rows if r["network"] == name}
    least, strips = (own[LEAST_ON, asked]["arena_bytes"] for asked in ("least", "strips"))
    small = min(p.ram_bytes for p in peers.values())
    yield from (name, f"{least:,}", f"{small:,}", f"{least / small:.2f}", f"{strips:,}")
    yield f"{BUDGETS[name]:,}"
    for core, peer in (("cortex-m7", "TinyEngine"), ("cortex-m55", "CMSIS-NN")):
        count = own[core, "budget"]["instructions"]
        yield from (f"{count / 1e6:.1f}", f"{count / dict(peers[peer].instructions)[core]:.2f}")


def plan_table(rows: Iterable[Row]) -> str:
    """What was planned, with its bounds."""
    return _table(PLAN_HEAD, (_plan_line(row) for row in rows))


def _plan_line(row: Row) -> Iterator[str]:
    bound = row["bound_bytes"]
    yield from (row["network"], "in the arena" if row["input"] == "whole" else "by rows")
    yield str(row["scans"])
    yield from (f"{row['limit']:g}×", f"{row['arena_bytes']:,}", f"{bound:,}" if bound else "")
    yield f"{row['arena_bytes'] / bound - 1:.1%}" if bound else ""
    yield from (f"{row['mac_factor']:.3f}×", f"{row['cpu_s']:.1f}")


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peers_table() -> str:
    """The peers' own figures."""
    head = ("network", "compiler", "SRAM, B", "flash, B", "M instructions, Cortex-M7", "Cortex-M55")
    rows = []
    for name, peers in PEERS.items():
        for peer in peers:
            counts = dict(peer.instructions)
            cells = (
                f"{counts[c] / 1e6:.1f}" if c in counts else "" for c in ("cortex-m7", "cortex-m55")
            )
            flash = f"{peer.flash_bytes:,}" if peer.flash_bytes else ""
            rows.append((name, peer.name, f"{peer.ram_bytes:,}", flash, *cells))
    return _table(head, rows)


def document(runs: Sequence[Row], plans: Sequence[Row]) -> str:
    """The page of results."""
    v2_bytes, v2_factor = MCUNETV2_MBV2
    return "\n\n".join(
        (
            "# int8 networks on microcontrollers",
            "`python benchmarks/mcu.py --write` makes this page. One inference in QEMU, the image "
            "arriving by rows, at the model's own work: with the least bytes, and within a budget that "
            "leaves room to work on several pixels at a time; and with the least bytes at "
            f"{STRIPS_FACTOR}× the work where all rows arrive in several scans, one for each strip of "
            "columns. Outputs equal the integer reference's in "
            "every byte on four images, and all integers are the same in two runs. Ratios are ours "
            "over the peer's.",
            run_table(runs),
            "## Plans",
            "Arenas for the least bytes within a limit of multiply-accumulates. The bound holds for "
            "every cut of the network's order into streams of the kinds that are searched.",
            plan_table(plans),
            f"MCUNetV2 publishes {v2_bytes:,} B at {v2_factor:.2f}× for MobileNetV2 1.0 "
            "(without the image and the third tensor of residuals).",
            "## Peers",
            (sys.modules["benchmarks.mcu_peers"].__doc__ or "").strip(),
            peers_table(),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and with ``--write`` keep the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=None, help="networks")
    parser.add_argument("--once", action="store_true", help="run each only once")
    parser.add_argument("--write", action="store_true", help="keep the results")
    given = parser.parse_args(argv)
    chosen = set(given.only) if given.only is not None else {*RUN, *PLANNED}
    runs: list[Row] = []
    for name in (n for n in RUN if n in chosen):
        captured = int8_network(name)
        for core in CORES:
            for ask in asks(name, core):
                print(f"{name} on {core}, {ask} …", file=sys.stderr)
                runs.append(run_row(captured, name, core, ask, given.once))
    plans: list[Row] = []
    for name in (n for n in PLANNED if n in chosen):
        print(f"planning {name} …", file=sys.stderr)
        plans += plan_rows(name)
    print(run_table(runs), plan_table(plans), sep="\n\n")
    if given.write:
        results = ROOT / "benchmarks" / "results"
        (results / "mcu.json").write_text(json.dumps({"runs": runs, "plans": plans}, indent=1) + "\n")
        (results / "mcu.md").write_text(document(runs, plans) + "\n")
        readme = ROOT / "README.md"
        readme.write_text(BLOCK.sub(lambda m: f"{m[1]}{short_table(runs)}\n{m[2]}", readme.read_text()))
    return int(not all(row["exact"] for row in runs))


BLOCK = re.compile(r"(<!-- measured by benchmarks/mcu.py -->\n).*?(<!-- end measured -->)", re.DOTALL)

if __name__ == "__main__":
    sys.exit(main())
