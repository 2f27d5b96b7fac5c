"""MP3xx: capturing a model."""

from __future__ import annotations

from mplan.codes.code import Code

CODES: dict[str, Code] = {
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
        "The error lists all of them with the lines of the model that they come from, or the tensors "
        "of the .tflite file, which must be quantised to int8 throughout.",
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
        "The model is given as `model.py`, `model.py:function`, `model.pt2` or `model.tflite`; no such "
        "file exists.",
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
    "MP313": Code(
        "the .tflite file cannot be read",
        "The file is not a TFLite model, or it is cut off or damaged: its identifier `TFL3`, tables or "
        "buffers are not in their places. Write it again with the converter.",
    ),
    "MP314": Code(
        "a quantisation that mplan cannot lower",
        "For a microcontroller mplan turns quantize and dequantize ops into integer arithmetic of 8 "
        "bits: activations int8 or uint8 with one fixed scale per tensor, weights int8 with one scale "
        "or one per channel. Other widths, activations with a scale per channel and scales that are "
        "computed at run time (dynamic quantisation) are refused; the notes name every place.",
    ),
    "MP315": Code(
        "the model cannot be calibrated",
        "Quantisation runs the model on calibration data, at least one batch, and takes the ranges of "
        "all activations from it. Each batch must fit the model like its example inputs; in an .npz "
        "file each array has one row per sample and belongs to an argument, by name or by order.",
    ),
}
