"""
medimg: from real scans to a trained, evaluated classifier.

Everything public is a name of this module. Each is imported when it is first used, so that
``import medimg`` loads neither torch nor pandas.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_HOMES = {
    "ImageDataset": "medimg.data",
    "FitResult": "medimg.learn",
    "PictureCache": "medimg.data",
    "Preprocess": "medimg.prep",
    "ReadReport": "medimg.core.report",
    "Report": "medimg.evaluate",
    "Series": "medimg.io",
    "SeriesIndex": "medimg.io",
    "SourceTensors": "medimg.data",
    "TensorBatch": "medimg.data",
    "TransferClassifier": "medimg.learn",
    "Volume": "medimg.core.volume",
    "Window": "medimg.core.window",
    "evaluate": "medimg.evaluate",
    "fine_tune": "medimg.learn",
    "iter_tensors": "medimg.data",
    "load": "medimg.learn",
    "read": "medimg.io",
    "read_tensors": "medimg.data",
    "scan": "medimg.io",
    "split": "medimg.data",
    "to_tensor": "medimg.prep",
}
_MODULES = ("errors", "phantom")

__all__ = [*_HOMES, *_MODULES, "__version__"]  # noqa: PLE0604  # all of them are strings


def __getattr__(name: str) -> _Any:
    if name in _HOMES:
        value = getattr(_import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = _import_module(f"medimg.{name}")
    else:
        raise AttributeError(f"module 'medimg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
