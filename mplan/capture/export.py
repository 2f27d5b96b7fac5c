"""Capture through torch.export: a module with example inputs, or an exported program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mplan.capture.captured import Captured
from mplan.capture.fx import GraphReader, Source, without_unused_constants
from mplan.capture.source import where_of_exception, whole_stacks
from mplan.capture.symbols import SymbolReader, read_range
from mplan.diagnostics import MplanError, UnsupportedError, UserError
from mplan.ir.graph import Graph, Role

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

#: Composite ops that stay whole: attention has kernels of its own, the others do not decompose into
#: functional ops.
_WHOLE = (
    "aten::scaled_dot_product_attention",
    "aten::silu_backward",
    "aten::mish_backward",
    "aten::_fused_rms_norm",
)


def capture(
    module: Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    decompose: bool = False,
) -> Captured:
    """The inference graph of ``module`` called with ``args`` and ``kwargs``.

    The graph has the ops that the dispatcher runs (composite ops are decomposed, mutation is made
    functional); with ``decompose`` they are core ATen. ``dynamic_shapes`` is torch.export's. Errors:
    UnsupportedError MP301 if torch.export fails, MP302 lists what mplan cannot express, UserError
    MP303 if the model itself raises for these arguments, MP304 for sizes without an upper bound.
    """
    import torch

    if isinstance(module, torch.export.ExportedProgram):
        return capture_exported(module, decompose)
    named = dict(kwargs or {})
    with torch.no_grad():
        program = export(module, args, named, dynamic_shapes)
        return capture_exported(program, decompose, name=type(module).__name__)


def capture_loaded(
    loaded: tuple[Module | ExportedProgram | Captured, tuple[Any, ...], Mapping[str, Any]],
    *,
    decompose: bool = False,
) -> Captured:
    """The graph of what ``load_model`` returned, see ``capture``."""
    module, args, kwargs = loaded
    if isinstance(module, Captured):
        return module
    return capture(module, args, kwargs, decompose=decompose)


def export(
    module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """``torch.export.export`` with errors that name the user's line."""
    import torch

    try:
        with whole_stacks():
            return torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as e:
        raise explain(e, module, args, kwargs) from e


def explain(
    error: Exception, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> MplanError:
    """What to raise when tracing failed: MP303 if the model fails without it as well, else MP301."""
    import torch

    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as e:
        where = where_of_exception(e)
        return UserError("MP303", f"the model raises {type(e).__name__}: {first_line(e)}", where)
    if "Constraints violated" in str(error):
        return _constraint_error(error)
    message = f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}"
    hint = "branches and sizes must not depend on the values of tensors"
    return UnsupportedError("MP301", message, where_of_exception(error), help=hint)


def _constraint_error(error: Exception) -> UserError:
    """Sizes in the given ranges would take different paths through the model."""
    violated, _, fixes = str(error).partition("Suggested fixes:")
    lines = [line.strip().removeprefix("- ") for line in violated.splitlines()[1:]]
    notes = tuple((line, None) for line in lines if line)
    suggested = "; ".join(line.strip() for line in fixes.strip().partition("\n\n")[0].splitlines())
    hint = f"torch suggests {suggested}" if suggested else "narrow the range in dynamic_shapes"
    message = "the model does not treat all sizes of dynamic_shapes alike"
    return UserError("MP312", message, help=hint, notes=notes)


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def capture_exported(
    program: ExportedProgram, decompose: bool = False, *, name: str = "model"
) -> Captured:
    """The graph of an exported program, see ``capture``; ``name`` becomes the name of the graph."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        # torch copies its own deprecated tree specs
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        table = core_table(program) if decompose else composite_table(bool(program.range_constraints))
        lowered = program.run_decompositions(table)
    reader = GraphReader(name, SymbolReader(known_ranges(lowered)), _sources(lowered))
    return _finish(reader, reader.read(lowered.graph_module), lowered)


def core_table(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Decompositions to core ATen; linear layers of a quantised program stay whole.

    They would fall into products and sums between which nothing is quantised.
    """
    import torch

    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    nodes = program.graph_module.graph.nodes
    if any(getattr(node.target, "namespace", "") == "quantized_decomposed" for node in nodes):
        table.pop(torch.ops.aten.linear.default, None)
    return table


def composite_table(symbolic: bool) -> dict[Any, Callable[..., Any]]:
    """Decompositions that leave the ops that an eager run dispatches to kernels.

    ``symbolic`` graphs prefer the decompositions that torch has in Python, because those in C++ may
    fix symbolic sizes; they differ in a few views.
    """
    import torch
    from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key

    key = DispatchKey.CompositeImplicitAutograd
    return {
        op: (symbolic and op.py_kernels.get(key)) or partial(op._op_dk, key)
        for op in torch.export.default_decompositions()
        if _dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
        and op.name().partition(".")[0] not in _WHOLE
    }


def _sources(program: ExportedProgram) -> dict[str, Source]:
    from torch.export.graph_signature import InputKind

    roles: dict[InputKind, Role] = {
        InputKind.PARAMETER: "param",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "const",
    }
    tensors = {**program.constants, **program.state_dict}
    found = {}
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind in roles:
            target = spec.target or ""
            found[name] = Source(roles[spec.kind], target, tensors[target])
        else:
            found[name] = Source("input", name)
    return found


def known_ranges(program: ExportedProgram) -> dict[str, tuple[int, int]]:
    """The bounds of the program's symbols; those without an upper bound are absent."""
    ranges = {str(s): read_range(r) for s, r in program.range_constraints.items()}
    return {name: (low, high) for name, (low, high) in ranges.items() if high is not None}


def _finish(reader: GraphReader, graph: Graph, program: ExportedProgram) -> Captured:
    """Put the user's outputs first and drop constants that nothing reads."""
    from torch.export.graph_signature import InputKind, OutputKind

    signature = program.graph_signature
    kinds = [spec.kind for spec in signature.output_specs]
    order = sorted(range(len(kinds)), key=lambda i: kinds[i] is not OutputKind.USER_OUTPUT)
    user = kinds.count(OutputKind.USER_OUTPUT)
    targets = (signature.output_specs[i].target or "" for i in order[user:])
    mutations = {user + i: reader.named[target] for i, target in enumerate(targets)}
    graph = replace(graph, outputs=tuple(graph.outputs[i] for i in order))
    inputs = [spec.arg for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    return assemble(
        reader,
        graph,
        leaf_of={getattr(arg, "name", ""): i for i, arg in enumerate(inputs)},
        program=program,
        out_spec=program.call_spec.out_spec,
        num_user_outputs=user,
        mutations=mutations,
    )


def assemble(
    reader: GraphReader,
    graph: Graph,
    *,
    leaf_of: Mapping[str, int],
    program: ExportedProgram,
    mutations: Mapping[int, str],
    **fields: Any,
) -> Captured:
    """``Captured`` with the graph's unused constants dropped and its inputs tied to the caller's.

    ``leaf_of`` maps placeholders to leaves of the program's arguments.
    """
    from torch.utils._pytree import tree_leaves

    graph = without_unused_constants(graph, set(mutations.values()))
    names = {i.value.name for i in graph.inputs}
    leaves = tuple(leaf_of[name] for name in reader.user_inputs)
    flat = tree_leaves(program.example_inputs) if program.example_inputs else []
    return Captured(
        graph,
        {name: tensor for name, tensor in reader.constants.items() if name in names},
        example_inputs=tuple(flat[i] for i in leaves) if flat else (),
        in_spec=program.call_spec.in_spec,
        input_leaves=leaves,
        mutations=mutations,
        **fields,
    )
