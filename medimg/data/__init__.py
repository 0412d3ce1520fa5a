"""Images with labels, splits that keep patients apart; many images into tensors, and a cache on disk."""

from medimg.data.batch import SourceTensors, TensorBatch
from medimg.data.bulk import iter_tensors, read_tensors
from medimg.data.cache import PictureCache
from medimg.data.dataset import ImageDataset
from medimg.data.folds import kfold
from medimg.data.leaks import Leak, LeakReport, check_leaks
from medimg.data.split import split
from medimg.data.splits_io import load_split, save_split

__all__ = [
    "ImageDataset",
    "Leak",
    "LeakReport",
    "PictureCache",
    "SourceTensors",
    "TensorBatch",
    "check_leaks",
    "iter_tensors",
    "kfold",
    "load_split",
    "read_tensors",
    "save_split",
    "split",
]
