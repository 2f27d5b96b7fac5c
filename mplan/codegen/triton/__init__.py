"""Triton code: readable Python modules with kernels that are generated from tiled loops."""
