from medimg.adapt.base import Adaptation as Adaptation
from medimg.adapt.base import AdaptationTerm as AdaptationTerm
from medimg.core.report import ReadReport as ReadReport
from medimg.core.volume import Volume as Volume
from medimg.io.blob import Blob as Blob
from medimg.io.identify import register_reader as register_reader
from medimg.io.identify import unregister_reader as unregister_reader
from medimg.io.raster import Raster as Raster
from medimg.io.raster import raster_series as raster_series
from medimg.io.series import PieceReader as PieceReader
from medimg.io.series import Policies as Policies
from medimg.io.series import Series as Series
from medimg.io.series import SliceReader as SliceReader
from medimg.learn.registry import register_backbone as register_backbone

__all__: list[str]
