"""Hardware as data: chips, boards and GPUs described in TOML, loaded into frozen dataclasses."""

from mplan.targets.load import list_targets, load_target
from mplan.targets.model import Costs, Isa, Memory, Target, Toolchain

__all__ = ["Costs", "Isa", "Memory", "Target", "Toolchain", "list_targets", "load_target"]
