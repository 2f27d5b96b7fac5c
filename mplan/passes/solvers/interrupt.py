"""Ctrl-C during a search ends the search, not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_stopped = threading.Event()


def stopped() -> bool:
    """Whether Ctrl-C was pressed inside ``graceful``; every deadline has then expired."""
    return _stopped.is_set()


@contextmanager
def graceful() -> Iterator[None]:
    """Within it, the first Ctrl-C makes all deadlines expire; the next one raises as usual.

    Nothing changes off the main thread, inside another ``graceful``, or where the program has its own
    handler.
    """
    default = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
        _stopped.clear()


def _stop(number: int, frame: FrameType | None) -> None:
    if _stopped.is_set():
        raise KeyboardInterrupt
    _stopped.set()
