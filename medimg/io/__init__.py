"""Reading: from paths to series and volumes. Nothing here imports torch."""

from medimg.io.read import read
from medimg.io.scan import scan
from medimg.io.series import Series, SeriesIndex

__all__ = ["Series", "SeriesIndex", "read", "scan"]
