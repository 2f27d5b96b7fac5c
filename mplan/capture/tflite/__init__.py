"""TFLite models: a reader of .tflite files whose int8 ops become mplan's quantised ones."""

from mplan.capture.tflite.boundary import with_integer_io
from mplan.capture.tflite.reader import read_tflite

__all__ = ["read_tflite", "with_integer_io"]
