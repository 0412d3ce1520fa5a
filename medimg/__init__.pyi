from medimg import errors as errors
from medimg import phantom as phantom
from medimg.core.report import ReadReport as ReadReport
from medimg.core.volume import Volume as Volume
from medimg.core.window import Window as Window
from medimg.data import ImageDataset as ImageDataset
from medimg.data import PictureCache as PictureCache
from medimg.data import SourceTensors as SourceTensors
from medimg.data import TensorBatch as TensorBatch
from medimg.data import iter_tensors as iter_tensors
from medimg.data import read_tensors as read_tensors
from medimg.data import split as split
from medimg.evaluate import Report as Report
from medimg.evaluate import evaluate as evaluate
from medimg.io import Series as Series
from medimg.io import SeriesIndex as SeriesIndex
from medimg.io import read as read
from medimg.io import scan as scan
from medimg.learn import FitResult as FitResult
from medimg.learn import TransferClassifier as TransferClassifier
from medimg.learn import fine_tune as fine_tune
from medimg.learn import load as load
from medimg.prep import Preprocess as Preprocess
from medimg.prep import to_tensor as to_tensor

__all__: list[str]
__version__: str
