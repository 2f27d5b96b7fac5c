"""MP2xx: plans, solvers and plan files."""

from __future__ import annotations

from mplan.codes.code import Code

CODES: dict[str, Code] = {
    "MP200": Code(
        "the plan breaks conditions of the checker",
        "`mplan check` replayed the plan against its problem and found conditions that fail. Each has "
        "a code of its own (MP201 to MP217), listed as notes.",
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
        "The end address of a placement exceeds the capacity of the region, or the heights of several "
        "regions exceed what they have together.",
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
    "MP217": Code(
        "buffers that must be adjacent are not",
        "The problem demands that the buffers of a group lie one directly behind the other; the plan "
        "puts one elsewhere, or in another region.",
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
        "fixed offsets or adjacent buffers contradict each other",
        "Two buffers with fixed offsets overlap while both are live, a fixed offset is misaligned, or "
        "no address satisfies the alignments and fixed offsets of all buffers of an adjacent group.",
    ),
    "MP225": Code(
        "OR-tools is missing",
        "The solver needs the package `ortools`, and it cannot be imported. `--solver greedy` works "
        "without it.",
    ),
    "MP226": Code(
        "sizes beyond the range of the solvers",
        "The sizes of the buffers, each rounded up to the multiple that all alignments have in common, "
        "add up to 2^60 bytes or more above the highest fixed offset. "
        "Solvers count in 64-bit integers.",
    ),
    "MP227": Code(
        "a solver failed",
        "OR-tools rejected a model or a network that mplan built. This is a bug in mplan.",
    ),
    "MP228": Code(
        "buffers cannot be shared out between the memories",
        "Every buffer lies in one of the named memories, and no way was found in which each has room "
        "for what lives in it at once, within the budget for all together. The help line says whether "
        "there is none at this order. Name more memories (`--memories`), give a larger budget, or use "
        "less memory.",
    ),
    "MP230": Code(
        "malformed CSV",
        "The file does not follow MiniMalloc's format `id,lower,upper,size` with optional columns "
        "`alignment`, `hint`, `gaps` and `offset`: a header, then one buffer per line; lifetimes are "
        "half-open `[lower, upper)`, gaps look like `3-5` or `3-5@0:8`.",
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
    "MP235": Code(
        "no streams fit",
        "No cut of the network into streams of rows or pixels fits the budget and the limit of "
        "multiply-accumulates, or rows are to arrive where an op needs more than rows. Allow more "
        "recomputation (`--max-mac-factor`), more memory (`--budget`), or give the image in another "
        "way (`--input`); `mplan plan --pareto` shows what there is.",
    ),
    "MP299": Code(
        "a plan fails its own check",
        "The planner made a plan that the checker rejects. This is a bug in mplan; the notes name the "
        "conditions. Please report it with the model.",
    ),
}
