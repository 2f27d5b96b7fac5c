"""The C sources of the CPU heap, and the function that builds them."""
