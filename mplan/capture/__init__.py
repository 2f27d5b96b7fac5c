"""From PyTorch to the IR: modules, exported programs, Dynamo graphs and training steps."""

from mplan.capture.captured import Captured
from mplan.capture.dynamo import capture_fx
from mplan.capture.export import capture, capture_exported, capture_loaded
from mplan.capture.load import load_calibration, load_model
from mplan.capture.pt2e import quantize
from mplan.capture.training import capture_training

__all__ = [
    "Captured",
    "capture",
    "capture_exported",
    "capture_fx",
    "capture_loaded",
    "capture_training",
    "load_calibration",
    "load_model",
    "quantize",
]
