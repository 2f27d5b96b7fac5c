"""The table of error codes: MP1xx IR, MP2xx plan, MP3xx capture, MP4xx target, config and tools,
MP5xx codegen and execution. ``mplan explain CODE`` prints an entry.
"""

from __future__ import annotations

from mplan.codes import captures, execution, graphs, plans, requests
from mplan.codes.code import Code

__all__ = ["CODES", "Code"]

CODES: dict[str, Code] = {
    **graphs.CODES,
    **plans.CODES,
    **captures.CODES,
    **requests.CODES,
    **execution.CODES,
}
