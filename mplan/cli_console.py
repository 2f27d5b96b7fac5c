"""What the commands print on: data on stdout, text for people on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

SCHEMA_VERSION = 1

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def emit(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner on a terminal, silence elsewhere."""
    if not err.is_terminal:
        yield
        return
    with err.status(text):
        yield
