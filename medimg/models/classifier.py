"""The classifier: a pretrained backbone, a new head, and the recipe its pictures are made by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor, nn

from medimg.models._input_checks import check_classes, check_input
from medimg.models.backbones.architecture import (
    Architecture,
    architecture_for,
    check_backbone,
    check_size,
    default_recipe,
    load_backbone,
)
from medimg.models.backbones.heads import head_logits, new_head
from medimg.models.backbones.weights import WeightsChoice, resolve_weights, weights_name
from medimg.models.freezing import Freezable, share_frozen
from medimg.models.pooling import Pool, embed_slices, make_pooling, pool_embeddings

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.calibration.result import Calibration
    from medimg.data.protocols import LabeledDataset
    from medimg.models._scoring import PredictSource
    from medimg.models.training_distribution import TrainingDistribution
    from medimg.models.training_images import TrainingImages
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["Task", "TransferClassifier"]

Task: TypeAlias = Literal["multiclass", "multilabel"]


class TransferClassifier(Freezable):
    """
    Any torchvision classification model with a new head, and the recipe that makes its pictures.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classification model, such as "resnet50" or "vit_b_16", or of a network that
        :func:`medimg.register_backbone` made known.
    classes : sequence of str
        Names of the classes, in the order of the outputs.
    weights : str, path, WeightsEnum or None
        "DEFAULT", the name of torchvision's weights, the path of a state dict (``.pth`` or ``.safetensors``;
        where its name carries its SHA-256, as torchvision's do, that is checked), or None for random ones.
    preprocess : Preprocess, optional
        The recipe; by default one with the size, mean and standard deviation that the weights were trained
        with.
    task : {"multiclass", "multilabel"}
        One class among several (softmax), or several labels at once (sigmoid).
    pool : {"none", "mean", "max", "attention"}
        How the embeddings of the slices of a bag become one; "none" takes single pictures only.
    accept_license : bool
        Whether weights under a license of their own (SWAG's, non-commercial) may be used.
    progress : bool
        Whether a download shows its progress.

    Attributes
    ----------
    backbone : nn.Module
        The network without its head: (B, 3, H, W) to (B, F).
    head : nn.Linear or nn.Conv2d
        The new last layer.
    attention : GatedAttention or None
        The pooling, where it has parameters.
    classes, task, pool, preprocess
        As given.
    architecture : Architecture
        What the backbone is built by.
    backbone_name : str
        Its name.
    weights_name, weights_sha256 : str or None
        Name and SHA-256 of the weights that training started from.
    training_summary : dict or None
        How the model was trained; set by :func:`medimg.fine_tune`.
    training_ranges : TrainingDistribution or None
        What the training data were like: modalities, body parts, spacings; set by training.
    images_seen : TrainingImages or None
        Hashes of the images that it was trained with, so that evaluation knows these again.
    calibration : Calibration or None
        What predictions are calibrated and decided by; set by :func:`medimg.calibrate`, None for nothing.

    Raises
    ------
    TrainingError
        If a name is unknown, or the classes are unsound.
    PreprocessError
        If the backbone takes no pictures of the recipe's size.
    WeightsUnavailableError
        If the weights are not to be had, damaged, or of another network.

    Examples
    --------
    >>> model = TransferClassifier("squeezenet1_1", classes=["normal", "pneumonia"], weights=None)
    >>> model
    TransferClassifier(squeezenet1_1, weights=None, classes=('normal', 'pneumonia'), task=multiclass,
        pool=none, 0.7 M parameters, 0.0 % frozen)
    """

    backbone: nn.Module
    head: nn.Linear | nn.Conv2d

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        classes: Sequence[str],
        weights: WeightsChoice = "DEFAULT",
        preprocess: Preprocess | None = None,
        task: Task = "multiclass",
        pool: Pool = "none",
        accept_license: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        names = check_classes(classes, task)
        source = resolve_weights(backbone, weights, accept_license=accept_license)
        # weights with a URL may have to be fetched: whether they fit the recipe is settled before
        local = source.load(progress=progress) if source is not None and source.url is None else None
        recipe = preprocess or default_recipe(backbone, source, local.state if local is not None else None)
        architecture = architecture_for(
            backbone,
            entry=source.entry if source is not None else None,
            state=local.state if local is not None else None,
            recipe=recipe,
        )
        loaded = local or (source.load(progress=progress) if source is not None else None)
        self.weights_name = weights_name(backbone, source)
        self.weights_sha256 = loaded.sha256 if loaded is not None else None
        self._assemble(architecture, names, recipe, task, pool, state=loaded.state if loaded else None)

    def _assemble(
        self,
        architecture: Architecture,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        task: Task,
        pool: Pool,
        *,
        state: Any = None,
        bare: bool = False,
    ) -> None:
        parts = architecture.build(initialize=state is None)
        if state is not None:
            load_backbone(parts, state, backbone=architecture.name, source=str(self.weights_name))
        self.architecture = architecture
        self.classes = classes
        self.preprocess = preprocess
        self.task: Task = task
        self.pool: Pool = pool
        self.training_summary: dict[str, Any] | None = None
        self.training_ranges: TrainingDistribution | None = None
        self.images_seen: TrainingImages | None = None
        self.calibration: Calibration | None = None
        self.backbone = parts.body
        self.attention = make_pooling(pool, parts.features)
        self.head = new_head(parts.head, len(classes), device="meta" if bare else None)

    @classmethod
    def rebuild(
        cls,
        architecture: Architecture,
        *,
        classes: Sequence[str],
        preprocess: Preprocess,
        task: Task,
        pool: Pool,
        weights_name: str | None = None,
        weights_sha256: str | None = None,
    ) -> TransferClassifier:
        """
        Build a classifier whose parameters are loaded next, as a checkpoint does: no weights are fetched.

        Parameters
        ----------
        architecture : Architecture
            What the backbone is built by.
        classes, preprocess, task, pool
            As in the class.
        weights_name, weights_sha256 : str or None
            What training once started from.

        Returns
        -------
        TransferClassifier
            With a random backbone, and a head without numbers: classes that a file claims take no memory.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        check_backbone(architecture.name)
        check_size(architecture, preprocess)
        model.weights_name, model.weights_sha256 = weights_name, weights_sha256
        model._assemble(architecture, check_classes(classes, task), preprocess, task, pool, bare=True)
        return model

    @property
    def backbone_name(self) -> str:
        """Name of the backbone, in torchvision or as it was registered."""
        return self.architecture.name

    def forward(self, x: Tensor, mask: Tensor | None = None, grad_slices: int | None = None) -> Tensor:
        """
        Compute logits.

        Parameters
        ----------
        x : Tensor
            (B, 3, H, W) normalized pictures, or (B, N, 3, H, W) bags of slices.
        mask : Tensor, optional
            (B, N) bool: which slices of the bags are there; all by default.
        grad_slices : int, optional
            How many slices of each bag keep a gradient, at most; see ``medimg.models.pooling.embed_slices``.

        Returns
        -------
        Tensor
            (B, K).

        Raises
        ------
        PreprocessError
            If the shape is another one, or ``pool="none"`` meets bags.
        """
        return head_logits(self.head, self.embed(x, mask, grad_slices=grad_slices))

    def embed(self, x: Tensor, mask: Tensor | None = None, *, grad_slices: int | None = None) -> Tensor:
        """
        Compute what the head sees.

        Parameters
        ----------
        x, mask, grad_slices
            As for the logits.

        Returns
        -------
        Tensor
            (B, F): the embedding of each picture, or the pooled one of each bag.
        """
        check_input(x, mask, self.pool)
        x = x.to(self.head.weight.dtype)
        if x.ndim == 4:
            pictures: Tensor = self.backbone(x)
            return pictures
        slices = embed_slices(self.backbone, x, mask, grad_slices=grad_slices)
        return pool_embeddings(slices, mask, self.pool, self.attention)

    def predict(
        self,
        sources: PredictSource | Iterable[PredictSource],
        *,
        unit: Literal["series", "slice"] = "series",
        batch_size: int = 32,
        on_error: Literal["raise", "collect"] = "raise",
        provenance: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """
        Predict on raw images, preprocessed by the model's own recipe.

        Parameters
        ----------
        sources : path, Series, Volume, or an iterable of these
            Whatever :func:`medimg.read` takes; a list is several sources, not the files of one.
        unit : {"series", "slice"}
            One row for each source (without pooling: the mean of its slices' probabilities), or one for each
            slice that the recipe takes, scored as if it were alone.
        batch_size : int
            Pictures at once.
        on_error : {"raise", "collect"}
            Whether a source that can't be read ends it all, or has a row without scores that says why.
        provenance : bool
            Whether ``model`` and ``recipe`` stand in columns, too.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        pandas.DataFrame
            Columns ``source``, ``series_uid``; for slices ``sop_instance_uid`` and ``slice`` (index in the
            volume as it was read); ``predicted`` (for labels: those at 0.5 and above, joined by ";");
            ``p_<class>`` for each class; for slices ``weight``, how much the slice counts in its series (they
            sum to 1 over a source: the attention's weights; with "max" the share of features whose maximum
            lies in the slice; else equal shares); with "collect" ``error``, None where there is none.

            A calibrated model adds ``set``, the classes that can't be ruled out, ``flagged``, those of more
            than two that reach their threshold, and ``ood``, how unusual the image is (the share of held-out
            ones that are less so); see :func:`medimg.calibrate`. A trained one adds ``unlike``, in what the
            image is unlike the training data: modality, body part, spacing. ``attrs`` of the table has
            "model", the first digits of the model's hash, "recipe" and "medimg", the version.

        Raises
        ------
        TrainingError
            If a setting is unsound, or parameters were changed after the model was calibrated.
        MedimgError
            If a source can't be read, and errors are not collected.

        Warns
        -----
        MedimgWarning
            If images are unlike the training data, or were not decided as calibrated.
        """
        from medimg.models.predict import predict

        return predict(
            self,
            sources,
            unit=unit,
            batch_size=batch_size,
            on_error=on_error,
            provenance=provenance,
            progress=progress,
        )

    def predict_proba(
        self, dataset: LabeledDataset, *, batch_size: int = 32, num_workers: int = 0, progress: bool = False
    ) -> NDArray[np.float64]:
        """
        Predict on every item of a data set, in its order.

        Parameters
        ----------
        dataset : ImageDataset
            Made by the model's own recipe.
        batch_size, num_workers : int
            Items at once; processes that read.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        numpy.ndarray
            (n, K) float64 probabilities, calibrated if the model is.

        Raises
        ------
        PreprocessError
            If the data set's recipe is another one.
        """
        from medimg.models.predict import predict_proba

        return predict_proba(self, dataset, batch_size=batch_size, num_workers=num_workers, progress=progress)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write parameters, classes, recipe, calibration, hashes and versions to a safetensors file.

        Parameters
        ----------
        path : path-like
            The file, by habit ``.safetensors``; replaced as a whole, or not at all.

        Returns
        -------
        pathlib.Path
            The file.
        """
        from medimg.models.checkpoint import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferClassifier:
        """
        Read a model that :meth:`save` wrote; see :func:`medimg.load`.

        Raises
        ------
        CheckpointError
            If the file is damaged, was changed, is newer than this version, or is no checkpoint of medimg.
        """
        from medimg.models.checkpoint import load

        return load(path)

    def __repr__(self) -> str:
        total = sum(p.numel() for p in self.parameters()) / 1e6
        names = self.classes if len(self.classes) <= 8 else f"{len(self.classes)} classes"
        return (
            f"TransferClassifier({self.backbone_name}, weights={self.weights_name}, classes={names}, "
            f"task={self.task}, pool={self.pool}, {total:.1f} M parameters, "
            f"{100 * share_frozen(self):.1f} % frozen)"
        )
