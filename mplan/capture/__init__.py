"""From PyTorch to the IR: modules, exported programs, Dynamo graphs and training steps."""

from mplan.capture.captured import Captured
from mplan.capture.export import capture, capture_exported

__all__ = ["Captured", "capture", "capture_exported"]
