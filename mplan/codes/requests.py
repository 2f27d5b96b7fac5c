"""MP4xx: targets, options, tools and files."""

from __future__ import annotations

from mplan.codes.code import Code

CODES: dict[str, Code] = {
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
        "torch.compile(…, options={…}) and mplan.plan(…) take the options target, budget, minimise, "
        "solver, limit, seed, pipeline and dump; for microcontrollers also quantize, calibrate, io, "
        "max_mac_factor, input, scans and memories. The help line names the nearest one.",
    ),
    "MP423": Code(
        "bad value of an option",
        "The option exists, but its value is not of the form it needs: bytes as 65536, 64KiB or 1.5MB, "
        "a positive number of seconds, the name of a solver, a factor of at least 1, an input that is "
        "whole, rows or flash, a whole number of scans. A budget and minimise exclude each other; "
        "calibration data are for a quantisation, scans for rows that arrive; --pareto writes no plan; "
        "memories have limits of their own, and a budget is one number, for all of them together.",
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
}
