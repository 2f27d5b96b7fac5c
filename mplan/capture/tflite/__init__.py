"""TFLite models: a reader of .tflite files whose int8 ops become mplan's quantised ones."""

from mplan.capture.tflite.reader import read_tflite

__all__ = ["read_tflite"]
