"""Code generators: C for microcontrollers, Triton for GPUs."""
