from __future__ import annotations

from tests.models.conftest import narrow, one_thread

__all__ = ["narrow", "one_thread"]
