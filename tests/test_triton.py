"""Emitted attention kernels: right in Triton's interpreter, compiled for GPUs that are not here."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from syrupy.assertion import SnapshotAssertion

from mplan.codegen.triton.cross_compile import Compiled, compile_for
from mplan.codegen.triton.emit import Emitted, emit, emit_attention
from mplan.codegen.triton.private import load_module
from mplan.codegen.triton.spec import Attention, Tiling
from mplan.codegen.triton.tilings import shared_bytes, tilings_for
from mplan.codegen.triton.traffic import attention_bytes, spelled_out_bytes
from mplan.codes import CODES
from mplan.diagnostics import InfeasibleError, ToolError, UnsupportedError
from mplan.ir.graph import Loc, Op, Ref, Value
from mplan.ir.own_ops import attention as reference
from mplan.ir.types import DType, Sym, TensorType
from mplan.runtime.triton_attention import attention_callable, cache_folder
from mplan.targets.load import load_target
from mplan.targets.model import Memory
from tests.triton_cases import CASES, Case

GPUS = ("a100", "h100", "mi300x")
LIMITS = {DType.F32: 1e-5, DType.F16: 2e-3}


def attention(
    dtype: DType = DType.F16,
    depth: int = 64,
    *,
    rows: int = 1024,
    mask: tuple[int, ...] | None = None,
    mask_dtype: DType = DType.F32,
    **options: Any,
) -> Attention:
    type_ = TensorType(dtype, (2, 8, rows, depth))
    masked = TensorType(mask_dtype, mask) if mask else None
    return Attention(type_, type_, type_, masked, **options)


# --- in the interpreter ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    """The results of all cases, from one process whose Triton interprets."""
    script = Path(__file__).parent / "triton_cases.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(script.parents[1])
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["name"]: result for result in results}


@pytest.mark.parametrize("name", CASES)
def test_kernel_is_right(interpreted: dict[str, dict[str, Any]], name: str) -> None:
    result = interpreted[name]
    assert result["shape"]
    assert result["error"] < LIMITS[CASES[name].dtype]


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "rows" not in case.call])
def test_planned_bytes_are_moved_bytes(interpreted: dict[str, dict[str, Any]], name: str) -> None:
    assert interpreted[name]["moved"] == interpreted[name]["planned"] > 0


def test_bytes_of_a_call_depend_on_its_lengths(interpreted: dict[str, dict[str, Any]]) -> None:
    case = CASES["other lengths than planned"]
    rows, keys = case.call["rows"], case.call["keys"]
    query, key = (TensorType(DType.F32, (1, 2, n, 16)) for n in (rows, keys))
    expected = attention_bytes(Attention(query, key, key), Tiling(16, 16, 4, 2))
    assert interpreted["other lengths than planned"]["moved"] == expected


# --- planned bytes --------------------------------------------------------------------------------


def test_planned_bytes_by_hand() -> None:
    """Two programs of one batch: 3 tiles of at most 16 queries over 24 keys, in float16."""
    query, key = TensorType(DType.F16, (2, 40, 8)), TensorType(DType.F16, (2, 24, 8))
    plain = Attention(query, key, TensorType(DType.F16, (2, 24, 4)))
    per_program = 40 * (8 + 4) + 3 * 24 * (8 + 4)
    assert attention_bytes(plain, Tiling(16, 16, 4, 2)) == 2 * 2 * per_program
    causal = replace(plain, is_causal=True)
    seen = 16 + 24 + 24
    assert attention_bytes(causal, Tiling(16, 16, 4, 2)) == 2 * 2 * (40 + seen) * (8 + 4)
    keys = replace(plain, mask=TensorType(DType.BOOL, (24,)))
    assert attention_bytes(keys, Tiling(16, 16, 4, 2)) == 2 * (2 * per_program + 3 * 24)
    pairs = replace(plain, mask=TensorType(DType.F32, (40, 24)))
    assert attention_bytes(pairs, Tiling(16, 16, 4, 2)) == 2 * (2 * per_program + 40 * 24 * 4)


def test_separate_ops_move_more() -> None:
    """Six passes over the scores (write, scale 2, softmax 2, read) beside operands and result."""
    plain = attention()
    operands = 16 * 4 * 1024 * 64 * 2
    assert spelled_out_bytes(plain) == operands + 6 * 16 * 1024 * 1024 * 2
    assert attention_bytes(plain, Tiling(128, 64, 4, 3)) < spelled_out_bytes(plain) / 5


# --- cross-compilation ----------------------------------------------------------------------------


def compiled(spec: Attention, gpu: str, tiling: Tiling) -> Compiled:
    target = load_target(gpu)
    found = compile_for(emit(spec, target, (tiling,)), target)
    assert 0 < found.shared_bytes <= shared_bytes(spec, tiling, target)
    assert found.registers > 16
    assert len(found.binary) > 1000
    return found


SPECS = {
    "half, causal": attention(DType.F16, is_causal=True),
    "bfloat16, heads of 128": attention(DType.BF16, 128),
    "bfloat16, masked": attention(DType.BF16, 128, mask=(2, 1, 1024, 1024), mask_dtype=DType.BF16),
    "single": attention(DType.F32),
    "single, heads of 128, causal": attention(DType.F32, 128, is_causal=True),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", SPECS)
def test_planned_kernel_does_not_spill(name: str, gpu: str) -> None:
    tiling = tilings_for(SPECS[name], load_target(gpu))[0]
    assert compiled(SPECS[name], gpu, tiling).spill_bytes == 0


def test_binaries_are_for_their_gpu() -> None:
    tiling = Tiling(16, 16, 4, 1)
    for gpu, mark in (("a100", ".target sm_80"), ("h100", ".target sm_90"), ("mi300x", "gfx942")):
        assert mark in compiled(attention(), gpu, tiling).assembly


def test_spills_are_seen() -> None:
    """Too many registers for four warps: the figure that the other tests want to be 0 is not."""
    assert compiled(attention(DType.F32), "a100", Tiling(64, 32, 4, 2)).spill_bytes > 0


def test_odd_heads_and_one_query_compile() -> None:
    odd = TensorType(DType.BF16, (2, 4, 1, 80))
    keys = TensorType(DType.BF16, (2, 2, 77, 80))
    spec = Attention(odd, keys, TensorType(DType.BF16, (2, 2, 77, 36)), grouped=True)
    (tiling, *_) = tilings_for(spec, load_target("h100"))
    assert tiling.block_q == 16
    compiled(spec, "h100", tiling)


# --- tilings --------------------------------------------------------------------------------------


def test_tilings_fit_the_target() -> None:
    small = load_target("a100")
    shared = tuple(replace(m, size_bytes=60_000) if m.kind == "shared" else m for m in small.memories)
    small = replace(small, memories=shared)
    found = tilings_for(attention(depth=128), small)
    assert found
    assert set(found) < set(tilings_for(attention(depth=128), load_target("a100")))
    assert all(shared_bytes(attention(depth=128), t, small) <= 60_000 for t in found)


def test_blocks_are_no_longer_than_the_sequences() -> None:
    assert {t.block_q for t in tilings_for(attention(rows=20), load_target("h100"))} == {32}


def test_too_little_shared_memory() -> None:
    target = replace(load_target("a100"), memories=(Memory("shared", "shared", 1000),))
    with pytest.raises(
        InfeasibleError, match=r"needs [\d,]+ B of shared memory, a100 has 1,000 B"
    ) as e:
        tilings_for(attention(), target)
    assert e.value.code == "MP521" and e.value.code in CODES


# --- the module -----------------------------------------------------------------------------------


@pytest.fixture
def masked() -> Emitted:
    spec = Attention(
        TensorType(DType.F16, (2, 6, 1000, 80)),
        TensorType(DType.F16, (2, 2, 1000, 80)),
        TensorType(DType.F16, (2, 2, 1000, 64)),
        TensorType(DType.F32, (2, 1, 1000, 1000)),
        is_causal=True,
        grouped=True,
    )
    target = load_target("h100")
    return emit(spec, target, tilings_for(spec, target), origin="%out, model.py:7", plan_digest="abc")


def test_text_of_a_masked_kernel(masked: Emitted, snapshot: SnapshotAssertion) -> None:
    assert masked.source == snapshot


def test_text_of_a_plain_kernel(snapshot: SnapshotAssertion) -> None:
    spec, target = attention(), load_target("a100")
    assert emit(spec, target, tilings_for(spec, target)).source == snapshot


def test_header_says_what_is_predicted(masked: Emitted) -> None:
    header = ast.get_docstring(ast.parse(masked.source)) or ""
    assert f"{masked.moved_bytes:,} B" in header
    assert "plan abc" in header and "model.py:7" in header and "f16[2,6,1000,80]" in header


def test_op_of_a_graph(tmp_path: Path) -> None:
    type_ = TensorType(DType.F16, (2, 4, 100, 32))
    values = {n: Value(n, type_) for n in ("q", "k", "v")}
    args = (("query", Ref("q")), ("key", Ref("k")), ("value", Ref("v")), ("scale", 0.5))
    op = Op("mplan.attention", args, (Value("out", type_),), Loc("net.py", 12, "block"))
    made = emit_attention(op, values, load_target("h100"))
    assert made.attention == Attention(type_, type_, type_, scale=0.5)
    assert made.moved_bytes == attention_bytes(made.attention, made.tilings[0])
    assert "For out of the model, net.py:12 (block)" in made.source


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (attention(DType.F64), "its elements are f64"),
        (attention(depth=320), "its heads have 320 elements"),
        (attention(rows=0), "an axis without elements"),
        (
            Attention(*(TensorType(DType.F16, (2, Sym("n"), 8)),) * 3),
            "its sizes are known only at run time",
        ),
    ],
)
def test_types_without_a_kernel(spec: Attention, reason: str) -> None:
    values = {n: Value(n, t) for n, t in zip("qkv", (spec.query, spec.key, spec.value), strict=True)}
    args = (("query", Ref("q")), ("key", Ref("k")), ("value", Ref("v")))
    op = Op("mplan.attention", args, (Value("out", spec.query),), Loc("net.py", 12))
    with pytest.raises(UnsupportedError, match=reason) as e:
        emit_attention(op, values, load_target("h100"))
    assert e.value.code == "MP520" and e.value.code in CODES
    assert e.value.where is not None and e.value.where.line == 12


def test_no_compiler_for_a_microcontroller() -> None:
    made = emit(attention(), load_target("h100"), (Tiling(16, 16, 4, 1),))
    with pytest.raises(ToolError, match="cannot compile for stm32f746") as e:
        compile_for(made, "stm32f746")
    assert e.value.code == "MP522" and e.value.code in CODES


@pytest.fixture
def module(tmp_path: Path, masked: Emitted) -> Iterator[Any]:
    path = tmp_path / "kernel_under_test.py"
    path.write_text(masked.source)
    yield load_module(path, path.stem)
    del sys.modules[path.stem]


def test_module_refuses_other_tensors(module: Any) -> None:
    q, k, v = (torch.zeros(2, h, 5, e, dtype=torch.float16) for h, e in ((6, 80), (2, 80), (2, 64)))
    mask = torch.zeros(2, 1, 5, 5)
    with pytest.raises(ValueError, match="heads of 80, 80 and 64 elements"):
        module.run(q[..., :64], k, v, mask)
    with pytest.raises(ValueError, match=r"torch\.float16"):
        module.run(q.float(), k, v, mask)
    with pytest.raises(ValueError, match="needs a mask"):
        module.run(q, k, v)
    with pytest.raises(ValueError, match=r"masks of torch\.float32"):
        module.run(q, k, v, mask > 0)
    with pytest.raises(ValueError, match="2 batch dimensions"):
        module.run(q[None], k, v, mask)
    with pytest.raises(ValueError, match="the result"):
        module.run(q, k, v, mask, torch.zeros(2, 6, 5, 64))


def test_all_tilings_can_be_tuned(module: Any, masked: Emitted) -> None:
    configs = module._tuned().configs
    found = {(c.kwargs["BLOCK_Q"], c.kwargs["BLOCK_K"], c.num_warps, c.num_stages) for c in configs}
    assert found == {(t.block_q, t.block_k, t.warps, t.stages) for t in masked.tilings}


# --- as a function --------------------------------------------------------------------------------


def test_on_the_cpu_it_is_torchs() -> None:
    spec = attention(DType.F32, 16, rows=20, mask=(20, 20), is_causal=True)
    function = attention_callable(spec, load_target("cpu"))
    q, k, v, mask = (*(torch.randn(2, 8, 20, 16) for _ in range(3)), torch.randn(20, 20))
    expected = reference(q, k, v, mask, is_causal=True)
    torch.testing.assert_close(function(q, k, v, mask), expected)
    out = torch.empty_like(q)
    assert function(q, k, v, mask, out) is out
    torch.testing.assert_close(out, expected)


def test_kernels_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, target = attention(mask=(1024, 1024), scale=0.123), load_target("h100")
    attention_callable(spec, target)
    (path,) = cache_folder().iterdir()
    assert path.parent == tmp_path / "mplan" / "triton"
    assert path.read_text() == emit(spec, target, tilings_for(spec, target)).source


def test_a_cached_kernel_that_was_edited_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, target = attention(mask=(1024, 1024), scale=0.321), load_target("h100")
    made = emit(spec, target, tilings_for(spec, target))
    cache_folder().mkdir(parents=True)
    path = cache_folder() / f"attention_{made.digest[:32]}.py"
    path.write_text("raise SystemExit")
    attention_callable(spec, target)
    assert path.read_text() == made.source


def test_plain_attention_on_a_gpu_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    attention_callable(attention(is_causal=True), load_target("h100"))
    attention_callable(attention(DType.F64, mask=(1024, 1024)), load_target("h100"))
    assert not cache_folder().exists()
    with pytest.raises(UnsupportedError, match="MP520"):
        attention_callable(attention(DType.F64), load_target("h100"), choice="kernel")


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case.call])
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32], ids=lambda t: t.value)
@pytest.mark.parametrize("tune", [False, True])
def test_kernel_on_the_gpu(name: str, dtype: DType, tune: bool) -> None:
    from tests.triton_cases import inputs

    case: Case = replace(CASES[name], dtype=dtype)
    values = {k: v.cuda() for k, v in inputs(case, case.query[-2], case.key[-2]).items()}
    types = {k: TensorType(DType.of_torch(str(v.dtype)), tuple(v.shape)) for k, v in values.items()}
    spec = Attention(**types, is_causal=case.causal, scale=case.scale, grouped=case.grouped)
    function = attention_callable(spec, load_target("h100"), choice="kernel", tune=tune)
    mask = values.pop("mask", None)
    wide = {k: v.double() for k, v in values.items()}
    wanted = reference(
        **wide, attn_mask=mask, is_causal=case.causal, scale=case.scale, enable_gqa=case.grouped
    )
    found = function(**values, attn_mask=mask)
    limit = {DType.F16: 4e-3, DType.BF16: 3e-2, DType.F32: 2e-5}[dtype]
    torch.testing.assert_close(found.double(), wanted, atol=limit, rtol=limit)
