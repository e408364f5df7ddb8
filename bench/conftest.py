"""What is timed runs in one process, with nothing beside it."""

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    return 0 if config.getoption("benchmark_enable") else None
