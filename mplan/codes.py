"""The table of error codes: MP1xx IR, MP2xx plan, MP3xx capture, MP4xx target, config and tools,
MP5xx codegen and execution. ``mplan explain CODE`` prints an entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table: a short title and the long text that ``mplan explain`` prints."""

    title: str
    text: str


CODES: dict[str, Code] = {
    "MP101": Code(
        "syntax error in the text of a graph",
        "The text does not follow the grammar of `.mpir` files. The message says what was expected at "
        "the place that it names. A graph is written:\n\n"
        '    graph @net(%x: f32[1,8] "image", param %w: f32[4,8] "fc.weight") {\n'
        '      %y: f32[1,4] = aten.linear.default(input=%x, weight=%w) loc("net.py":7 in "fc")\n'
        "      %z: f32[4] view(%y) = aten.view.default(self=%y, size=[-1])\n"
        "      return %z\n"
        "    }",
    ),
    "MP102": Code(
        "unknown operator",
        "The kind of an op names neither a row of mplan's own table nor an operator that torch "
        "has registered. Import the library that registers a custom operator before the graph is "
        "read.",
    ),
    "MP103": Code(
        "wrong arguments of an operator",
        "An op has an argument that its schema does not have, lacks a required one, or passes one "
        "of the wrong type.",
    ),
    "MP104": Code(
        "malformed graph",
        "A graph breaks one of the rules of the IR; the notes list every violation with the op "
        "and its place. A pass that yields such a graph has a bug.",
    ),
    "MP105": Code(
        "size expression without a value",
        "A symbolic size is not an expression over integers and symbols with `+ - * // %`, `max` "
        "and `min`, or a symbol in it has neither a value nor a range.",
    ),
    "MP106": Code(
        "text of a graph beyond the limits",
        "The text nests deeper, or has larger numbers or longer size expressions, than the reader "
        "takes.",
    ),
    "MP107": Code(
        "shape rule",
        "An operator rejects its arguments, or its result's shape depends on data and cannot be "
        "known before the run.",
    ),
    "MP108": Code(
        "inputs do not match the graph",
        "A run got too few, too many or wrongly shaped inputs, or a symbol is outside its range "
        "or cannot be found from the shapes of the inputs.",
    ),
    "MP109": Code(
        "an operator failed",
        "An operator raised an error while the interpreter ran it; the message is the operator's.",
    ),
    "MP110": Code(
        "the plan does not belong to the graph",
        "The interpreter cannot run a graph inside its arena: a value that is used has no place "
        "at that step, or an address that its element type cannot have.",
    ),
    "MP301": Code(
        "torch.export cannot trace the model",
        "mplan captures a model with torch.export, and that failed. The message names the line of the "
        "model where tracing stopped. The usual causes are a branch on the value of a tensor, a size "
        "that depends on data, and Python code that leaves PyTorch (NumPy, `.item()`). The model "
        "itself runs; only its capture fails.",
    ),
    "MP302": Code(
        "the model uses what mplan cannot express",
        "The model was traced, but some operators have no counterpart in the IR: control flow "
        "operators, sizes that depend on data, element types or layouts that mplan does not know. "
        "The error lists all of them with the lines of the model that they come from.",
    ),
    "MP303": Code(
        "the model raises an error for its example inputs",
        "Calling the model with the example inputs fails without mplan as well. The place is the line "
        "of the model that raised.",
    ),
    "MP304": Code(
        "a size has no upper bound",
        "A plan is made for the largest sizes that can occur and then holds for all smaller ones, so "
        "every dynamic size needs an upper bound. Give it with `torch.export.Dim(name, min=…, max=…)`.",
    ),
    "MP305": Code(
        "a size expression is not supported",
        "Sizes are integer expressions of + - * // % max and min over the dynamic dimensions. The size "
        "named in the message uses something else, such as a true division or a square root.",
    ),
    "MP306": Code(
        "no such model file",
        "The model is given as `model.py`, `model.py:function` or `model.pt2`; the file does not exist.",
    ),
    "MP307": Code(
        "the model file raises an error",
        "Running the file, or its get_model() or get_inputs(), raises. The place is the innermost line "
        "of your own code that the error passed through.",
    ),
    "MP308": Code(
        "the model file lacks a name",
        "A model file defines get_model() or model, and get_inputs() or example_inputs. With "
        "`model.py:name` the model is taken from that name instead; it may also yield the pair "
        "(model, inputs).",
    ),
    "MP309": Code(
        "the loss is not differentiable",
        "A training step needs a loss that is one scalar tensor and depends on at least one parameter "
        "that requires a gradient.",
    ),
    "MP310": Code(
        "the model file yields something of the wrong type",
        "The model must be a torch.nn.Module or an exported program (a .pt2 file written by "
        "torch.export.save); the inputs a tensor, a tuple of arguments, a dict of keyword arguments, "
        "or a pair of both.",
    ),
    "MP401": Code(
        "unknown target",
        "No target of this name is built in. `mplan targets` lists them; a path to a TOML file works "
        "in the place of a name.",
    ),
    "MP402": Code(
        "unknown key in a target file",
        "The key is not part of the description of a target. Keys are checked strictly, because a "
        "misspelt size would otherwise be ignored. The help line lists the keys known in that table.",
    ),
    "MP403": Code(
        "missing key in a target file",
        "A target needs family, arena and weights, and each memory a kind; the named key is in "
        "neither the file nor those it inherits from.",
    ),
    "MP404": Code(
        "wrong value in a target file",
        "The value has the wrong type or range, names a memory that the target does not have, or "
        "places a memory inside another.",
    ),
    "MP405": Code(
        "unreadable target file",
        "The file does not exist, cannot be read, or is not valid TOML.",
    ),
    "MP406": Code(
        "circular inheritance of targets",
        "A target inherits from itself through the files named in the message.",
    ),
    "MP407": Code(
        "no such memory",
        "The target has no memory of this name. The help line lists the memories it has.",
    ),
    "MP410": Code(
        "missing tool",
        "A compiler or an emulator that the request needs is not installed, or not on the PATH. The "
        "help line says how to install it.",
    ),
    "MP411": Code(
        "the target cannot be built for or emulated",
        "The target's file lacks the part of [toolchain] that this compiler or emulator needs, or "
        "the emulator has no model of its core.",
    ),
    "MP540": Code(
        "the image does not fit",
        "The linked program needs more of a memory than the part has. The message says by how much, "
        "the notes name the largest symbols. Plan with a smaller budget, or choose a larger part.",
    ),
    "MP541": Code(
        "the C compiler rejected a source",
        "The notes hold the compiler's output. Emitted code must compile; if it does not, report it.",
    ),
    "MP542": Code(
        "the linker failed",
        "The notes hold the linker's output, as a rule the names of undefined symbols.",
    ),
    "MP543": Code(
        "memory fault under emulation",
        "The program read, wrote or executed an address outside of the memories of the part, or wrote "
        "to flash. The message names the address, the program counter and the function.",
    ),
    "MP544": Code(
        "emulation timed out",
        "The program did not exit in the given number of seconds.",
    ),
    "MP545": Code(
        "processor exception under emulation",
        "The core raised an exception other than a memory fault, such as an undefined instruction: "
        "the code was built for a core with other features than the emulated one.",
    ),
    "MP546": Code(
        "unsupported semihosting request",
        "The program asked the host for something other than what mplan_host.h offers.",
    ),
    "MP560": Code(
        "no planned CPU heap on this platform",
        "The CPU heap stands in front of PyTorch's allocator and has to know its C++ ABI; it does so "
        "on Linux x86-64 and AArch64. Elsewhere models run with PyTorch's own allocation, and CPU "
        "peaks are planned but not enforced.",
    ),
    "MP561": Code(
        "the CPU heap cannot be built",
        "The heap is a small C library, built once per machine by cc, gcc, clang or the compiler of "
        "the package ziglang. None of them worked; the notes say why.",
    ),
    "MP562": Code(
        "unknown allocator in PyTorch",
        "Before the CPU heap takes over, it proves that PyTorch's allocator has the layout that it "
        "was written for: the virtual functions, the code they point to, and what an allocation "
        "returns. This build differs, or another library has already replaced the allocator.",
    ),
    "MP563": Code(
        "wrong use of an arena",
        "The offset, size or range named in the message does not fit the arena, or the arena is "
        "closed or still in use by a replay.",
    ),
    "MP564": Code(
        "no memory for an arena",
        "The system refused to map the arena. Lower the budget, or raise the limit on address space "
        "(ulimit -v) or on committed memory (vm.overcommit_memory).",
    ),
}
