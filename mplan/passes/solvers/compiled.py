"""Functions compiled by Numba, and whether there is time for them.

Numba keeps what it compiles on disk, beside the module or in the user's cache, so that only the first
use in an installation compiles. Both loading and compiling count against the deadline of a search,
which therefore goes without if too little of it is left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mplan.passes.solvers.interface import Deadline

#: Seconds that it takes to import Numba and load a compiled function.
_LOAD_S = 1.0
#: Seconds that it takes to compile one, on a busy machine.
_COMPILE_S = 8.0


def entry(function: Callable[..., Any]) -> Any:
    """Compile on first use, and keep the code on disk if there is a place for it."""
    from numba import njit

    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        return njit(error_model="numpy")(function)


def ready(name: str, deadline: Deadline) -> bool:
    """Whether ``name`` (``module:function``) is loaded, or can be loaded or compiled in time."""
    module, _, function = name.partition(":")
    if sys.modules.get("numba") is None and deadline.remaining() < _LOAD_S:
        return False
    try:
        compiled = getattr(import_module(module), function)
    except ImportError:
        return False
    if compiled.signatures:
        return True
    return deadline.remaining() >= (_LOAD_S if _on_disk(compiled) else _COMPILE_S)


@cache
def _on_disk(compiled: Any) -> bool:
    """Whether code for this Python and this source, or newer, lies in Numba's cache."""
    function = compiled.py_func
    folder, source = Path(compiled.stats.cache_path or ""), Path(function.__code__.co_filename)
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    pattern = f"*.{function.__name__}-{function.__code__.co_firstlineno}.{version}*.nbi"
    found = folder.glob(pattern) if compiled.stats.cache_path else ()
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in found)
