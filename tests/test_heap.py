"""The CPU heap: what it measures, where it puts tensors, and what it must never do to PyTorch."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from mplan.diagnostics import ToolError, UserError
from mplan.runtime import heap
from mplan.runtime.heap import UNPLANNED, Arena, Miss, MissReason, Slot, SlotTable
from mplan.runtime.native import binding, build

PAGE = os.sysconf("SC_PAGESIZE")
FLOAT = 4


@pytest.fixture(autouse=True)
def installed() -> None:
    heap.install()
    torch.manual_seed(0)


def bytes_of(n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.uint8)


def mapped_pages(start: int, size: int) -> set[int]:
    """Page offsets of [start, start + size) that this process has mapped."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        lo, hi = (int(word, 16) for word in line.split()[0].split("-"))
        for page in range(max(lo, start), min(hi, start + size), PAGE):
            found.add((page - start) // PAGE)
    return found


# ---- the meter ----


def test_peak_and_level_of_a_known_sequence() -> None:
    with heap.measure() as m:
        a = bytes_of(1000)
        b = bytes_of(77)
        del a
        c = bytes_of(500)
        assert (m.current_bytes, m.peak_bytes, m.allocations) == (577, 1077, 3)
        del b, c
    assert (m.current_bytes, m.peak_bytes, m.allocations) == (0, 1077, 3)
    later = bytes_of(5000)
    assert m.peak_bytes == 1077
    del later


def test_nested_meters_count_from_their_own_level() -> None:
    with heap.measure() as outer:
        a = bytes_of(100)
        with heap.measure() as inner:
            b = bytes_of(30)
            del b
            del a
        c = bytes_of(60)
    assert (inner.peak_bytes, inner.current_bytes) == (30, -100)
    assert (outer.peak_bytes, outer.current_bytes) == (130, 60)
    del c


def test_empty_requests_count_nothing() -> None:
    with heap.measure() as m, heap.record() as tape:
        held = torch.empty(0)
    assert held.data_ptr() == 0
    assert (m.peak_bytes, m.allocations, tape.events) == (0, 0, ())


def test_blocks_freed_on_another_thread_leave_the_level() -> None:
    with heap.measure() as m:
        box = [bytes_of(4096)]
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
    assert (m.peak_bytes, m.current_bytes) == (4096, 0)


def test_many_threads_leave_the_level_exact() -> None:
    def work(seed: int) -> None:
        held: list[torch.Tensor] = []
        for k in range(3000):
            held.append(bytes_of(1 + (seed * 7919 + k * 104729) % 5000))
            if len(held) > 300:
                del held[(k * 31) % len(held)]

    with heap.measure() as m:
        threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert (m.current_bytes, m.allocations) == (0, 8 * 3000)


def test_out_of_memory_is_pytorchs_error_and_counts_nothing() -> None:
    with heap.measure() as m, pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        bytes_of(1 << 60)
    assert (m.peak_bytes, m.current_bytes) == (0, 0)


def test_a_block_older_than_the_heap_is_freed_by_pytorch() -> None:
    """oneDNN frees with whichever allocator is current; so does this, with a foreign block."""
    c10 = ctypes.CDLL(None, handle=build.libc10())
    original = c10._ZN3c1022GetDefaultCPUAllocatorEv
    original.restype = ctypes.c_void_p
    vtable = ctypes.c_void_p.from_address(original()).value
    assert vtable is not None
    raw_deleter_at = ctypes.c_void_p.from_address(vtable + 4 * 8).value
    assert raw_deleter_at is not None
    free_at = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(raw_deleter_at)(original())
    libc = ctypes.CDLL(None)
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), 64, 4096) == 0

    ours = c10._ZN3c1015GetCPUAllocatorEv
    ours.restype = ctypes.c_void_p
    our_vtable = ctypes.c_void_p.from_address(ours()).value
    assert our_vtable not in (None, vtable)
    our_raw_deleter = ctypes.c_void_p.from_address(our_vtable + 4 * 8).value
    our_free = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(our_raw_deleter)(ours())
    assert our_free not in (None, free_at)
    before = heap.level_bytes()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(our_free)(block)
    assert heap.level_bytes() == before


# ---- the tape ----


def test_tape_tells_outputs_from_scratch() -> None:
    x = torch.randn(1, 8, 16, 16)
    w = torch.randn(8, 8, 3, 3)
    with heap.record() as tape:
        y = torch.nn.functional.conv2d(x, w, padding=1)
        z = y.relu()
        del y
    out = tape.index_of(z.data_ptr())
    assert out is not None
    survivors = [a for a in tape.allocations if a.freed_at is None]
    assert survivors == [tape.allocations[out]]
    assert survivors[0].size_bytes == z.nbytes
    for alloc in tape.allocations:
        assert tape.events[alloc.at] is alloc
        if alloc.freed_at is not None:
            free = tape.events[alloc.freed_at]
            assert isinstance(free, heap.Free)
            assert (free.index, free.at) == (alloc.index, alloc.freed_at)
            assert free.at > alloc.at
    assert tape.index_of(x.data_ptr()) is None


def test_tape_finds_views_and_ignores_reused_addresses() -> None:
    with heap.record() as tape:
        for _ in range(20):
            bytes_of(640)
        kept = bytes_of(640)
    assert len(tape.allocations) == 21
    assert tape.index_of(kept[100:].data_ptr()) == 20
    assert tape.index_of(kept.data_ptr() + 640) != 20


def test_tapes_nest_and_see_only_their_thread() -> None:
    def other() -> None:
        bytes_of(999)

    with heap.record() as outer:
        a = bytes_of(10)
        with heap.record() as inner:
            b = bytes_of(20)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            del a
    assert [x.size_bytes for x in inner.allocations] == [20]
    assert len(inner.events) == 1, "the release of an older block is no event of this tape"
    assert [x.size_bytes for x in outer.allocations] == [10, 20]
    assert outer.allocations[0].freed_at == 2
    del b


# ---- replay ----


def test_operations_land_where_planned_and_are_bit_equal() -> None:
    x = torch.randn(32, 64)
    w = torch.randn(64, 64)
    ops = [lambda t: t @ w, torch.relu, lambda t: torch.softmax(t, 1), lambda t: t + t]
    eager = x
    for op in ops:
        eager = op(eager)
    size = 32 * 64 * FLOAT
    offsets = [0, size, 0, size]
    table = SlotTable([[Slot(size, offset)] for offset in offsets])
    with Arena(2 * size) as arena:
        with heap.measure() as m, arena.replay(table) as run:
            arena.poison()
            value = x
            for k, op in enumerate(ops):
                run.enter(k)
                value = op(value)
                assert run.leave() == 0
                assert value.data_ptr() == arena.base + offsets[k]
                arena.poison()
        assert (m.peak_bytes, m.allocations, run.misses) == (0, 0, ())
        assert torch.equal(value, eager)
        assert arena.live_bytes == size
    assert torch.equal(value, eager)


def test_scratch_of_onednn_replays_from_a_recorded_plan() -> None:
    """A convolution through raw_allocate: scratch and output at the planned offsets."""
    x = torch.randn(2, 16, 20, 20)
    net = torch.nn.Conv2d(16, 24, 3, padding=1).eval()
    with torch.no_grad():
        eager = net(x)
        with heap.record() as tape:
            recorded = net(x)
        output = tape.index_of(recorded.data_ptr())
        assert output is not None
        assert len(tape.allocations) > 1, "oneDNN packs the weights"
        offset, slots = 0, []
        for alloc in tape.allocations:
            slots.append(Slot(alloc.size_bytes, offset))
            offset += -(-alloc.size_bytes // 64) * 64
        with Arena(offset) as arena, heap.measure() as m:
            with arena.replay(SlotTable([slots])) as run:
                run.enter(0)
                y = net(x)
                run.leave()
            assert y.data_ptr() == arena.base + slots[output].offset
            assert run.misses == ()
            assert (m.peak_bytes, m.allocations) == (0, 0)
            assert arena.live_bytes == y.nbytes
            assert torch.equal(y, eager)


def test_misses_are_served_by_the_heap_and_reported() -> None:
    table = SlotTable([[Slot(100, 0), UNPLANNED, Slot(100, 64)], []])
    with Arena(4096) as arena, heap.measure() as m:
        with arena.replay(table) as run:
            run.enter(0)
            a = bytes_of(101)
            b = bytes_of(7)
            run.leave()
            between = bytes_of(50)
            run.enter(1)
            c = bytes_of(3)
            assert run.leave() == 3
            run.enter(7)
            d = bytes_of(4)
            run.leave()
        assert run.misses == (
            Miss(0, 0, 101, MissReason.TOO_LARGE),
            Miss(0, 1, 7, MissReason.UNPLANNED),
            Miss(1, 0, 3, MissReason.BEYOND_SLOTS),
            Miss(7, 0, 4, MissReason.BEYOND_SLOTS),
        )
        assert arena.live_bytes == 0
        assert m.current_bytes == 101 + 7 + 50 + 3 + 4
    del a, b, c, d, between


def test_smaller_requests_fit_and_empty_ones_take_no_slot() -> None:
    with Arena(4096) as arena, arena.replay(SlotTable([[Slot(100, 0), Slot(100, 128)]])) as run:
        run.enter(0)
        a = bytes_of(40)
        empty = torch.empty(0)
        b = bytes_of(100)
        run.leave()
        assert (a.data_ptr(), b.data_ptr()) == (arena.base, arena.base + 128)
        assert empty.data_ptr() == 0
        assert arena.live_bytes == 140


def test_a_live_tensor_is_never_overwritten() -> None:
    table = SlotTable([[Slot(256, 0)], [Slot(256, 64)], [Slot(64, 256)], [Slot(64, 0)]])
    with Arena(4096) as arena, arena.replay(table) as run:
        run.enter(0)
        a = torch.full((256,), 7, dtype=torch.uint8)
        run.enter(1)
        b = torch.full((256,), 9, dtype=torch.uint8)
        run.enter(2)
        c = torch.full((64,), 3, dtype=torch.uint8)
        run.leave()
        assert bool((a == 7).all())
        assert c.data_ptr() == arena.base + 256, "the neighbouring bytes are free"
        del a
        run.enter(3)
        d = bytes_of(64)
        run.leave()
        assert d.data_ptr() == arena.base
    assert run.misses == (Miss(1, 0, 256, MissReason.OVERLAPS_LIVE),)
    assert bool((b == 9).all())


@pytest.mark.parametrize("input_dies_first", [True, False])
def test_an_in_place_slot_reuses_the_bytes_of_its_input(input_dies_first: bool) -> None:
    table = SlotTable([[Slot(4 * PAGE, 0)], [Slot(PAGE, 0, in_place=True)]])
    arena = Arena(6 * PAGE)
    with arena.replay(table) as run:
        run.enter(0)
        x = torch.full((4 * PAGE,), 3, dtype=torch.uint8)
        run.enter(1)
        y = torch.neg(x[:PAGE])
        run.leave()
    assert run.misses == ()
    assert y.data_ptr() == x.data_ptr() == arena.base
    assert arena.live_bytes == 5 * PAGE
    base = arena.base
    arena.close()
    assert mapped_pages(base, 6 * PAGE) == {0, 1, 2, 3}
    if input_dies_first:
        del x
        assert bool((y == 253).all())
        del y
    else:
        del y
        assert bool((x[PAGE:] == 3).all())
        del x
    assert not mapped_pages(base, 6 * PAGE)


def test_replay_is_of_its_thread_only() -> None:
    table = SlotTable([[Slot(64, 0)] * 10])
    seen: list[int] = []

    def other() -> None:
        seen.append(bytes_of(64).data_ptr())

    with Arena(4096) as arena, arena.replay(table) as run:
        run.enter(0)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        mine = bytes_of(64)
        run.leave()
        assert mine.data_ptr() == arena.base
        assert not arena.base <= seen[0] < arena.base + 4096
        assert run.misses == ()


def test_two_threads_replay_their_own_arenas() -> None:
    failures: list[str] = []
    start = threading.Barrier(2)

    def work(byte: int) -> None:
        table = SlotTable([[Slot(1000, 0)], [Slot(1000, 1024)]])
        start.wait()
        for _ in range(200):
            with Arena(2048) as arena, arena.replay(table) as run:
                run.enter(0)
                a = torch.full((1000,), byte, dtype=torch.uint8)
                run.enter(1)
                b = a + a
                run.leave()
                where = (a.data_ptr() - arena.base, b.data_ptr() - arena.base)
            if where != (0, 1024) or run.misses or int(b.min()) != 2 * byte:
                failures.append(f"{where} {run.misses}")

    threads = [threading.Thread(target=work, args=(k,)) for k in (3, 90)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_an_exception_ends_the_replay_and_loses_nothing() -> None:
    level = heap.level_bytes()
    arena = Arena(4096)
    with (
        pytest.raises(RuntimeError, match="shape"),
        arena.replay(SlotTable([[Slot(64, 0), Slot(64, 64)]])) as run,
    ):
        run.enter(0)
        kept = torch.full((16,), 1.5)
        torch.zeros(3, 4) @ torch.zeros(3, 4)
    after = bytes_of(64)
    assert not arena.base <= after.data_ptr() < arena.base + 4096
    arena.close()
    assert bool((kept == 1.5).all())
    del kept, after
    gc.collect()
    assert heap.level_bytes() == level


def test_replays_nest() -> None:
    table = SlotTable([[Slot(64, 0), Slot(64, 64)]])
    with Arena(4096) as outer, Arena(4096) as inner, outer.replay(table) as a:
        a.enter(0)
        first = bytes_of(64)
        with inner.replay(table) as b:
            b.enter(0)
            nested = bytes_of(64)
            b.leave()
        second = bytes_of(64)
        a.leave()
        assert nested.data_ptr() == inner.base
        assert (first.data_ptr(), second.data_ptr()) == (outer.base, outer.base + 64)


def test_a_fork_inherits_a_working_heap() -> None:
    with Arena(4096) as arena, arena.replay(SlotTable([[Slot(64, 0)]])) as run:
        child = os.fork()
        if child == 0:
            run.enter(0)
            good = bytes_of(64).data_ptr() == arena.base and bytes_of(9).numel() == 9
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_enter_and_leave_cost_little() -> None:
    n = 2000
    table = SlotTable([[Slot(256, 0)]] * n)
    with Arena(4096) as arena, arena.replay(table) as run:
        enter, leave = run.enter, run.leave
        best = min(_loop(enter, leave, n) for _ in range(5))
    assert best / n < 20e-6
    assert run.misses == ()


def _loop(enter: object, leave: object, n: int) -> float:
    begun = time.perf_counter()
    for k in range(n):
        enter(k)  # type: ignore[operator]
        leave()  # type: ignore[operator]
    return time.perf_counter() - begun


# ---- closing ----


def fill_arena(arena: Arena, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    """One tensor per (offset, size), filled with its number."""
    with arena.replay(SlotTable([[Slot(size, offset) for offset, size in spans]])) as run:
        run.enter(0)
        made = [torch.full((s,), k + 1, dtype=torch.uint8) for k, (_, s) in enumerate(spans)]
        run.leave()
    assert run.misses == ()
    return made


def test_survivors_keep_their_pages_and_no_others() -> None:
    arena = Arena(10 * PAGE)
    # b and c share page 4; d is alone; a dies before the arena is closed
    spans = [(0, 2 * PAGE), (3 * PAGE, PAGE + 64), (4 * PAGE + 64, 128), (8 * PAGE, 64)]
    with heap.measure() as m:
        a, b, c, d = fill_arena(arena, spans)
        base, whole = arena.base, 10 * PAGE
        del a
        assert mapped_pages(base, whole) == set(range(10))
        arena.close()
        assert mapped_pages(base, whole) == {3, 4, 8}
        assert m.current_bytes == (PAGE + 64 + 128 + 64) - whole
        del b
        assert mapped_pages(base, whole) == {4, 8}
        assert bool((c == 3).all())
        del c
        assert mapped_pages(base, whole) == {8}
        assert bool((d == 4).all())
        del d
        assert mapped_pages(base, whole) == set()
    assert m.current_bytes == -whole
    assert m.peak_bytes == 0


def test_an_arena_counts_whole_then_its_survivors_then_nothing() -> None:
    with heap.measure() as m:
        with Arena(100_000) as arena:
            (out,) = fill_arena(arena, [(64, 1000)])
            assert m.current_bytes == 100_000
        assert m.current_bytes == 1000
        view = out[10:20]
        del out
        assert m.current_bytes == 1000
        del view
    assert (m.current_bytes, m.peak_bytes, m.allocations) == (0, 100_000, 0)


def test_survivors_die_on_other_threads() -> None:
    level = heap.level_bytes()
    arena = Arena(32 * PAGE)
    base = arena.base
    tensors = fill_arena(arena, [(k * PAGE // 2, PAGE // 2) for k in range(64)])
    arena.close()
    shares = [tensors[k::4] for k in range(4)]
    del tensors
    threads = [threading.Thread(target=share.clear) for share in shares]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert heap.level_bytes() == level
    assert mapped_pages(base, 32 * PAGE) == set()


def test_recycle_keeps_survivors_and_the_warm_pages() -> None:
    arena = Arena(6 * PAGE)
    with heap.measure() as m:
        first = fill_arena(arena, [(0, PAGE), (2 * PAGE, 100), (4 * PAGE, PAGE)])
        (kept,) = first[1:2]
        old = arena.base
        del first
        arena.recycle()
        assert arena.base != old
        assert m.current_bytes == 100
        assert mapped_pages(old, 6 * PAGE) == {2}
        assert bytes(arena.view(4 * PAGE, PAGE)) == b"\x03" * PAGE, "moved, not cleared"
        assert arena.live_bytes == 0
        fill_arena(arena, [(0, 6 * PAGE)])
        assert m.peak_bytes == 100
        assert bool((kept == 2).all())
        del kept
        assert m.current_bytes == 0
        now = arena.base
        arena.recycle()
        assert arena.base == now, "nothing survives: the mapping stays"
    arena.close()


def test_a_forgotten_arena_is_closed_by_the_collector() -> None:
    level = heap.level_bytes()
    arena = Arena(1 << 20)
    (out,) = fill_arena(arena, [(0, 300)])
    del arena
    gc.collect()
    assert heap.level_bytes() == level + 300
    assert bool((out == 1).all())


def test_poison_spares_the_living() -> None:
    with Arena(1024) as arena:
        (live,) = fill_arena(arena, [(64, 64)])
        arena.poison(0, 256, 0x5A)
        assert bytes(arena.view(0, 64)) == b"\x5a" * 64
        assert bool((live == 1).all())
        assert bytes(arena.view(128, 128)) == b"\x5a" * 128
        assert bytes(arena.view(256, 4)) == b"\0" * 4


def test_wrong_uses_of_an_arena_are_refused() -> None:
    with pytest.raises(UserError, match="-1 B") as error:
        Arena(-1)
    assert error.value.code == "MP563"
    with pytest.raises(UserError, match="multiples of 64"):
        SlotTable([[Slot(10, 8)]])
    with pytest.raises(UserError, match="not negative"):
        SlotTable([[Slot(-8, 0)]])
    with Arena(128) as arena:
        with pytest.raises(UserError, match="byte 192, the arena at 128"):
            arena.replay(SlotTable([[Slot(128, 64)]])).__enter__()
        with pytest.raises(UserError, match="128"):
            arena.poison(64, 65)
        with arena.replay(SlotTable([])):
            for misuse in (arena.close, arena.recycle):
                with pytest.raises(UserError, match="in use by a replay"):
                    misuse()
    arena.close()
    for misuse in (arena.recycle, arena.poison, arena.view, lambda: arena.live_bytes):
        with pytest.raises(UserError, match="closed"):
            misuse()


def test_an_arena_beyond_the_address_space_is_an_error_with_its_size() -> None:
    level = heap.level_bytes()
    with pytest.raises(ToolError, match="1,152,921,504,606,846,976 B") as error:
        Arena(1 << 60)
    assert error.value.code == "MP564"
    assert heap.level_bytes() == level


# ---- PyTorch on top of it ----


def test_numpy_shares_arena_memory() -> None:
    import numpy as np

    arena = Arena(PAGE)
    (tensor,) = fill_arena(arena, [(0, 256)])
    array = tensor.numpy()
    back = torch.from_numpy(array)
    arena.close()
    del tensor
    array += 1
    assert bool((back == 2).all())
    assert np.asarray(back).ctypes.data == array.ctypes.data
    with heap.measure() as m:
        assert torch.from_numpy(np.zeros(100)).sum() == 0
    assert m.peak_bytes <= 64, "numpy's memory is not PyTorch's"


def test_arena_tensors_save_clone_resize_and_share() -> None:
    arena = Arena(8 * PAGE)
    saved, resized, shared = fill_arena(arena, [(0, PAGE), (2 * PAGE, 100), (4 * PAGE, 100)])
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    copy = saved.clone()
    arena.close()
    del saved
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), copy)
    resized.resize_(3 * PAGE)
    assert bool((resized[:100] == 2).all())
    assert resized.untyped_storage().resize_(0) is not None
    shared.share_memory_()
    assert bool((shared == 3).all())


def test_lazy_clones_of_arena_tensors_are_separate() -> None:
    arena = Arena(PAGE)
    (source,) = fill_arena(arena, [(0, 128)])
    clone = torch._lazy_clone(source)
    arena.close()
    clone += 5
    assert bool((source == 1).all())
    assert bool((clone == 6).all())


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.conv = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "aot_eager"])
def test_training_steps_return_to_the_level(compiled: bool) -> None:
    net = Residual()
    call = torch.compile(net, backend="aot_eager") if compiled else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, target = torch.randn(4, 3, 24, 24), torch.randint(0, 10, (4,))
    levels, losses = [], []
    for _ in range(4):
        optimizer.zero_grad()
        with heap.measure() as m:
            loss = torch.nn.functional.cross_entropy(call(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            del loss
        levels.append(m.current_bytes)
        assert m.peak_bytes > 4 * 16 * 24 * 24 * FLOAT, "at least one activation"
    parameters = sum(p.nbytes for p in net.parameters())
    assert levels[1:] == [parameters] * 3, "what is left is the gradients"
    assert losses[-1] < losses[0]


# ---- building, loading, probing ----


def test_every_compiler_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = (*build.FLAGS, "-Wall", "-Wextra", "-Wconversion", "-Werror")
    monkeypatch.setattr(build, "FLAGS", strict)
    for k, compiler in enumerate(build.compilers()):
        assert build.compile_to(tmp_path / f"{k}.so", compiler) == "", compiler
    cross = (*build.compilers()[-1], "-target", "aarch64-linux-gnu.2.28")
    assert build.compile_to(tmp_path / "aarch64.so", cross) == ""


def test_the_cache_is_used_and_keyed_by_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.library()
    assert first.parent == tmp_path / "mplan"
    stamp = first.stat().st_mtime_ns
    assert build.library() == first
    assert first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))
    assert build.library() != first
    assert len(list((tmp_path / "mplan").iterdir())) == 2, "no temporary files are left"


def test_no_working_compiler_is_an_error_that_names_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "compilers", lambda: [("false",), ("sh", "-c", "echo no >&2; false")])
    with pytest.raises(ToolError) as error:
        build.library()
    assert error.value.code == "MP561"
    assert [text for text, _ in error.value.notes] == [
        "false: exit status 1",
        "sh -c echo no >&2; false: no",
    ]


@pytest.mark.parametrize(
    ("platform", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")]
)
def test_other_platforms_are_refused(
    platform: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.sys, "platform", platform)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    with pytest.raises(ToolError, match=machine) as error:
        build.library()
    assert error.value.code == "MP560"


FAKE = r"""
/* A libc10 with the exported names of the real one. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
typedef void (*Deleter)(void *);
typedef struct {
    void *data; Deleter deleter; void *ctx; int8_t type, index;
#ifdef LONG_DATA_PTR
    long more[4];
#endif
} DataPtr;
static void release(void *p) { free(p); }
static void other(void *p) { free(p); }
static DataPtr allocate(void *self, size_t n)
{
    (void)self; (void)other;
    char *p = aligned_alloc(64, n + 64);
    DataPtr d = {p, release, p, 0, -1};
#ifdef HEADER_BEFORE_DATA
    d.data = p + 64;
#endif
#ifdef OTHER_DELETER
    d.deleter = other;
#endif
#ifdef LONG_DATA_PTR
    d.more[0] = 1;
#endif
    return d;
}
static void destroy(void *self) { (void)self; }
bool _ZNK3c109Allocator18is_simple_data_ptrERKNS_7DataPtrE(const void *self, const DataPtr *p)
{
    (void)self;
    return p->data == p->ctx;
}
static Deleter raw_deleter(const void *self) { (void)self; return release; }
static void copy(const void *self, void *to, const void *from, size_t n)
{
    (void)self; (void)to; (void)from; (void)n;
}
static void pure(void) { abort(); }
#define SIMPLE (void *)_ZNK3c109Allocator18is_simple_data_ptrERKNS_7DataPtrE
const void *_ZTIN3c109AllocatorE[2];
#ifdef NEW_VIRTUAL
#define EXTRA , (void *)pure
#else
#define EXTRA
#endif
#ifdef REORDERED
#define ORDER SIMPLE, (void *)pure
#else
#define ORDER (void *)pure, SIMPLE
#endif
const void *_ZTVN3c109AllocatorE[] = {0, _ZTIN3c109AllocatorE, 0, 0, ORDER, (void *)raw_deleter,
                                      (void *)pure EXTRA};
static const void *concrete[] = {(void *)destroy, (void *)destroy, (void *)allocate, SIMPLE,
#ifdef DATA_IN_VTABLE
                                 _ZTIN3c109AllocatorE,
#else
                                 (void *)raw_deleter,
#endif
                                 (void *)copy};
static const void **object = concrete;
#ifdef FOREIGN_ALLOCATOR
void *_ZN3c1015GetCPUAllocatorEv(void)
{
    void **copy = malloc(sizeof *copy);
    *copy = concrete;
    return copy;
}
#else
void *_ZN3c1015GetCPUAllocatorEv(void) { return &object; }
#endif
#ifndef NO_SETTER
void _ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh(void *a, uint8_t n) { (void)a; (void)n; }
#endif
"""


@pytest.mark.parametrize(
    ("difference", "result"),
    [
        ("NONE", 0),
        ("NO_SETTER", 1),
        ("NEW_VIRTUAL", 11),
        ("REORDERED", 11),
        ("DATA_IN_VTABLE", 12),
        ("FOREIGN_ALLOCATOR", 12),
        ("LONG_DATA_PTR", 13),
        ("HEADER_BEFORE_DATA", 13),
        ("OTHER_DELETER", 13),
    ],
)
def test_the_probe_knows_a_changed_pytorch(difference: str, result: int, tmp_path: Path) -> None:
    source, library = tmp_path / "fake.c", tmp_path / "libfake.so"
    source.write_text(FAKE)
    flags = [f for f in build.FLAGS if not f.startswith("-fvis")]
    command = [*build.compilers()[0], *flags, f"-D{difference}", str(source), "-o", str(library)]
    assert os.spawnvp(os.P_WAIT, command[0], command) == 0
    fake = ctypes.CDLL(str(library))
    assert binding.load().slow.heap_probe(fake._handle) == result


def test_an_unknown_pytorch_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "_loaded", None)
    monkeypatch.setattr(build, "libc10", lambda: ctypes.CDLL(None)._handle)
    with pytest.raises(ToolError, match=r"torch .* does not export") as error:
        heap.install()
    assert error.value.code == "MP562"
    assert heap.unavailable() is error.value
    monkeypatch.undo()
    assert heap.unavailable() is None
