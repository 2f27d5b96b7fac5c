"""The CPU heap: bytes measured below PyTorch, and operations run inside a planned arena.

``install`` puts our allocator (``native/*.c``) in front of PyTorch's. Idle, it delegates and counts;
``measure`` reads the count, ``record`` writes down what an operation allocates, and an ``Arena``
serves the allocations of operations at planned offsets:

    table = SlotTable([[Slot(4096, 0)], [Slot(64, 4096), Slot(4096, 8192)]])   # per operation
    with Arena(12288) as arena, arena.replay(table) as run:
        for k, operation in enumerate(operations):
            run.enter(k)
            ...                                                # its k-th allocation is slots[k]
            run.leave()

Outputs need no copy: a tensor that outlives its arena keeps its own pages and no others. What the
heap sees is what PyTorch allocates through ``c10::GetCPUAllocator`` (tensors, oneDNN's scratchpads);
private buffers of BLAS libraries, ``torch.from_numpy`` and shared memory pass it by. PyTorch's own
memory profiler keeps seeing what is delegated, not what an arena serves.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from mplan.diagnostics import ToolError, UserError
from mplan.runtime.native import binding

if TYPE_CHECKING:
    from types import TracebackType

ALIGNMENT_BYTES = 64  # what PyTorch's kernels and oneDNN are promised (c10/core/alignment.h)


def install() -> None:
    """Put the heap in front of PyTorch's CPU allocator, for the rest of the process; idempotent.

    Raises ToolError: MP560 (platform), MP561 (no C compiler), MP562 (unknown PyTorch build).
    """
    binding.load()


def unavailable() -> ToolError | None:
    """Install the heap if possible; the reason why it cannot be, or None."""
    try:
        binding.load()
    except ToolError as error:
        return error
    return None


def level_bytes() -> int:
    """Bytes held now: blocks allocated since ``install``, open arenas, survivors of closed ones."""
    return int(binding.load().fast.heap_level())


# ---- the meter ----


class Meter:
    """What ``measure`` counts, over all threads; readable while the block runs and after it."""

    __slots__ = ("_final", "_handle")

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle
        self._final = (0, 0, 0)

    def _read(self) -> tuple[int, int, int]:
        if self._handle is None:
            return self._final
        out = (ctypes.c_int64 * 3)()
        binding.load().fast.meter_read(self._handle, out)
        return out[0], out[1], out[2]

    def _stop(self) -> None:
        self._final, handle = self._read(), self._handle
        self._handle = None
        binding.load().fast.meter_stop(handle)

    @property
    def current_bytes(self) -> int:
        """Bytes held above the level at entry; negative if more was freed than allocated."""
        return self._read()[0]

    @property
    def peak_bytes(self) -> int:
        """The highest level reached above the level at entry."""
        return self._read()[1]

    @property
    def allocations(self) -> int:
        """Allocations that the heap served; those that an arena served are not among them."""
        return self._read()[2]


@contextmanager
def measure() -> Iterator[Meter]:
    """Count bytes as requested (not rounded) while the block runs; blocks may nest.

    An open arena counts with its high-water mark (what lies beyond has not been touched, so it is
    not backed by memory), a closed one with the bytes of the tensors that survive in it.
    """
    meter = Meter(_checked(binding.load().fast.meter_start()))
    try:
        yield meter
    finally:
        meter._stop()


# ---- the tape ----


@dataclass(frozen=True, slots=True)
class Alloc:
    """The ``index``-th allocation of a tape, at event ``at``, freed at event ``freed_at``.

    ``freed_at`` is None if the block outlives the tape. Requests of 0 bytes take no index.
    """

    index: int
    size_bytes: int
    at: int
    freed_at: int | None


@dataclass(frozen=True, slots=True)
class Free:
    """The release, at event ``at``, of the tape's ``index``-th allocation."""

    index: int
    at: int


class Tape:
    """What ``record`` saw, in order; empty until the block ends.

    ``events[a.at] is a`` for every ``a`` of ``allocations``.
    """

    __slots__ = ("_live", "allocations", "events")

    def __init__(self) -> None:
        self.events: tuple[Alloc | Free, ...] = ()
        self.allocations: tuple[Alloc, ...] = ()
        self._live: dict[int, int] = {}

    def _load(self, raw: Iterable[tuple[int, int]]) -> None:
        births: list[tuple[int, int]] = []  # size, event
        deaths: dict[int, int] = {}  # index -> event
        order: list[tuple[bool, int]] = []  # is a birth, index
        live: dict[int, int] = {}  # address -> index
        for address, size in raw:
            if size >= 0:
                live[address] = len(births)
                order.append((True, len(births)))
                births.append((size, len(order) - 1))
            elif address in live:  # else it is older than the tape
                index = live.pop(address)
                deaths[index] = len(order)
                order.append((False, index))
        self.allocations = tuple(
            Alloc(k, size, at, deaths.get(k)) for k, (size, at) in enumerate(births)
        )
        self.events = tuple(
            self.allocations[k] if born else Free(k, at) for at, (born, k) in enumerate(order)
        )
        self._live = live

    def index_of(self, data_ptr: int) -> int | None:
        """The allocation that was live at the end and holds the byte at ``data_ptr``, or None."""
        for address, index in self._live.items():
            if address <= data_ptr < address + self.allocations[index].size_bytes:
                return index
        return None


@contextmanager
def record() -> Iterator[Tape]:
    """Write down the allocations and releases of this thread; blocks may nest."""
    fast = binding.load().fast
    handle = _checked(fast.tape_start())
    tape = Tape()
    try:
        yield tape
    finally:
        events = ctypes.POINTER(binding.Event)()
        n = fast.tape_stop(handle, ctypes.byref(events))
        tape._load([(events[k].address, events[k].size) for k in range(n)])
        fast.tape_free(handle)


# ---- the arena ----


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes ``[offset, offset + size_bytes)`` planned for one allocation of up to that size.

    A negative offset leaves the allocation to the heap. ``in_place`` lets it take exactly the bytes
    that one live tensor still holds (its input, about to die); otherwise such a request is a miss.
    """

    size_bytes: int
    offset: int
    in_place: bool = False


UNPLANNED = Slot(0, -1)


class SlotTable:
    """The slots of every operation of a graph, in the order in which it allocates; built once.

    Raises UserError MP563 for an offset that is not a multiple of 64 or a negative size.
    """

    __slots__ = ("_slots", "_starts", "n_ops", "span_bytes")

    def __init__(self, operations: Iterable[Sequence[Slot]]) -> None:
        starts, flat = [0], []
        for slots in operations:
            flat += [_checked_slot(slot) for slot in slots]
            starts.append(len(flat))
        self.n_ops = len(starts) - 1
        self.span_bytes = max((s.offset + s.size_bytes for s in flat if s.offset >= 0), default=0)
        self._starts = (ctypes.c_int32 * len(starts))(*starts)
        rows = [binding.Slot(s.size_bytes, s.offset, s.in_place) for s in flat]
        self._slots = (binding.Slot * len(rows))(*rows)


def _checked_slot(slot: Slot) -> Slot:
    if slot.size_bytes < 0 or (slot.offset > 0 and slot.offset % ALIGNMENT_BYTES):
        raise UserError(
            "MP563",
            f"slot of {slot.size_bytes:,} B at offset {slot.offset:,}: sizes are not negative and "
            f"offsets are multiples of {ALIGNMENT_BYTES}",
            help=f"plan CPU buffers with an alignment of {ALIGNMENT_BYTES} bytes",
        )
    return slot


class MissReason(Enum):
    """Why an allocation of a replay was left to the heap."""

    UNPLANNED = 0
    TOO_LARGE = 1
    BEYOND_SLOTS = 2
    OVERLAPS_LIVE = 3


@dataclass(frozen=True, slots=True)
class Miss:
    """The ``index``-th allocation of operation ``op``, of ``size_bytes``, went to the heap."""

    op: int
    index: int
    size_bytes: int
    reason: MissReason


class Replay:
    """A running replay of this thread; ``enter`` and ``leave`` are bare C calls.

    ``enter(k)``: this thread's next allocations are those of operation ``k`` (0-byte requests are
    not counted). ``leave() -> int``: they no longer are; returns the misses so far. Allocations
    between the two, and those of other threads, go to the heap and are no misses.
    """

    __slots__ = ("enter", "leave", "misses")

    def __init__(self, fast: ctypes.CDLL) -> None:
        self.enter = fast.replay_enter
        self.leave = fast.replay_leave
        self.misses: tuple[Miss, ...] = ()  # complete when the block ends


class Arena:
    """``size_bytes`` of memory for planned tensors; a context manager that closes itself.

    No tensor ever loses its bytes: a request that overlaps a live one is a miss, and pages with
    live bytes stay mapped until their tensors die. Raises ToolError MP564 if the system has no
    such amount of memory.
    """

    __slots__ = ("__weakref__", "_finalizer", "_handle", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._handle: int | None = None
        if size_bytes < 0:
            raise UserError("MP563", f"an arena of {size_bytes:,} B")
        handle = binding.load().slow.arena_new(size_bytes)
        if not handle:
            raise ToolError(
                "MP564",
                f"the system maps no arena of {size_bytes:,} B",
                help="lower the budget, or see ulimit -v and vm.overcommit_memory",
            )
        self._handle = handle
        self._finalizer = weakref.finalize(self, binding.load().slow.arena_close, handle)

    def _open(self) -> int:
        if self._handle is None:
            raise UserError("MP563", f"the arena of {self.size_bytes:,} B is closed")
        return self._handle

    def _read(self) -> tuple[int, int]:
        out = (ctypes.c_int64 * 2)()
        binding.load().fast.arena_read(self._open(), out)
        return out[0], out[1]

    @property
    def base(self) -> int:
        """The address of its first byte."""
        return int(binding.load().fast.arena_base(self._open()))

    @property
    def live_bytes(self) -> int:
        """Bytes of the tensors that live in it."""
        return self._read()[0]

    @contextmanager
    def replay(self, table: SlotTable) -> Iterator[Replay]:
        """Serve this thread's allocations from the slots of ``table``, operation by operation."""
        if table.span_bytes > self.size_bytes:
            raise UserError(
                "MP563",
                f"the slots end at byte {table.span_bytes:,}, the arena at {self.size_bytes:,}",
            )
        fast = binding.load().fast
        handle = _checked(fast.replay_begin(self._open(), table._slots, table._starts, table.n_ops))
        run = Replay(fast)
        try:
            yield run
        finally:
            misses = ctypes.POINTER(binding.Miss)()
            n = fast.replay_end(handle, ctypes.byref(misses))
            run.misses = tuple(_miss(misses[k]) for k in range(n))
            fast.replay_free(handle)

    def close(self) -> None:
        """Return all pages without live bytes to the system; the others go as tensors die."""
        if self._handle is None:
            return
        if self._read()[1]:
            what = f"the arena of {self.size_bytes:,} B is in use by a replay"
            raise UserError("MP563", what, help="end it")
        self._handle = None
        self._finalizer()

    def poison(self, offset: int = 0, size_bytes: int | None = None, byte: int = 0xA5) -> None:
        """Fill the bytes of the range (by default, of the arena) that no live tensor holds."""
        size_bytes = self.size_bytes - offset if size_bytes is None else size_bytes
        self._check_range(offset, size_bytes)
        binding.load().slow.arena_poison(self._open(), offset, size_bytes, byte)

    def view(self, offset: int = 0, size_bytes: int | None = None) -> memoryview:
        """The bytes of the range, without a copy; invalid once the arena is closed."""
        size_bytes = self.size_bytes - offset if size_bytes is None else size_bytes
        self._check_range(offset, size_bytes)
        return memoryview((ctypes.c_ubyte * size_bytes).from_address(self.base + offset)).cast("B")

    def _check_range(self, offset: int, size_bytes: int) -> None:
        if not 0 <= offset <= offset + size_bytes <= self.size_bytes:
            raise UserError(
                "MP563",
                f"bytes [{offset:,}, {offset + size_bytes:,}) of an arena of {self.size_bytes:,}",
            )

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _miss(raw: binding.Miss) -> Miss:
    return Miss(raw.op, raw.index, raw.size, MissReason(raw.reason))


def _checked(handle: int | None) -> int:
    if not handle:
        raise ToolError("MP564", "no memory left for the heap's own records")
    return handle
