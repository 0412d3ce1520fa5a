"""
medimg: from real scans to a trained, evaluated classifier.

Everything public is a name of this module. Each is imported when it is first used, so that
``import medimg`` loads neither torch nor pandas.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "medimg.learn",
    "Comparison": "medimg.evaluate",
    "CrossValidation": "medimg.evaluate",
    "Embeddings": "medimg.learn",
    "Explanation": "medimg.evaluate",
    "HeadFit": "medimg.learn",
    "ImageDataset": "medimg.data",
    "FitResult": "medimg.learn",
    "ModelComparison": "medimg.evaluate",
    "PictureCache": "medimg.data",
    "Preprocess": "medimg.prep",
    "ReadReport": "medimg.core.report",
    "Report": "medimg.evaluate",
    "ShiftReport": "medimg.learn",
    "Series": "medimg.io",
    "SeriesIndex": "medimg.io",
    "SourceTensors": "medimg.data",
    "TensorBatch": "medimg.data",
    "TransferClassifier": "medimg.learn",
    "Volume": "medimg.core.volume",
    "Window": "medimg.core.window",
    "calibrate": "medimg.learn",
    "compare": "medimg.evaluate",
    "compare_models": "medimg.evaluate",
    "cross_validate": "medimg.evaluate",
    "embed": "medimg.learn",
    "domain_shift": "medimg.learn",
    "evaluate": "medimg.evaluate",
    "explain": "medimg.evaluate",
    "fine_tune": "medimg.learn",
    "fit_head": "medimg.learn",
    "iter_tensors": "medimg.data",
    "load": "medimg.learn",
    "RateSearch": "medimg.learn",
    "lr_find": "medimg.learn",
    "read": "medimg.io",
    "read_tensors": "medimg.data",
    "register_backbone": "medimg.learn",
    "scan": "medimg.io",
    "split": "medimg.data",
    "Leak": "medimg.data",
    "LeakReport": "medimg.data",
    "check_leaks": "medimg.data",
    "kfold": "medimg.data",
    "load_split": "medimg.data",
    "save_split": "medimg.data",
    "to_tensor": "medimg.prep",
}
_MODULES = ("adapt", "errors", "phantom")

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
