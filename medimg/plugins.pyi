from medimg.adapt.base import Adaptation as Adaptation
from medimg.adapt.base import AdaptationTerm as AdaptationTerm
from medimg.core.read_report import ReadReport as ReadReport
from medimg.core.volume import Volume as Volume
from medimg.io.detect import register_reader as register_reader
from medimg.io.detect import unregister_reader as unregister_reader
from medimg.io.files.blob import Blob as Blob
from medimg.io.formats.raster import Raster as Raster
from medimg.io.formats.raster_reader import raster_series as raster_series
from medimg.io.series import PieceReader as PieceReader
from medimg.io.series import Policies as Policies
from medimg.io.series import Series as Series
from medimg.io.series import SliceReader as SliceReader
from medimg.models.backbones.registry import register_backbone as register_backbone

__all__: list[str]
