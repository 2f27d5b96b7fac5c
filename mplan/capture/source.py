"""Where a node of a traced graph comes from: the user's file and line, and the module path."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mplan.diagnostics import Where
from mplan.ir.graph import Loc

_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)
_DYNAMO_ROOT = re.compile(r"^L\['\w+'\]\.?|^L__self___?\.?|^self\.?")
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_OURS = str(Path(__file__).resolve().parents[1])


def loc_of(meta: dict[str, Any], prefix: str = "") -> Loc | None:
    """The place of a node with the metadata ``meta``, or None if nothing is known.

    ``prefix`` is taken off the module path.
    """
    frames = [(file, int(line)) for file, line in _FRAME.findall(meta.get("stack_trace") or "")]
    file, line = pick_frame(frames) or ("", 0)
    module = _module_path(meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack"))
    module = f"{module}.".removeprefix(prefix).removesuffix(".") if prefix else module
    return Loc(file, line, module) if file or module else None


def where_of_exception(error: BaseException) -> Where | None:
    """The innermost place in the user's code that ``error`` passed through."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    place = pick_frame(frames)
    return Where(*place) if place else None


@contextmanager
def whole_stacks() -> Iterator[None]:
    """While it is open, traced nodes record all frames of the model's code.

    torch by itself keeps only those of methods called ``forward``, so that an op inside a helper
    function would be blamed on its caller.
    """
    from torch.fx.experimental.proxy_tensor import PythonKeyTracer

    def model_frames(_: Any, stack: traceback.StackSummary) -> traceback.StackSummary:
        first = next((i for i, frame in enumerate(stack) if frame.name == "forward"), len(stack))
        frames = [frame for frame in stack[first:] if not _is_torch(frame.filename)]
        return traceback.StackSummary.from_list(frames)

    with patch.object(PythonKeyTracer, "_filter_traceback_frames", model_frames):
        yield


def pick_frame(frames: list[tuple[str, int]]) -> tuple[str, int] | None:
    """Of frames from the outermost to the innermost: the user's innermost, else a library's.

    Frames of torch, of the standard library and of generated code are no candidates.
    """
    known = [(f, n) for f, n in frames if not f.startswith(("<", _OURS)) and not _is_torch(f)]
    own = [(f, n) for f, n in known if "site-packages" not in f and "dist-packages" not in f]
    own = [(f, n) for f, n in own if not f.startswith(_STANDARD_LIBRARY)]
    return next(reversed(own or known), None)


def _is_torch(file: str) -> bool:
    import torch

    return any(file.startswith(path) for path in torch.__path__)


def _module_path(stack: dict[str, tuple[str, Any]] | None) -> str:
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = _DYNAMO_ROOT.sub("", path)
    path = re.sub(r"_modules\['([^']+)'\]|\['?([^'\]]+)'?\]", r".\1\2", path)
    return re.sub(r"\.+", ".", path).strip(".")
