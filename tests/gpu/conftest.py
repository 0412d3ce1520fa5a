from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU; without one the CPU, so that these tests can't rot."""
    return "cuda" if torch.cuda.is_available() else "cpu"
