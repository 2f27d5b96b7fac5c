"""The CPU heap as a meter and a tape, and PyTorch at work on top of it."""

from __future__ import annotations

import ctypes
import io
import os
import threading

import pytest
import torch

from mplan.runtime import heap
from mplan.runtime.heap import Arena, Slot, SlotTable
from mplan.runtime.native import build

PAGE = os.sysconf("SC_PAGESIZE")
FLOAT = 4


@pytest.fixture(autouse=True)
def installed() -> None:
    heap.install()
    torch.manual_seed(0)


def bytes_of(n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.uint8)


def fill_arena(arena: Arena, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    """One tensor per (offset, size), filled with its number."""
    with arena.replay(SlotTable([[Slot(size, offset) for offset, size in spans]])) as run:
        run.enter(0)
        made = [torch.full((s,), k + 1, dtype=torch.uint8) for k, (_, s) in enumerate(spans)]
        run.leave()
    assert run.misses == ()
    return made


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
