"""What a report says of a model: what it is, how it was trained, what it was fitted with to decide."""

from pathlib import PurePath
from typing import Any

from medimg.evaluate._protocols import Model

__all__ = ["facts_of"]


def facts_of(model: Model) -> dict[str, Any]:
    """
    Collect what is known of a model.

    Parameters
    ----------
    model : TransferClassifier
        The model.

    Returns
    -------
    dict
        Fit for JSON: ``model`` (backbone, name and hash of the weights it started from, task, pooling, number
        of parameters, digest), ``training`` (the settings, None where it was not trained), ``calibration``
        and ``ranges`` (what :func:`medimg.calibrate` and :func:`medimg.fine_tune` left in it, or None).
    """
    weights = None if model.weights_name is None else PurePath(model.weights_name).name
    known: dict[str, Any] = {"backbone": model.backbone_name, "weights": weights, "task": model.task}
    # the only place where a model may lack what a TransferClassifier has
    sha256, pool, ranges, calibration = (
        getattr(model, name, None) for name in ("weights_sha256", "pool", "training_ranges", "calibration")
    )
    known |= {"weights SHA-256": sha256} if sha256 else {}
    known |= {"pool": pool} if pool else {}
    if hasattr(model, "state_dict"):
        known |= _of_parameters(model)
    return {
        "model": known,
        "training": getattr(model, "training_summary", None),
        "ranges": None if ranges is None else ranges.to_dict(),
        "calibration": None if calibration is None else _calibration(calibration),
    }


def _of_parameters(model: Any) -> dict[str, Any]:
    from medimg.learn.provenance import model_digest

    return {"parameters": sum(p.numel() for p in model.parameters()), "digest": model_digest(model)}


def _calibration(calibration: Any) -> dict[str, Any]:
    return {**calibration.to_dict(), "outliers": calibration.outliers is not None}
