"""Reading and writing files: whole or not at all, with coded errors."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mplan.diagnostics import UserError, Where


def read_text(path: str | Path) -> str:
    """The UTF-8 text of the file ``path``; UserError MP490 if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        message = f"cannot read {path}: {_reason(error)}"
        help = "give the path of an existing, readable UTF-8 text file"
        raise UserError("MP490", message, Where(str(path)), help) from error


def make_folder(path: str | Path) -> Path:
    """Make the folder ``path`` and its parents if they are absent; UserError MP491 if that fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        message = f"cannot make the folder {path}: {_reason(error)}"
        help = "give a place with write permission and free space"
        raise UserError("MP491", message, Where(str(path)), help) from error
    return folder


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` whole or not at all.

    The bytes go to a temporary file in the same folder, reach the disk and then take the file's
    name in one step (``os.replace``); a failure leaves the old file and no temporary one. Missing
    parent folders are not made. UserError MP491 if it cannot be written.
    """
    path = Path(path)
    try:
        _replace(path, content.encode() if isinstance(content, str) else content)
    except (OSError, UnicodeEncodeError, ValueError) as error:
        message = f"cannot write {path}: {_reason(error)}"
        help = "give a path in an existing folder with write permission and free space"
        raise UserError("MP491", message, Where(str(path)), help) from error


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(path))
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, else those of any new file."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
