"""Targets: a chip or GPU is a TOML file."""
