"""Images with labels: data sets, and splits that keep patients apart."""

from medimg.data.dataset import ImageDataset
from medimg.data.split import split

__all__ = ["ImageDataset", "split"]
