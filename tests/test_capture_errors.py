"""What cannot be captured is refused with a code, the user's line, and everything at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mplan.capture import capture
from mplan.codes import CODES
from mplan.diagnostics import ExitCode, MplanError, UnsupportedError, UserError, render


class Function(nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Tensor) -> Any:
        return self.body(*args)


def line_of(comment: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (found,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"  # {comment}"))
    return found


def refused(body: Callable[..., Any], *args: Tensor) -> MplanError:
    with pytest.raises(MplanError) as caught:
        capture(Function(body), args)
    assert caught.value.code in CODES
    assert caught.value.where is None or Path(caught.value.where.file) == Path(__file__)
    return caught.value


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:  # branch on data
        return x
    return -x


def test_branches_on_data_are_refused_with_their_line() -> None:
    error = refused(branches, torch.ones(3))
    assert isinstance(error, UnsupportedError) and error.code == "MP301"
    assert error.where is not None and error.where.line == line_of("branch on data")


def test_numbers_read_from_tensors_are_refused() -> None:
    error = refused(lambda x: x * x.max().item(), torch.ones(3))
    assert isinstance(error, UnsupportedError)


def selecting(x: Tensor) -> Tensor:
    where = torch.nonzero(x)  # size from data
    return where * 2  # size from data, second


def test_sizes_from_data_are_refused_all_at_once() -> None:
    error = refused(selecting, torch.ones(3))
    assert error.code == "MP302" and error.exit_code is ExitCode.UNSUPPORTED
    assert "aten.nonzero.default" in error.message and error.where is not None
    assert error.where.line == line_of("size from data")
    assert "u0" in render(error)


def mixed(x: Tensor) -> Any:
    small = x.to(torch.float8_e4m3fn)  # unknown element type
    sparse = x.to_sparse()  # unknown layout
    picked = torch.masked_select(x, x > 0)  # unknown size
    return small.to(torch.float32), sparse.to_dense(), picked


def test_all_unsupported_ops_are_listed_with_their_lines() -> None:
    error = refused(mixed, torch.ones(3, 3))
    assert error.code == "MP302"
    places = [error.where, *(where for _, where in error.notes)]
    lines = {place.line for place in places if place}
    wanted = ("unknown element type", "unknown layout", "unknown size")
    assert lines >= {line_of(comment) for comment in wanted}
    assert "float8_e4m3fn" in render(error) and "masked_select" in render(error)


def loops(x: Tensor) -> Tensor:
    from torch._higher_order_ops import while_loop

    def more(i: Tensor, y: Tensor) -> Tensor:
        return i < 3

    def step(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, y * 2

    return while_loop(more, step, (torch.tensor(0), x))[1]


def test_control_flow_operators_are_refused() -> None:
    error = refused(loops, torch.ones(3))
    assert error.code == "MP302" and "while_loop" in error.message


def mismatched(x: Tensor) -> Tensor:
    return x @ torch.ones(5, 2)  # shapes do not fit


def test_errors_of_the_model_itself_are_told_apart() -> None:
    error = refused(mismatched, torch.ones(3, 3))
    assert isinstance(error, UserError) and error.code == "MP303"
    assert error.where is not None and error.where.line == line_of("shapes do not fit")
    assert "RuntimeError" in error.message


def test_wrong_number_of_arguments_is_the_users_error() -> None:
    with pytest.raises(UserError) as caught:
        capture(nn.Linear(2, 2), ())
    assert caught.value.code == "MP303"


def test_complex_tensors_are_known() -> None:
    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()

    graph = capture(Function(spectrum), (torch.ones(8),)).graph
    assert "c64" in str(graph)
