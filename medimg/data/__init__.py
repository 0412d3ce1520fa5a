"""Images with labels, splits that keep patients apart; many images into tensors, and a cache on disk."""

from medimg.data.batch import SourceTensors, TensorBatch
from medimg.data.bulk import iter_tensors, read_tensors
from medimg.data.cache import PictureCache
from medimg.data.dataset import ImageDataset
from medimg.data.split import split

__all__ = [
    "ImageDataset",
    "PictureCache",
    "SourceTensors",
    "TensorBatch",
    "iter_tensors",
    "read_tensors",
    "split",
]
