"""MP1xx: graphs, their text form and their verification."""

from __future__ import annotations

from mplan.codes.code import Code

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
}
