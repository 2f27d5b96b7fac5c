"""``mplan.attention`` as a function for a device: a generated kernel, or PyTorch's own.

Kernels are Python modules in the user's cache, named by the digest of their source, so that a kernel
is compiled once per machine and an edited one is never confused with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mplan.codegen.triton.emit import Emitted, emit
from mplan.codegen.triton.private import load_module
from mplan.codegen.triton.spec import Attention
from mplan.codegen.triton.tilings import tilings_for
from mplan.files import write_atomic
from mplan.runtime.attention import cpu_attention
from mplan.targets.model import Target

if TYPE_CHECKING:
    from torch import Tensor

Choice: TypeAlias = Literal["auto", "kernel", "torch"]
#: ``function(query, key, value, attn_mask, out)``; the last two may be missing or None.
AttentionFunction: TypeAlias = "Callable[..., Tensor]"


def attention_callable(
    attention: Attention, target: Target, *, choice: Choice = "auto", tune: bool = False
) -> AttentionFunction:
    """A function that computes ``attention`` on ``target`` for tensors of its element types.

    On a GPU, ``auto`` takes PyTorch's kernels for attention without a mask, which vendors have tuned
    further than Triton can go, and a generated kernel for all other; ``tune`` measures the kernel's
    tilings on first use. On a CPU it is PyTorch's fused attention. UnsupportedError MP520 or
    InfeasibleError MP521 if ``choice`` is ``kernel`` and there is none.
    """
    plain = attention.mask is None and attention.obstacle == ""
    if target.family != "gpu" or choice == "torch" or (choice == "auto" and plain):
        return _torch_function(attention)
    if choice == "auto" and attention.obstacle:
        return _torch_function(attention)
    attention.require_kernel()
    module = _module(emit(attention, target, tilings_for(attention, target)))

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        found: Tensor = module.run(query, key, value, attn_mask, out, tune=tune)
        return found

    return run


def _torch_function(attention: Attention) -> AttentionFunction:
    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        found = cpu_attention(
            query,
            key,
            value,
            attn_mask,
            attention.is_causal,
            attention.scale,
            attention.grouped,
        )
        return found if out is None else out.copy_(found)

    return run


@lru_cache(maxsize=256)
def _module(emitted: Emitted) -> Any:
    """The module of ``emitted``, imported from the cache."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"attention_{emitted.digest[:32]}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != emitted.source:
        write_atomic(path, emitted.source)
    return load_module(path, f"mplan_{path.stem}")


def cache_folder() -> Path:
    """Where generated kernels are kept: ``$XDG_CACHE_HOME/mplan/triton``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "mplan" / "triton"
