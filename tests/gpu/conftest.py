from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.pretended_gpu import pretended_gpu

_HAS_GPU = torch.cuda.is_available()


@pytest.fixture(
    params=["cuda"] if _HAS_GPU else ["cpu", "cuda"], ids=["gpu"] if _HAS_GPU else ["cpu", "pretended"]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The GPU; without one the CPU, so that these tests can't rot, and a pretended GPU."""
    if request.param == "cuda" and not _HAS_GPU:
        with pretended_gpu():
            yield "cuda"
    else:
        yield str(request.param)
