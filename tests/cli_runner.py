"""Runs the command line inside the test process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_cli(*args: object) -> Outcome:
    """Exit code, stdout and stderr of ``mplan ARGS``."""
    from rich.console import Console

    from mplan import cli, cli_console

    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, cli_console.out, cli_console.err
    sys.argv = ["mplan", *map(str, args)]
    cli_console.out = Console(file=out, highlight=False, width=200)
    cli_console.err = Console(file=err, highlight=False, width=200)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, cli_console.out, cli_console.err = before
    return Outcome(code, out.getvalue(), err.getvalue())
