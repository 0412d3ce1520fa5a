from __future__ import annotations

from tests.learn.conftest import one_thread

__all__ = ["one_thread"]
