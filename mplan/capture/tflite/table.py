"""The table of rules, one per TFLite operator: which ops of the IR it becomes.

A rule gets the reader and the operator; it emits ops, the last of which yields the operator's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from mplan.capture.tflite.model import TfOp, TfTensor
from mplan.capture.tflite.reader import Reader, Unreadable

Rule: TypeAlias = Callable[[Reader, TfOp], None]

#: Builtin operator → the function that reads it.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function into ``RULES`` for each of ``names``."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def operand(op: TfOp, index: int) -> TfTensor:
    """An input that must be there."""
    found = op.inputs[index] if index < len(op.inputs) else None
    if found is None:
        raise Unreadable(f"its input {index} is absent")
    return found
