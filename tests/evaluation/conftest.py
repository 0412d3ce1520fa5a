from __future__ import annotations

import pytest

from medimg.evaluation.report import plots
from tests.sampling import SLOW


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made but not drawn, which takes most of the time of a page; drawn with ``MEDIMG_SLOW=1``."""
    if not SLOW:
        monkeypatch.setattr(plots, "_encode_svg", lambda _: "data:image/svg+xml;base64,PHN2Zy8+")
