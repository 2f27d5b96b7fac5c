"""Execution of plans and of emitted code."""
