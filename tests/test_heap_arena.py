"""Arenas and replay: planned places, misses, survivors, and what must never be lost."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from mplan.diagnostics import ToolError, UserError
from mplan.runtime import heap
from mplan.runtime.heap import UNPLANNED, Arena, Miss, MissReason, Slot, SlotTable

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


def fill_arena(arena: Arena, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    """One tensor per (offset, size), filled with its number."""
    with arena.replay(SlotTable([[Slot(size, offset) for offset, size in spans]])) as run:
        run.enter(0)
        made = [torch.full((s,), k + 1, dtype=torch.uint8) for k, (_, s) in enumerate(spans)]
        run.leave()
    assert run.misses == ()
    return made


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
        assert (m.peak_bytes, m.allocations, run.misses) == (2 * size, 0, ())
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
            assert (m.peak_bytes, m.allocations) == (max(s.offset + s.size_bytes for s in slots), 0)
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
    table = SlotTable([[Slot(4 * PAGE, 0)], [Slot(4 * PAGE, 0, in_place=True)]])
    arena = Arena(6 * PAGE)
    with arena.replay(table) as run:
        run.enter(0)
        x = torch.full((4 * PAGE,), 3, dtype=torch.uint8)
        run.enter(1)
        y = torch.neg(x)
        run.leave()
    assert run.misses == ()
    assert y.data_ptr() == x.data_ptr() == arena.base
    assert arena.live_bytes == 8 * PAGE
    base = arena.base
    arena.close()
    assert mapped_pages(base, 6 * PAGE) == {0, 1, 2, 3}
    kept, gone = (y, x) if input_dies_first else (x, y)
    del x, y, gone
    assert bool((kept == 253).all())
    del kept
    assert not mapped_pages(base, 6 * PAGE)


def test_an_in_place_slot_is_for_all_bytes_of_its_input_or_none() -> None:
    table = SlotTable([[Slot(4 * PAGE, 0)], [Slot(4 * PAGE, 0, in_place=True)]])
    with Arena(6 * PAGE) as arena:
        with arena.replay(table) as run:
            run.enter(0)
            x = torch.full((4 * PAGE,), 3, dtype=torch.uint8)
            run.enter(1)
            torch.full((8,), 7, dtype=torch.uint8)
            run.leave()
        assert run.misses == (Miss(1, 0, 8, MissReason.OVERLAPS_LIVE),)
        assert bool((x == 3).all())


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
    gc.collect()
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
        assert m.current_bytes == PAGE + 64 + 128 + 64
        del b
        assert mapped_pages(base, whole) == {4, 8}
        assert bool((c == 3).all())
        del c
        assert mapped_pages(base, whole) == {8}
        assert bool((d == 4).all())
        del d
        assert mapped_pages(base, whole) == set()
    assert m.current_bytes == 0
    assert m.peak_bytes == 8 * PAGE + 64


def test_an_arena_counts_its_high_water_mark_then_its_survivors_then_nothing() -> None:
    with heap.measure() as m:
        with Arena(100_000) as arena:
            (out,) = fill_arena(arena, [(64, 1000)])
            assert m.current_bytes == 1064
        assert m.current_bytes == 1000
        view = out[10:20]
        del out
        assert m.current_bytes == 1000
        del view
    assert (m.current_bytes, m.peak_bytes, m.allocations) == (0, 1064, 0)


def test_survivors_die_on_other_threads() -> None:
    gc.collect()
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


def test_a_forgotten_arena_is_closed_by_the_collector() -> None:
    gc.collect()
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
        with arena.replay(SlotTable([])), pytest.raises(UserError, match="in use by a replay"):
            arena.close()
    arena.close()
    for misuse in (arena.poison, arena.view, lambda: arena.live_bytes):
        with pytest.raises(UserError, match="closed"):
            misuse()


def test_an_arena_beyond_the_address_space_is_an_error_with_its_size() -> None:
    level = heap.level_bytes()
    with pytest.raises(ToolError, match="1,152,921,504,606,846,976 B") as error:
        Arena(1 << 60)
    assert error.value.code == "MP564"
    assert heap.level_bytes() == level
