"""Settings of all tests: one thread, a deterministic seed, and GPU tests only when asked for."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

#: The same examples in every run; ``--hypothesis-profile=default`` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Ctrl-C works in tests and what they start, also where the shell ignores it (``make test &``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-gpu", action="store_true", help="also run the tests that need a CUDA GPU")
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked ``gpu`` unless they are asked for; slow ones run without a tracer.

    It doubles the time of searches, and the other tests reach the floor of the coverage by themselves.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")
    if config.getoption("--run-gpu"):
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
