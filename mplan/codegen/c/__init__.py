"""C99 for microcontrollers: float32 kernels that run inside a planned arena."""
