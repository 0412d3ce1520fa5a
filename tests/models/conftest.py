from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.models.networks import narrowed
from tests.sampling import SLOW


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads would cost more than they bring, and share the machine with other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def narrow() -> Iterator[None]:
    """Large networks have an eighth of their channels; with ``MEDIMG_SLOW=1`` all."""
    if SLOW:
        yield
        return
    with narrowed():
        yield
