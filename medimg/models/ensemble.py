"""Several classifiers that predict as one, and the reading of both."""

from __future__ import annotations

import copy
import re
import reprlib
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from medimg import __version__
from medimg._public import set_module
from medimg._validation import check_fields, check_text
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.result import Calibration
from medimg.errors import CheckpointError, TrainingError, also
from medimg.io.files.atomic import hash_file
from medimg.io.files.hub_files import MODEL_FILE, check_repository, fetch_file
from medimg.io.files.local_copy import local_copy
from medimg.io.files.object_storage import check_location
from medimg.models import checkpoint, safetensors_file
from medimg.models.backbones.heads import feature_count, head_logits
from medimg.models.classifier import TransferClassifier
from medimg.models.digest import model_digest
from medimg.models.input_checks import check_floating
from medimg.models.pooling import GatedAttention
from medimg.models.probabilities import model_probabilities
from medimg.models.training_distribution import TrainingDistribution
from medimg.models.training_images import JointTrainingImages, TrainingImages

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Ensemble", "load"]

_SCHEMA: Final = 1
_HUB: Final = "hf:"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WHAT: Final = "an ensemble written by medimg.Ensemble.save; medimg.load also reads single models"
_FIELDS: Final = ("members", "calibration", "images_seen", "model_sha256")
_LEAST: Final = float(np.finfo(np.float64).tiny)
_MOST: Final = 1.0 - float(np.finfo(np.float64).epsneg)


@set_module("medimg")
class Ensemble(TransferClassifier):
    """
    Several trained classifiers that predict, are calibrated and explained, and saved as one.

    Its probabilities are the mean of those of its members, each with its own calibration; its logits are
    their logarithms (for "multilabel", their log odds), its embeddings those of all members, one after the
    other. :func:`medimg.evaluate`, :func:`medimg.compare_models`, :func:`medimg.calibrate`,
    :func:`medimg.explain`, :func:`medimg.embed` and :func:`medimg.domain_shift` take it like a single model;
    it can't be trained. It holds the members themselves, not copies: ``training_ranges`` and ``images_seen``
    (salted hashes) cover the images of all of them, later trainings included.

    Parameters
    ----------
    members : sequence of TransferClassifier
        Two models or more with the same classes in the same order, task, pooling and preprocessing, on one
        device; backbones and weights may differ. :meth:`medimg.CrossValidation.ensemble` makes one of the
        models of all folds.

    Attributes
    ----------
    members : tuple of TransferClassifier
        As given.
    classes, task, pool, preprocess
        Those of the members.
    calibration : Calibration or None
        Calibration of the mean probabilities; set by :func:`medimg.calibrate`.

    Raises
    ------
    TrainingError
        If the members differ, or there are fewer than two.

    Examples
    --------
    >>> names = ["normal", "pneumonia"]
    >>> members = [TransferClassifier("squeezenet1_1", classes=names, weights=None) for _ in range(3)]
    >>> model = Ensemble(members)
    >>> model
    Ensemble(3 squeezenet1_1, classes=('normal', 'pneumonia'), task=multiclass, pool=none)
    >>> tuple(model.eval()(torch.zeros(4, 3, 224, 224)).shape)
    (4, 2)
    """

    members: tuple[TransferClassifier, ...]

    def __init__(self, members: Sequence[TransferClassifier]) -> None:
        nn.Module.__init__(self)
        self.members = _check_members(members)
        first = self.members[0]
        self.classes, self.task, self.pool = first.classes, first.task, first.pool
        self.preprocess = first.preprocess
        self.backbone = _Backbones(self.members)
        # the annotation is that of a single model
        self.head = cast("nn.Linear", _Head(self.members))
        self.attention = None if first.attention is None else _Attention(self.members)
        names = [one.weights_name for one in self.members]
        self.weights_name = (
            _join_names([PurePath(name or "none").name for name in names]) if any(names) else None
        )
        self.weights_sha256 = None
        self.weights_chain, self.weights_report, self.backbone_library = (), None, None
        self._own_images = TrainingImages()
        self.calibration: Calibration | None = None
        self.train(first.training)

    @property
    def training_summary(self) -> dict[str, Any]:  # type: ignore[override]  # of the members, as they are now
        """What is known of the training of all members."""
        return _summarize(self.members)

    @property
    def training_ranges(self) -> TrainingDistribution | None:  # type: ignore[override]  # of the members, too
        """What any of the members was trained on; None if that is unknown of one."""
        ranges = [one.training_ranges for one in self.members]
        known = [one for one in ranges if one is not None]
        return TrainingDistribution.union(known) if len(known) == len(ranges) else None

    @property
    def images_seen(self) -> TrainingImages:
        """Hashes of the images of any member, and of those of the calibration of the mean."""
        joint, own = JointTrainingImages.of([one.images_seen for one in self.members]), self._own_images
        return replace(joint, salt=own.salt, series=own.series, patients=own.patients)

    @images_seen.setter
    def images_seen(self, value: TrainingImages | None) -> None:
        self._own_images = value or TrainingImages()

    @property
    def backbone_name(self) -> str:
        """Names of the backbones, with their numbers, such as "3 resnet18, 2 vit_b_16"."""
        return _join_names([one.backbone_name for one in self.members])

    def _write(self, target: Path | str) -> None:
        headers: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, member in enumerate(self.members):
            header, own = member.to_checkpoint().parts()
            headers.append(header)
            tensors |= {f"{number}.{name}": value for name, value in own.items()}
        calibration, seen = self.calibration, self.images_seen
        tensors |= checkpoint.pack_tensors(calibration, seen)
        header = {
            "schema": _SCHEMA,
            "medimg": __version__,
            "members": headers,
            "calibration": None if calibration is None else calibration.to_dict(),
            "images_seen": seen.to_dict(),
            "model_sha256": model_digest(self),
        }
        safetensors_file.write(target, checkpoint.ENSEMBLE_KEY, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> Ensemble:
        """
        Read an ensemble written by :meth:`save`; :func:`medimg.load` reads single models, too.

        Each member that was built from a network itself takes a copy of `backbone`.

        Raises
        ------
        CheckpointError
            If the file is damaged, was changed, is newer than this version, or is not an ensemble.
        """
        with local_copy(check_location("path", path, error=CheckpointError), error=CheckpointError) as file:
            return cls._read(file, backbone)

    @classmethod
    def _read(cls, file: Path, backbone: nn.Module | None) -> Ensemble:
        check = partial(
            checkpoint.check_schema, file=file, newest=_SCHEMA, whose="the schema of its ensemble"
        )
        header = safetensors_file.read_header(file, checkpoint.ENSEMBLE_KEY, _WHAT, check=check)
        tensors = safetensors_file.read_tensors(file, header)
        with checkpoint.refuse_unsound(file):
            check_fields("the header", header, _FIELDS, others=True, error=CheckpointError)
            headers = header["members"]
            if not isinstance(headers, list):
                raise CheckpointError(f"members must be a list; found a {type(headers).__name__}")
        members, copies = [], 0
        for number, one in enumerate(headers):
            name = f"member {number}, counted from 0, of {file}"
            checkpoint.check_schema(one, name)
            with checkpoint.refuse_unsound(name):
                saved = checkpoint.parse(one, checkpoint.take(tensors, f"{number}."))
            network = copy.deepcopy(backbone) if saved.architecture.is_module else None
            copies += network is not None
            members.append(TransferClassifier.from_checkpoint(saved, name, backbone=network))
        with checkpoint.refuse_unsound(file):
            if backbone is not None and not copies:
                raise CheckpointError(
                    "its networks are built from their names; backbone= is for networks of your own: omit it"
                )
            model = cls(members)
            model._restore(header, tensors)
        if header["model_sha256"] != model_digest(model):
            raise CheckpointError(
                f"the ensemble in {file} is not the one that was saved (its SHA-256 differs): the file was "
                "changed, or this version of medimg would predict differently"
            )
        return model.eval()

    def _restore(self, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Set what is the ensemble's own."""
        check_text("model_sha256", header["model_sha256"], error=CheckpointError)
        outliers, seen = checkpoint.take_packed(tensors)
        self.images_seen = TrainingImages.from_parts(header["images_seen"], seen)
        detector = MahalanobisDetector.from_tensors(outliers, feature_count(self)) if outliers else None
        if header["calibration"] is not None:
            self.calibration = Calibration.from_dict(header["calibration"], detector, self.classes, self.task)

    def __repr__(self) -> str:
        names = self.classes if len(self.classes) <= 8 else f"{len(self.classes)} classes"
        return f"Ensemble({self.backbone_name}, classes={names}, task={self.task}, pool={self.pool})"


@set_module("medimg")
def load(
    path: str | os.PathLike[str], *, backbone: nn.Module | None = None, sha256: str | None = None
) -> TransferClassifier:
    """
    Read a model written by :meth:`medimg.TransferClassifier.save` or :meth:`medimg.Ensemble.save`.

    Parameters
    ----------
    path : path-like
        File to read, or its URL, such as ``"s3://bucket/model.safetensors"``; or ``"hf:owner/name"``, the
        model of a repository of the Hugging Face hub; ``"hf:owner/name@revision"`` for a branch, tag or
        commit. Its ``model.safetensors`` is taken from the cache, else downloaded (extra ``hub``); nothing
        else of the repository is.
    backbone : nn.Module, optional
        Network of a model that was built from a network itself, of which a file has no code; its weights are
        replaced. Each such member of an ensemble takes a copy.
    sha256 : str, optional
        SHA-256 of the file, in hexadecimal digits, as a model card states it: any other file is refused.
        Without it, whoever can write to a repository or URL decides which model is read, unless the revision
        is a commit.

    Returns
    -------
    TransferClassifier
        On the CPU, in evaluation mode, with nothing frozen; its outputs are bit-for-bit those of the saved
        model. An :class:`medimg.Ensemble` if the file holds one.

    Raises
    ------
    CheckpointError
        If the file can't be read, is damaged, was changed, is newer than this version, or is not a medimg
        checkpoint; or if its network can't be built by what is installed.
    WeightsUnavailableError
        If a model of the hub can't be downloaded.
    MissingDependencyError
        If the library of its network, or of the hub, is not installed.
    """
    with local_copy(_find_file(path), error=CheckpointError) as file:
        if sha256 is not None:
            _check_sha256(file, sha256)
        if checkpoint.is_ensemble(file):
            return Ensemble.load(file, backbone=backbone)
        return TransferClassifier.load(file, backbone=backbone)


def _find_file(path: str | os.PathLike[str]) -> Path | str:
    """Return the file of a model or its URL, from the hub if it is there."""
    if not isinstance(path, str) or not path.startswith(_HUB):
        return check_location("path", path, error=CheckpointError)
    repository = check_repository(path.removeprefix(_HUB))
    where = (
        "check the name and the network; if it is private, log in with: hf auth login; or download its "
        "model.safetensors elsewhere, and load that file"
    )
    return fetch_file(
        repository, (MODEL_FILE,), what=f"the model of {repository}", otherwise=where, extra="hub"
    )


def _check_sha256(file: Path, expected: str) -> None:
    if not isinstance(expected, str) or not _SHA256.fullmatch(expected.lower()):
        raise CheckpointError(f"sha256 must be 64 hexadecimal digits; found {reprlib.repr(expected)}")
    try:
        found = hash_file(file)
    except OSError as error:
        raise also(CheckpointError, type(error))(f"{file} can't be read: {error.strerror}") from None
    if found != expected.lower():
        raise CheckpointError(
            f"the model in {file} is not the expected one: its SHA-256 is {found}; use it only if you know "
            "who changed it"
        )


class _Backbones(nn.ModuleList):
    """Backbones whose embeddings (B, F) are concatenated."""

    def __init__(self, members: Sequence[TransferClassifier]) -> None:
        super().__init__(one.backbone for one in members)
        self._heads = tuple(one.head for one in members)  # for their precision

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, F_1 + F_2 + ...) of images (B, C, H, W)."""
        parts = [body(images.to(head.weight.dtype)) for body, head in zip(self, self._heads, strict=True)]
        return torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)


class _Head(nn.ModuleList):
    """Heads whose probabilities are averaged; their logarithms are the logits of the ensemble."""

    def __init__(self, members: Sequence[TransferClassifier]) -> None:
        super().__init__(one.head for one in members)
        self._members = tuple(members)
        self._sizes = [feature_count(one) for one in members]
        self.in_features = sum(self._sizes)

    @property
    def weight(self) -> Tensor:
        """Weight of the first head, for its device and type."""
        return self._members[0].head.weight

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, K) float64 of embeddings (B, F_1 + F_2 + ...)."""
        parts = torch.split(embeddings, self._sizes, dim=1)
        proba = np.mean(
            [
                model_probabilities(one, head_logits(one.head, part.to(one.head.weight.dtype)))
                for one, part in zip(self._members, parts, strict=True)
            ],
            axis=0,
        )
        # mps has no float64
        dtype = torch.float32 if embeddings.device.type == "mps" else torch.float64
        return torch.from_numpy(_to_logits(proba, self._members[0].task)).to(embeddings.device, dtype)


class _Attention(GatedAttention):
    """Attention of each member on its own embeddings."""

    def __init__(self, members: Sequence[TransferClassifier]) -> None:
        nn.Module.__init__(self)
        self.each = nn.ModuleList(one.attention for one in members if one.attention is not None)
        self._sizes = [feature_count(one) for one in members]

    def weights(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean of the members' weights (B, N)."""
        parts = torch.split(embeddings, self._sizes, dim=-1)
        each = [layer.weights(part, mask) for layer, part in zip(self.each, parts, strict=True)]  # type: ignore[operator]  # of attention
        return torch.stack(each).mean(dim=0)

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool (B, N, F) to (B, F), the part of each member by its own weights."""
        parts = torch.split(embeddings, self._sizes, dim=-1)
        return torch.cat([layer(part, mask) for layer, part in zip(self.each, parts, strict=True)], dim=-1)


def _to_logits(proba: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """Return what gives probabilities (n, K) again by a softmax, or a sigmoid of each."""
    if task == "multiclass":
        return np.asarray(np.log(np.maximum(proba, _LEAST)))
    clipped = proba.clip(_LEAST, _MOST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _check_members(members: object) -> tuple[TransferClassifier, ...]:
    """Return the members; TrainingError if they can't predict as one."""
    if not isinstance(members, list | tuple):
        raise also(TrainingError, TypeError)(
            f"expected a list of TransferClassifiers; found a {type(members).__name__}"
        )
    for one in members:
        if not isinstance(one, TransferClassifier) or isinstance(one, Ensemble):
            hint = "pass its members" if isinstance(one, Ensemble) else "read files with medimg.load(path)"
            hint = "pass the models that were compiled" if hasattr(one, "_orig_mod") else hint
            raise also(TrainingError, TypeError)(
                f"expected TransferClassifiers; found {_article(type(one).__name__)} among them: {hint}"
            )
        check_floating(one)
    if len({id(one) for one in members}) < max(2, len(members)):
        raise TrainingError(
            f"expected at least two different models; found {len({id(one) for one in members})} of "
            f"{len(members)} given"
        )
    _check_same(members)
    return tuple(members)


def _check_same(members: Sequence[TransferClassifier]) -> None:
    facts = [
        {
            "classes": list(one.classes),
            "task": one.task,
            "pool": one.pool,
            "device": str(one.head.weight.device),
        }
        for one in members
    ]
    for number, (one, own) in enumerate(zip(members, facts, strict=True)):
        for name, value in own.items():
            if value != facts[0][name]:
                raise TrainingError(
                    f"model {number}, counted from 0, has {name}={value!r}, model 0 {facts[0][name]!r}; "
                    "expected the same" + (": move them with model.to(device)" if name == "device" else "")
                )
        if one.preprocess.fingerprint != members[0].preprocess.fingerprint:
            recipe, first = one.preprocess.to_dict(), members[0].preprocess.to_dict()
            names = [name for name in recipe if recipe[name] != first.get(name)]
            raise TrainingError(
                f"the preprocessing of model {number}, counted from 0, differs from that of model 0 in "
                f"{', '.join(names)}; expected the same: train all with one preprocess="
            )


def _summarize(members: Sequence[TransferClassifier]) -> dict[str, Any]:
    """Return what is known of the training of all; class weights that no calibration has undone."""
    summary: dict[str, Any] = {"members": len(members)}
    several = [(one.training_summary or {}).get("class_weights") for one in members]
    if any(one.calibration is not None for one in members) or not all(
        isinstance(one, list | tuple) and len(one) == len(members[0].classes) for one in several
    ):
        return summary
    logs = np.log(np.array(several, np.float64))
    return {**summary, "balance": "loss", "class_weights": np.exp(logs.mean(axis=0)).tolist()}


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
