"""Which of many inputs a run takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

#: Whether tests run on all inputs, repeats of one kind included: ``MEDIMG_SLOW=1``.
SLOW = bool(os.environ.get("MEDIMG_SLOW"))


def sample(items: Sequence[_Item], every: int = 3) -> list[_Item]:
    """Return every third item, or as stated, from the first on; all with ``MEDIMG_SLOW=1``."""
    return list(items[:: 1 if SLOW else every])
