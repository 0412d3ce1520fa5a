from __future__ import annotations

from tests.models.conftest import one_thread
from tests.models.small_network import small_network

__all__ = ["one_thread", "small_network"]
