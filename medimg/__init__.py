"""
medimg: from real scans to a trained, evaluated classifier.

Everything public is a name of this module. Each is imported when it is first used, so that
``import medimg`` loads neither torch nor pandas.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "medimg.calibration.result",
    "Comparison": "medimg.evaluation.compare_backbones",
    "CrossValidation": "medimg.evaluation.cross_validation",
    "DicomWebServer": "medimg.io.dicomweb.server",
    "Embeddings": "medimg.features.embed",
    "Ensemble": "medimg.models.ensemble",
    "Explanation": "medimg.saliency.explanation",
    "HeadFit": "medimg.training.fit_head",
    "ImageDataset": "medimg.data.dataset",
    "FailedInstance": "medimg.io.dicomweb.store_instances",
    "FitResult": "medimg.training.history",
    "MedImgReader": "medimg.data.monai_reader",
    "ModelComparison": "medimg.evaluation.compare_models",
    "ImageCache": "medimg.data.cache.image_cache",
    "OnnxClassifier": "medimg.models.portable.onnx_classifier",
    "PaddedBatch": "medimg.data.dataloader",
    "PreparedFolder": "medimg.data.prepared.prepare",
    "Preprocess": "medimg.preprocessing.preprocess",
    "RayExecutor": "medimg.executors.ray_executor",
    "ReadReport": "medimg.core.read_report",
    "Report": "medimg.evaluation.report.report",
    "ShiftReport": "medimg.adapt.shift_report",
    "Series": "medimg.io.series",
    "SeriesIndex": "medimg.io.series_index",
    "SkippedFiles": "medimg.io.series_index",
    "SourceTensors": "medimg.data.read_tensors",
    "StoreResult": "medimg.io.dicomweb.store_instances",
    "TensorBatch": "medimg.data.read_tensors",
    "TransferClassifier": "medimg.models.classifier",
    "Volume": "medimg.core.volume",
    "WeightsReport": "medimg.models.backbones.state_matching",
    "Window": "medimg.core.window",
    "calibrate": "medimg.training.calibrate",
    "collate": "medimg.data.dataloader",
    "compare": "medimg.evaluation.compare_backbones",
    "compare_models": "medimg.evaluation.compare_models",
    "cross_validate": "medimg.evaluation.cross_validation",
    "dicomweb": "medimg.io.dicomweb.server",
    "embed": "medimg.features.embed",
    "domain_shift": "medimg.adapt.shift",
    "evaluate": "medimg.evaluation.evaluate",
    "score": "medimg.evaluation.score",
    "explain": "medimg.saliency.explain",
    "fine_tune": "medimg.training.fine_tune",
    "fit_head": "medimg.training.fit_head",
    "iter_tensors": "medimg.data.read_tensors",
    "load": "medimg.models.ensemble",
    "LRFinderResult": "medimg.training.lr_finder",
    "lr_find": "medimg.training.lr_finder",
    "prepare": "medimg.data.prepared.prepare",
    "read": "medimg.io.read",
    "read_tensors": "medimg.data.read_tensors",
    "register_backbone": "medimg.models.backbones.registry",
    "scan": "medimg.io.scan",
    "set_verbosity": "medimg.core.logger",
    "split": "medimg.data.splits.split",
    "Leak": "medimg.data.leakage.overlaps",
    "LeakReport": "medimg.data.leakage.check_leaks",
    "check_leaks": "medimg.data.leakage.check_leaks",
    "kfold": "medimg.data.splits.kfold",
    "load_split": "medimg.data.splits.split_file",
    "save_split": "medimg.data.splits.split_file",
    "to_tensor": "medimg.preprocessing.preprocess",
    "TuneResult": "medimg.evaluation.tune",
    "tune": "medimg.evaluation.tune",
    "from_sitk": "medimg.interop.sitk_image",
    "to_sitk": "medimg.interop.sitk_image",
    "from_nibabel": "medimg.interop.nibabel_image",
    "to_nibabel": "medimg.interop.nibabel_image",
    "from_monai": "medimg.interop.meta_tensor",
    "to_monai": "medimg.interop.meta_tensor",
    "from_torchio": "medimg.interop.torchio_image",
    "to_torchio": "medimg.interop.torchio_image",
    "from_highdicom": "medimg.interop.highdicom_volume",
    "to_highdicom": "medimg.interop.highdicom_volume",
    "from_pil": "medimg.interop.pil_image",
    "to_pil": "medimg.interop.pil_image",
    "from_xarray": "medimg.interop.data_array",
    "to_xarray": "medimg.interop.data_array",
}
_MODULES = ("adapt", "errors", "export", "phantom")

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
