"""Fixtures of tests that train in their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nas_retrain.execution.train import prepare_process


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute as a worker does, on one thread and reproducibly; afterwards as before."""
    threads = torch.get_num_threads()
    prepare_process(torch.device("cpu"))
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(threads)
