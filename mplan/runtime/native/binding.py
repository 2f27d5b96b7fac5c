"""The heap's C functions as Python sees them, loaded, probed and installed once per process."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass

from mplan.diagnostics import ToolError
from mplan.runtime.native import build


class Slot(ctypes.Structure):
    """``Slot`` of ``arena.c``."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("in_place", ctypes.c_int64),
    )


class Miss(ctypes.Structure):
    """``Miss`` of ``arena.c``."""

    _fields_ = (
        ("op", ctypes.c_int64),
        ("index", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("reason", ctypes.c_int64),
    )


class Event(ctypes.Structure):
    """``Event`` of ``observe.c``: an allocation, or a release if ``size`` is negative."""

    _fields_ = (("address", ctypes.c_uint64), ("size", ctypes.c_int64))


_pointer, _size, _int32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
_SIGNATURES: dict[str, tuple[object, ...]] = {  # result, then arguments
    "heap_probe": (ctypes.c_int, _pointer),
    "heap_install": (ctypes.c_int, _pointer),
    "heap_level": (ctypes.c_int64,),
    "meter_start": (_pointer,),
    "meter_read": (None, _pointer, ctypes.POINTER(ctypes.c_int64)),
    "meter_stop": (None, _pointer),
    "tape_start": (_pointer,),
    "tape_stop": (_size, _pointer, ctypes.POINTER(ctypes.POINTER(Event))),
    "tape_free": (None, _pointer),
    "arena_new": (_pointer, _size),
    "arena_base": (_pointer, _pointer),
    "arena_read": (None, _pointer, ctypes.POINTER(ctypes.c_int64)),
    "arena_close": (None, _pointer),
    "arena_poison": (None, _pointer, _size, _size, ctypes.c_int),
    "replay_begin": (_pointer, _pointer, _pointer, _pointer, _int32),
    "replay_end": (_size, _pointer, ctypes.POINTER(ctypes.POINTER(Miss))),
    "replay_free": (None, _pointer),
    "replay_enter": (None, _int32),
    "replay_leave": (_int32,),
}

_WRONG = {  # results of heap_probe and heap_install
    1: "libc10 does not export the functions that read and set it",
    2: "another one was registered with a higher priority",
    11: "c10::Allocator has other virtual functions",
    12: "the one in use is not libc10's own",
    13: "c10::DataPtr has another layout",
}


@dataclass(frozen=True, slots=True)
class Native:
    """The library, for calls that are short (``fast`` keeps the GIL) and for those that are not."""

    fast: ctypes.CDLL
    slow: ctypes.CDLL


_lock = threading.Lock()
_loaded: Native | ToolError | None = None


def load() -> Native:
    """The installed library; the first call builds, loads, probes and installs it.

    Raises ToolError MP560 (platform), MP561 (no C compiler), MP562 (unknown PyTorch build); the
    outcome of the first call is that of all.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            _loaded = _loaded or _attempt()
    if isinstance(_loaded, ToolError):
        raise _loaded
    return _loaded


def _attempt() -> Native | ToolError:
    try:
        path = str(build.library())
        native = Native(bind(ctypes.PyDLL(path)), bind(ctypes.CDLL(path)))
        libc10 = build.libc10()
        code = native.slow.heap_probe(libc10) or native.slow.heap_install(libc10)
        if code:
            raise build.unknown_allocator(_WRONG[code])
    except ToolError as error:
        return error
    return native


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions of ``library`` their types."""
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
