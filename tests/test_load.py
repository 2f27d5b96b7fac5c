"""Model files: what they may define, and the error for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mplan.capture import capture_loaded, load_model
from mplan.diagnostics import UserError, render

MODEL = "import torch\nclass Net(torch.nn.Linear):\n    pass\n"


def write(folder: Path, text: str, name: str = "model.py") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(spec: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_model(spec)
    return caught.value


@pytest.mark.parametrize(
    ("text", "shapes", "names"),
    [
        ("model = Net(3, 2)\nexample_inputs = torch.ones(1, 3)\n", [(1, 3)], []),
        ("model = Net(3, 2)\nexample_inputs = (torch.ones(2, 3),)\n", [(2, 3)], []),
        ("model = Net(3, 2)\nexample_inputs = [torch.ones(2, 3)]\n", [(2, 3)], []),
        ("model = Net(3, 2)\nexample_inputs = {'input': torch.ones(2, 3)}\n", [], ["input"]),
        ("def get_model():\n    return Net(3, 2)\ndef get_inputs():\n    return torch.ones(4, 3)\n",
         [(4, 3)], []),
        ("model = Net(3, 2)\nexample_inputs = ((), {'input': torch.ones(2, 3)})\n", [], ["input"]),
        ("model = Net\nget_model = lambda: Net(3, 2)\nget_inputs = lambda: (torch.ones(5, 3),)\n",
         [(5, 3)], []),
    ],
)  # fmt: skip
def test_what_a_file_may_define(
    tmp_path: Path, text: str, shapes: list[tuple[int, ...]], names: list[str]
) -> None:
    loaded = load_model(write(tmp_path, MODEL + text))
    module, args, kwargs = loaded
    assert type(module).__name__ == "Net"
    assert [tuple(a.shape) for a in args] == shapes and list(kwargs) == names
    assert capture_loaded(loaded).graph.name == "Net"


def test_a_name_picks_the_model(tmp_path: Path) -> None:
    text = MODEL + "small = Net(1, 1)\ndef big():\n    return Net(9, 9)\nget_inputs = lambda: ()\n"
    path = write(tmp_path, text)
    assert load_model(f"{path}:small")[0].in_features == 1
    assert load_model(f"{path}:big")[0].in_features == 9


def test_a_function_may_yield_model_and_inputs(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL + "def pair():\n    return Net(3, 2), torch.ones(7, 3)\n")
    module, args, kwargs = load_model(f"{path}:pair")
    assert (type(module).__name__, args[0].shape, kwargs) == ("Net", (7, 3), {})


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, MODEL, "mplan_test_neighbour.py")
    text = "import torch\nfrom mplan_test_neighbour import Net\nmodel = Net(3, 2)\n"
    path = write(tmp_path, text + "example_inputs = torch.ones(1, 3)\n")
    assert load_model(path)[0].in_features == 3


def test_missing_file_suggests_a_similar_one(tmp_path: Path) -> None:
    write(tmp_path, MODEL, "resnet.py")
    error = refused(str(tmp_path / "resnte.py"))
    assert error.code == "MP306" and error.help.endswith("resnet.py?")


def test_raising_import_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL + "\nvalue = {}['key']\n")
    error = refused(path)
    assert error.code == "MP307" and "KeyError" in error.message
    assert error.where is not None and (error.where.file, error.where.line) == (path, 5)
    assert "value = {}['key']" in render(error)


def test_raising_function_names_the_innermost_line(tmp_path: Path) -> None:
    text = "def helper():\n    raise ValueError('no weights')\ndef get_model():\n    return helper()\n"
    error = refused(write(tmp_path, text))
    assert error.code == "MP307" and "ValueError: no weights" in error.message
    assert error.where is not None and error.where.line == 2


def test_syntax_errors_name_line_and_column(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "x = 1\ny = (\n"))
    assert error.code == "MP307" and error.where is not None and error.where.line == 2


def test_exiting_file_is_an_error(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "import sys\nsys.exit(3)\n"))
    assert error.code == "MP307" and "SystemExit" in error.message


def test_missing_names_suggest_similar_ones(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL + "mdoel = Net(1, 1)\n")
    error = refused(path)
    assert error.code == "MP308" and error.help == f"did you mean {path}:mdoel?"
    error = refused(write(tmp_path, MODEL + "model = Net(1, 1)\n"))
    assert error.code == "MP308" and "example inputs" in error.message and "get_inputs()" in error.help
    assert refused(f"{path}:net_").code == "MP308"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 3\nexample_inputs = ()\n", "the model is a int"),
        ("model = Net(1, 1)\nexample_inputs = 'x'\n", "the example inputs are a str"),
        ("get_model = lambda: Net\nexample_inputs = ()\n", "the model is a type"),
    ],
)
def test_wrong_types(tmp_path: Path, text: str, message: str) -> None:
    error = refused(write(tmp_path, MODEL + text))
    assert error.code == "MP310" and message in error.message


def test_files_of_other_kinds(tmp_path: Path) -> None:
    assert refused(write(tmp_path, "", "model.onnx")).code == "MP310"
    error = refused(write(tmp_path, "not a program", "model.pt2"))
    assert error.code == "MP310" and "torch.export.save" in error.help


def test_exported_programs_come_with_their_inputs(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),))
    torch.export.save(program, path)
    loaded = load_model(str(path))
    assert tuple(loaded[1][0].shape) == (1, 3)
    assert [op.kind for op in capture_loaded(loaded).graph.ops][-1] == "aten.addmm.default"
