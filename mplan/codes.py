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
    "MP200": Code(
        "the plan breaks conditions of the checker",
        "`mplan check` replayed the plan against its problem and found conditions that fail. Each has "
        "a code of its own (MP201 to MP216), listed as notes.",
    ),
    "MP201": Code(
        "the plan answers another problem",
        "The digest of the problem that the plan was made for differs from that of the given problem, "
        "or a digest that the file states is not that of its content.",
    ),
    "MP202": Code(
        "the order is not valid",
        "The order is not a permutation of the steps, or a step runs before one that it must follow.",
    ),
    "MP203": Code(
        "the plan names something that does not exist, or leaves a buffer out",
        "Placements, transfers and heights must name buffers and regions of the problem; every buffer "
        "must be placed.",
    ),
    "MP204": Code(
        "a buffer is not placed for exactly its lifetime",
        "The placements of a buffer must span the positions from its first to its last use (from the "
        "start, if it holds data before the first step; to the end, if it must survive).",
    ),
    "MP205": Code(
        "two live buffers overlap",
        "Two buffers occupy common bytes of a region at the same position of the order.",
    ),
    "MP206": Code(
        "a buffer ends beyond its region",
        "The end address of a placement exceeds the capacity of the region.",
    ),
    "MP207": Code(
        "a buffer is misaligned",
        "An offset must be a multiple of the buffer's alignment and of the region's, and not negative.",
    ),
    "MP208": Code(
        "a fixed offset is not kept",
        "The problem fixes the address of the buffer; the plan places it elsewhere.",
    ),
    "MP209": Code(
        "a buffer lies in a region where it may not",
        "A buffer may lie in the regions that the problem allows and, as a spilled copy, in those that "
        "steps cannot address.",
    ),
    "MP210": Code(
        "a copy between regions is missing, or copies from nowhere",
        "A buffer that appears in a region in mid-life needs a transfer at that position; a transfer "
        "must start where the buffer lies and end where it appears.",
    ),
    "MP211": Code(
        "a buffer is used where it is not addressable",
        "A step touches a buffer at a position where no placement in an allowed, addressable region "
        "holds it.",
    ),
    "MP212": Code(
        "a height is wrong",
        "The height that the plan states for a region is not the highest end address in it.",
    ),
    "MP213": Code(
        "a certificate is wrong",
        "A certificate states a value that the plan does not have, a bound that its witness does not "
        "show, or a status that value and bound do not give.",
    ),
    "MP214": Code(
        "the seal is broken",
        "The content of the plan file does not match its `content_digest`: it was changed after it was "
        "written.",
    ),
    "MP215": Code(
        "the problem itself is malformed",
        "A region, buffer or step of the problem has an impossible value, or names something that does "
        "not exist.",
    ),
    "MP216": Code(
        "a stale copy is used",
        "A spilled copy is brought back although the buffer was written after the copy was made.",
    ),
    "MP220": Code(
        "unknown solver",
        "Each decision, the order and the addresses, has its own solvers; the help line lists them.",
    ),
    "MP221": Code(
        "a region is too small, proven",
        "No placement at this order fits the region: a lower bound exceeds its capacity. The message "
        "names the peak and the buffers that hold it. Less memory is needed when the model is cut into "
        "patches or chunks, when another region takes a part, or at an order with a lower peak.",
    ),
    "MP222": Code(
        "no placement that fits was found before the deadline",
        "The best placement found exceeds the region's capacity, but no bound rules out a better one. "
        "Give the solver more time.",
    ),
    "MP223": Code(
        "fixed offsets contradict each other",
        "Two buffers with fixed offsets overlap while both are live, or a fixed offset is misaligned.",
    ),
    "MP225": Code(
        "OR-tools is missing",
        "The solver needs the package `ortools`, and it cannot be imported. `--solver greedy` works "
        "without it.",
    ),
    "MP226": Code(
        "sizes beyond the range of the solvers",
        "The sizes of the buffers add up to 2^60 bytes or more. Solvers count in 64-bit integers.",
    ),
    "MP227": Code(
        "a solver failed",
        "OR-tools rejected a model or a network that mplan built. This is a bug in mplan.",
    ),
    "MP230": Code(
        "malformed CSV",
        "The file does not follow MiniMalloc's format `id,lower,upper,size[,alignment][,offset]`: a "
        "header, then one buffer per line; lifetimes are half-open `[lower, upper)`.",
    ),
    "MP231": Code(
        "malformed DAG instance",
        "The file is no JSON object of `name`, `nodes` and `tensors` whose indices agree. The message "
        "names the place as a JSON path.",
    ),
    "MP232": Code(
        "malformed plan file",
        "The file is not a plan as mplan writes it. The message names the place as a JSON path.",
    ),
    "MP233": Code(
        "plan file of another version",
        "The `schema_version` of the file is not the one that this mplan reads. Plan again.",
    ),
    "MP234": Code(
        "a name cannot be written as CSV",
        "The CSV format has no quotes: names with commas, quotes, line breaks or outer spaces cannot "
        "be written.",
    ),
    "MP299": Code(
        "a plan fails its own check",
        "The planner made a plan that the checker rejects. This is a bug in mplan; the notes name the "
        "conditions. Please report it with the model.",
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
        "The model is given as `model.py`, `model.py:function` or `model.pt2`; no such file exists.",
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
    "MP311": Code(
        "the arguments do not match the captured call",
        "A graph is captured for one structure of arguments: the same number of positional arguments, "
        "the same keyword arguments, the same nesting of lists and dicts. Capture again for another.",
    ),
    "MP312": Code(
        "the range of a dynamic size is too wide",
        "One graph must serve every size of the ranges in dynamic_shapes, but the model (or a kernel) "
        "treats some of them differently: sizes 0 and 1, sizes that do not divide, or one particular "
        "number. The notes show the conditions; narrow the range, or tie the sizes together.",
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
    "MP420": Code(
        "unknown pass",
        "The text of a pipeline names a pass that does not exist. `mplan opt` and the option "
        "`pipeline` take passes by name, separated by commas: canonicalize,inplace,schedule,allocate.",
    ),
    "MP421": Code(
        "bad option of a pass",
        "Options stand in braces behind the pass: allocate{solver=exact,limit_s=30}. The message says "
        "which option or brace is wrong, the help line which options the pass has.",
    ),
    "MP422": Code(
        "unknown option",
        "torch.compile(…, options={…}) and mplan.plan(…) take the options target, budget, solver, "
        "limit, seed, pipeline and dump. The help line names the nearest one.",
    ),
    "MP423": Code(
        "bad value of an option",
        "The option exists, but its value is not of the form it needs: bytes as 65536, 64KiB or 1.5MB, "
        "a positive number of seconds, the name of a solver.",
    ),
    "MP424": Code(
        "unknown picture format",
        "`mplan viz` writes html, svg, text, snapshot (PyTorch's memory_viz) and trace (Chrome).",
    ),
    "MP425": Code(
        "not a compiled folder",
        "`mplan run` needs a folder that `mplan compile` wrote: its manifest mplan.json or its golden "
        "data is missing or damaged. Compile the model again.",
    ),
    "MP426": Code(
        "inputs do not fit the network",
        "The number or the shape of the given inputs differs from what the compiled network takes.",
    ),
    "MP427": Code(
        "no C code for this target",
        "`mplan compile` writes C for microcontrollers. CPUs and GPUs run models through "
        'torch.compile(model, backend="mplan").',
    ),
    "MP428": Code(
        "example inputs are missing",
        "A module can be captured only with example inputs: mplan.plan(model, (tensor, …)).",
    ),
    "MP429": Code(
        "unknown error code",
        "`mplan explain` prints the long text of an error code such as MP205; there is none of this "
        "number.",
    ),
    "MP430": Code(
        "no target for this device",
        "The model's tensors lie on a device for which mplan has no target; it plans for CPUs and for "
        "CUDA and ROCm GPUs.",
    ),
    "MP490": Code(
        "a file cannot be read",
        "The file does not exist, may not be read, or is not UTF-8 text.",
    ),
    "MP491": Code(
        "a file cannot be written",
        "The folder does not exist or may not be written, or the disk is full. Files are written whole "
        "or not at all: nothing half-written is left behind.",
    ),
    "MP501": Code(
        "operators without C code",
        "Some ops of the model have no C kernel, or not for these arguments or element types; the "
        "notes list all of them with the lines of the model that they come from. Capture with "
        "core-ATen decompositions, or replace the operators.",
    ),
    "MP502": Code(
        "values that C code cannot hold",
        "C code is emitted for tensors of fixed shape, of float32, integers or bools. The message "
        "names a value with a symbolic size or another element type.",
    ),
    "MP503": Code(
        "not a C identifier",
        "The name of the network becomes the prefix of its files and symbols: letters, digits and "
        "underscores, no keyword.",
    ),
    "MP504": Code(
        "graph, plan and constants do not belong together",
        "C code is emitted from a graph, a plan of exactly this graph, values of its constants and, "
        "for the self-test, golden data. One of them is missing a part or belongs to another graph; "
        "or the plan's layout is not one of a microcontroller (weights in a region of their own, "
        "inputs in the arena).",
    ),
    "MP505": Code(
        "unknown kind of project",
        "There is no template for the build system that was asked for; the message lists those that "
        "exist.",
    ),
    "MP520": Code(
        "no attention kernel for these types",
        "Generated attention kernels take fixed sizes, elements of float16, bfloat16 or float32, and "
        "heads of up to 256 elements. Other attention runs as PyTorch's own.",
    ),
    "MP521": Code(
        "the attention kernel needs too much shared memory",
        "Not even the smallest tiles of queries, keys and values fit the shared memory of the GPU. "
        "Use smaller heads or half precision.",
    ),
    "MP522": Code(
        "Triton is missing or failed",
        "Triton is not installed, has no backend for the target, or rejected a kernel; the message "
        "says which. Install it with `pip install 'mplan[gpu]'`. Emitted kernels must compile; if one "
        "does not, report it.",
    ),
    "MP530": Code(
        "the emulator's outputs differ from PyTorch's",
        "The compiled code ran, but an output is further from PyTorch's than float32 rounding explains "
        "(1e-4 · (1 + |expected|)). Please report it with the model.",
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
    "MP547": Code(
        "the compiled network did not finish",
        "The program ended with another exit code than 0, or gave fewer bytes than its outputs have.",
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
    "MP598": Code(
        "a size has no value when the program runs",
        "A bug in mplan: no input of the graph shows the value of a symbol. Please report it.",
    ),
    "MP599": Code(
        "a loop that no kernel is generated from",
        "A bug in mplan: the code generator met an op that the tiling pass does not make. Please "
        "report it.",
    ),
    "MP999": Code(
        "internal error",
        "A bug in mplan: an error that nobody foresaw. Please report the command and the model.",
    ),
}
