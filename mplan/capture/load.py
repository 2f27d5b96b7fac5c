"""Loading of what the user names: ``model.py``, ``model.py:function``, ``.pt2``, ``.tflite``."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mplan.capture.boundary import with_integer_io
from mplan.capture.captured import Captured
from mplan.capture.source import where_of_exception
from mplan.capture.tflite import read_tflite
from mplan.diagnostics import UserError, Where

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

#: Names that a model file may define, in order of preference; each a value or a function without
#: arguments.
MODEL_NAMES = ("get_model", "model")
INPUT_NAMES = ("get_inputs", "example_inputs")
#: The name of a function that yields calibration batches, each in the form of the inputs.
CALIBRATION_NAME = "get_calibration"


def load_model(
    spec: str,
) -> tuple[Module | ExportedProgram | Captured, tuple[Any, ...], dict[str, Any]]:
    """The model that ``spec`` names, with the arguments and keyword arguments of its example call.

    A Python file defines ``get_model()`` or ``model`` and ``get_inputs()`` or ``example_inputs``:
    a tensor, a tuple of arguments, a dict of keyword arguments, or a pair of both. ``file.py:name``
    takes the model from ``name``, which may also yield ``(model, inputs)``. A ``.pt2`` file holds an
    exported program, a ``.tflite`` file a graph that is captured already; ``file.tflite:int8`` leaves
    conversions from and to floats to the caller. UserError MP306: no such file; MP307: the file raises;
    MP308: it lacks a name; MP309 is raised by captures; MP310: something has the wrong type.
    """
    path, name = _split(spec)
    if path.is_dir():
        raise UserError("MP310", f"{path} is a folder", Where(str(path)), "name a file in it")
    if not path.is_file():
        raise UserError("MP306", f"there is no file {path}", help=_similar_file(path))
    if path.suffix == ".pt2":
        return _load_exported(path)
    if path.suffix == ".tflite":
        captured = read_tflite(path)
        return with_integer_io(captured) if name else captured, (), {}
    if path.suffix != ".py":
        message = f"{path} is neither a .py, a .pt2 nor a .tflite file"
        raise UserError("MP310", message, Where(str(path)))
    module = _import(path)
    model = _call(path, _find(module, path, (name,) if name else MODEL_NAMES, "model"))
    inputs: Any = None
    if isinstance(model, tuple) and len(model) == 2:
        model, inputs = model
    else:
        inputs = _call(path, _find(module, path, INPUT_NAMES, "example inputs"))
    _require_module(model, path)
    return (model, *_arguments(inputs, path))


def _split(spec: str) -> tuple[Path, str]:
    file, colon, name = spec.rpartition(":")
    if colon and name.isidentifier() and file.endswith(".py"):
        return Path(file), name
    if name == "int8" and file.endswith(".tflite"):
        return Path(file), name
    return Path(spec), ""


def _similar_file(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean {folder / close[0]}?" if close else f"looked in {folder.resolve()}"


def _load_exported(path: Path) -> tuple[ExportedProgram, tuple[Any, ...], dict[str, Any]]:
    import torch

    if not zipfile.is_zipfile(path):
        hint = "write the file with torch.export.save"
        raise UserError("MP310", f"{path} is no exported program", Where(str(path)), hint)
    import torch.ao.quantization.fx._decomposed  # quantised programs use its operators

    try:
        program = torch.export.load(path)
    except Exception as e:
        reason = str(e).strip().partition("\n")[0]
        hint = "write the file with torch.export.save"
        raise UserError("MP310", f"{path} is no exported program: {reason}", help=hint) from e
    args, kwargs = program.example_inputs or ((), {})
    return program, tuple(args), dict(kwargs)


def _import(path: Path) -> ModuleType:
    """Run the file as a module; its folder is importable meanwhile."""
    spec = importlib.util.spec_from_file_location(_module_name(path), path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:
        where = Where(e.filename or str(path), e.lineno or 0, e.offset or 0)
        raise UserError("MP307", f"{path} is not valid Python: {e.msg}", where) from e
    except (Exception, SystemExit) as e:
        raise _raised(path, e) from e
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _raised(path: Path, error: BaseException) -> UserError:
    text = str(error).strip().partition("\n")[0]
    message = f"{path} raises {type(error).__name__}" + (f": {text}" if text else "")
    return UserError("MP307", message, where_of_exception(error) or Where(str(path)))


def load_calibration(spec: str) -> Any:
    """What ``get_calibration()`` of a model file yields, once ``load_model`` has loaded it, or None."""
    path, _ = _split(spec)
    module = sys.modules.get(_module_name(path))
    if path.suffix != ".py" or module is None or not hasattr(module, CALIBRATION_NAME):
        return None
    return _call(path, getattr(module, CALIBRATION_NAME))


def _module_name(path: Path) -> str:
    return f"_mplan_model_{path.stem}"


def _find(module: ModuleType, path: Path, names: tuple[str, ...], what: str) -> Any:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    defined = [n for n in vars(module) if not n.startswith("_")]
    close = [c for name in names for c in get_close_matches(name, defined, n=1)]
    hint = f"did you mean {path}:{close[0]}?" if close and what == "model" else _expected(names)
    wanted = " or ".join(names)
    raise UserError("MP308", f"{path} defines no {what}: no {wanted}", Where(str(path)), hint)


def _expected(names: tuple[str, ...]) -> str:
    return " or ".join(f"{n}()" if n.startswith("get_") else n for n in names) + " must be defined"


def _call(path: Path, value: Any) -> Any:
    import torch

    if not callable(value) or isinstance(value, torch.nn.Module):
        return value
    try:
        return value()
    except (Exception, SystemExit) as e:
        raise _raised(path, e) from e


def _require_module(model: Any, path: Path) -> None:
    import torch

    if not isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        found = f"a {type(model).__name__}"
        raise UserError("MP310", f"the model is {found}, not a torch.nn.Module", Where(str(path)))


def _arguments(inputs: Any, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        pair = len(inputs) == 2 and isinstance(inputs[0], (tuple, list))
        if pair and isinstance(inputs[1], Mapping):
            return tuple(inputs[0]), dict(inputs[1])
        return tuple(inputs), {}
    message = f"the example inputs are a {type(inputs).__name__}"
    hint = "give a tensor, a tuple of arguments, a dict of keyword arguments, or a pair of both"
    raise UserError("MP310", message, Where(str(path)), hint)
