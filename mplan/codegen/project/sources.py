"""The emitted C among the files of a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Files = dict[str, "str | bytes"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Names of the emitted files: the library's ``code`` and ``headers``; ``selftest`` may be ''."""

    code: tuple[str, ...]
    headers: tuple[str, ...]
    selftest: str

    @classmethod
    def of(cls, name: str, files: Mapping[str, object]) -> Sources:
        """Those of the network ``name`` in ``files``."""
        selftest = f"{name}_selftest.c"
        return cls(
            code=tuple(sorted(f for f in files if f.endswith(".c") and f != selftest)),
            headers=tuple(sorted(f for f in files if f.endswith(".h"))),
            selftest=selftest if selftest in files else "",
        )

    @property
    def compiled(self) -> tuple[str, ...]:
        """Everything to compile."""
        return (*self.code, self.selftest) if self.selftest else self.code


def moved(files: Mapping[str, str | bytes], folder: str) -> Files:
    """``files`` inside of ``folder``."""
    return {f"{folder}/{name}": content for name, content in files.items()}
