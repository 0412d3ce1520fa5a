"""What an exported model says of itself: classes, preprocessing, calibration, hashes; nothing of patients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from medimg import __version__
from medimg._validation import check_choice, check_fields, check_text, check_texts
from medimg.calibration.result import Calibration
from medimg.core.content_hash import json_text
from medimg.errors import CheckpointError, MedimgError
from medimg.models.input_checks import POOLS, TASKS, Task, check_classes
from medimg.models.training_distribution import TrainingDistribution
from medimg.preprocessing.preprocess import Preprocess

__all__ = ["INPUT", "KEY", "OUTPUTS", "Manifest"]

#: Name of the entry in the metadata of an ONNX file.
KEY: Final = "medimg"
#: Name of the input of an exported network.
INPUT: Final = "images"
#: Names of its outputs, of which the first two are always there.
OUTPUTS: Final = ("logits", "probabilities", "ood", "weights")

#: Raised if older versions would misread the file.
_SCHEMA: Final = 1
_MOST_PIXELS: Final = 4096  # rows or columns of an image
_MOST_CHARACTERS: Final = 64 * 2**20
_FIELDS: Final = (
    "backbone",
    "classes",
    "task",
    "pool",
    "preprocess",
    "preprocess_fingerprint",
    "calibration",
    "ranges",
    "outputs",
    "model_sha256",
    "versions",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """
    Description of an exported model.

    The calibration has no detector, whose statistics are part of the network; it is there for thresholds and
    prediction sets, as probabilities come out calibrated.
    """

    backbone: str
    classes: tuple[str, ...]
    task: Task
    pool: str
    preprocess: Preprocess
    calibration: Calibration | None
    training_ranges: TrainingDistribution | None
    outputs: tuple[str, ...]
    model_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the shapes of the input and the outputs in words."""
        calibration, ranges = self.calibration, self.training_ranges
        return {
            "schema": _SCHEMA,
            "backbone": self.backbone,
            "classes": list(self.classes),
            "task": self.task,
            "pool": self.pool,
            "preprocess": self.preprocess.to_dict(),
            "preprocess_fingerprint": self.preprocess.fingerprint,
            "calibration": None if calibration is None else calibration.to_dict(),
            "ranges": None if ranges is None else ranges.to_dict(),
            "input": {"name": INPUT, "type": "float32", "shape": self.input_shape, "range": [0.0, 1.0]},
            "outputs": list(self.outputs),
            "model_sha256": self.model_sha256,
            "versions": {"medimg": __version__, **self.versions},
        }

    @property
    def input_shape(self) -> list[str | int]:
        """Shape of the input; the names of the axes of any length are texts."""
        free = ["images"] if self.pool == "none" else ["bags", "slices"]
        return [*free, *self.preprocess.image_shape]

    def to_json(self) -> str:
        """Return the entry of the metadata."""
        return json_text(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read an entry; CheckpointError if it is damaged, or newer than this version."""
        if len(text) > _MOST_CHARACTERS:
            raise CheckpointError(
                f"the description has {len(text)} characters; expected at most {_MOST_CHARACTERS}"
            )
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"the description is not JSON ({type(error).__name__})") from None
        schema = found.get("schema") if isinstance(found, dict) else None
        if type(schema) is not int or schema < 1:
            raise CheckpointError("the description has no schema")
        if schema > _SCHEMA:
            raise CheckpointError(
                f"it was exported by a newer medimg: its schema is {schema}, this version reads up to "
                f"{_SCHEMA}; update medimg"
            )
        check_fields("the description", found, _FIELDS, others=True, error=CheckpointError)
        try:
            return cls._parse(found)
        except CheckpointError:
            raise
        except (MedimgError, ArithmeticError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the description is unsound: {error}") from error

    @classmethod
    def _parse(cls, found: Mapping[str, Any]) -> Manifest:
        task = check_choice("task", found["task"], TASKS, error=CheckpointError)
        classes = check_classes(check_texts("classes", found["classes"], error=CheckpointError), task)
        calibration, ranges = found["calibration"], found["ranges"]
        outputs = check_texts("outputs", found["outputs"], error=CheckpointError)
        if outputs[:2] != OUTPUTS[:2] or not set(outputs) <= set(OUTPUTS):
            raise CheckpointError(f"outputs must be {', '.join(OUTPUTS)}; found {', '.join(outputs)}")
        return cls(
            backbone=check_text("backbone", found["backbone"], error=CheckpointError),
            classes=classes,
            task=task,
            pool=check_choice("pool", found["pool"], POOLS, error=CheckpointError),
            preprocess=_parse_preprocess(found["preprocess"], found["preprocess_fingerprint"]),
            calibration=None
            if calibration is None
            else Calibration.from_dict(calibration, None, classes, task),
            training_ranges=None if ranges is None else TrainingDistribution.from_dict(ranges),
            outputs=outputs,
            model_sha256=check_text("model_sha256", found["model_sha256"], error=CheckpointError),
        )


def _parse_preprocess(value: object, fingerprint: object) -> Preprocess:
    if not isinstance(value, dict):
        raise CheckpointError(f"preprocess must be an object with fields; found a {type(value).__name__}")
    recipe = Preprocess.from_dict(value)
    if recipe.fingerprint != fingerprint:
        raise CheckpointError(
            "the fingerprint of its preprocessing is another: it was changed, or this version of medimg "
            "preprocesses differently"
        )
    if recipe.dims != 2 or max(recipe.hw) > _MOST_PIXELS:
        raise CheckpointError(
            f"preprocess must make images of at most {_MOST_PIXELS}×{_MOST_PIXELS} pixels; found "
            f"{'×'.join(map(str, recipe.image_shape[1:]))}"
        )
    return recipe
