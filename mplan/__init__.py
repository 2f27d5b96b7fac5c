"""mplan: a memory planner and kernel generator for PyTorch."""
