"""MP5xx: generated code and its execution; MP9xx: bugs."""

from __future__ import annotations

from mplan.codes.code import Code

CODES: dict[str, Code] = {
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
    "MP548": Code(
        "a store to memory that belongs to nothing",
        "The program wrote to RAM of the part outside of its arena, its variables and its stack. Such "
        "a store harms nothing today and something else tomorrow. Emitted code must not do this; if it "
        "does, report it.",
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
