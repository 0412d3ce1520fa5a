"""The classifier: a pretrained backbone, a new head, and the preprocessing of its images."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from medimg._public import set_module
from medimg._validation import check_number, printable
from medimg.errors import CheckpointError, PreprocessError, WeightsUnavailableError, also
from medimg.io.files.local_copy import local_copy
from medimg.io.files.object_storage import check_location
from medimg.io.files.output import check_target
from medimg.models import checkpoint
from medimg.models.backbone_choice import resolve_backbone
from medimg.models.backbones.architecture import (
    Architecture,
    architecture_for,
    build_backbone,
    check_size,
    convert_state,
    default_recipe,
    load_backbone,
    rebuild_source,
    resolve_weights,
    weights_name,
)
from medimg.models.backbones.compiled import is_wrapped, unwrap
from medimg.models.backbones.heads import head_logits, new_head
from medimg.models.backbones.source import BackboneSource, grayscale_recipe, library_version
from medimg.models.backbones.weights import WeightsChoice
from medimg.models.digest import model_digest
from medimg.models.freezing import Freezable, frozen_fraction
from medimg.models.input_checks import Pool, Task, check_classes, check_floating, check_input, check_whole
from medimg.models.low_rank import merged_copy
from medimg.models.module_mode import with_gradients
from medimg.models.pooling import embed_slices, make_pooling, pool_embeddings
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor
    from typing import Self

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.calibration.result import Calibration
    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.models.backbones.state_matching import WeightsReport
    from medimg.models.prediction.scored_source import PredictSource
    from medimg.models.test_time_augmentation import ViewChoice
    from medimg.models.training_distribution import TrainingDistribution
    from medimg.models.training_images import TrainingImages

__all__ = ["TransferClassifier"]


@set_module("medimg")
class TransferClassifier(Freezable):
    """
    A pretrained network with a new head, and the preprocessing of its images.

    Parameters
    ----------
    backbone : str, path or nn.Module
        Name of a torchvision classification model, such as "resnet50" or "vit_b_16", of a network registered
        by :func:`medimg.register_backbone`, or of one of another source: "timm:vit_base_patch16_dinov3",
        "hf:microsoft/rad-dino", "torchxrayvision:densenet121-res224-all", "radimagenet:resnet50". Path of a
        checkpoint of medimg, or of a folder that timm or transformers wrote. A network whose last linear or
        convolutional layer is its head; see the user guide.
    classes : sequence of str
        Class names, in the order of the outputs.
    weights : str, path, WeightsEnum or None
        "DEFAULT", the name of torchvision weights, the path of a state dict (``.pth`` or ``.safetensors``; if
        its name contains its SHA-256, as torchvision's do, the hash is checked) or of a checkpoint of medimg,
        whose backbone is taken, or None for random weights. Prefixes and wrappings of training scripts
        (MoCo, DINO, MAE, Lightning, ...) are recognized; see the user guide. Other sources: "DEFAULT", or the
        tag of timm's weights.
    min_match : float
        Least fraction of the backbone's parameters that a file must have. Below 1, the rest keeps random
        initial values, and `weights_report` and the log name it.
    preprocess : Preprocess, optional
        Preprocessing recipe; by default that of a checkpoint, or one with the size, mean and standard
        deviation of the weights.
    task : {"multiclass", "multilabel"}
        One class per image (softmax), or several labels (sigmoid).
    pool : {"none", "mean", "max", "attention"}
        Pooling of the embeddings of the slices of a bag; "none" for single images only.
    accept_license : bool
        Whether weights may be used that are under a license of their own (such as SWAG's, non-commercial), or
        under one that is not known.
    in_channels : {1, 3}, optional
        Channels of an image; by default those that the network was made for. 1 folds the first layer of a
        network of three channels: its weights are summed, and the default preprocessing has one channel.
    progress : "auto" or bool
        Whether to show the progress of a download. "auto": in a terminal or a notebook.

    Attributes
    ----------
    backbone : nn.Module
        Network without its head: (B, C, H, W) to embeddings (B, F), C 3 or 1.
    head : nn.Linear or nn.Conv2d
        New last layer.
    attention : GatedAttention or None
        Layer of attention pooling.
    classes, task, pool, preprocess
        As given.
    architecture : Architecture
        Description from which the backbone is built.
    backbone_name : str
        Name of the backbone.
    backbone_library : str or None
        Library that has the code of the backbone, if it is neither torchvision nor your own.
    weights_name, weights_sha256 : str or None
        Name and SHA-256 of the initial weights.
    weights_report : WeightsReport or None
        What the initial weights contained; None without weights, and after :func:`medimg.load`.
    weights_chain : tuple of dict
        Where the initial weights come from: their ``name`` and ``sha256``; of a checkpoint of medimg also its
        ``model_sha256``, ``classes`` and ``train_items``, followed by what it started from, and so on.
    training_summary : dict or None
        Settings and best epoch of the training; set by :func:`medimg.fine_tune`.
    training_ranges : TrainingDistribution or None
        Modalities, body parts and spacings of the training data; set by training.
    images_seen : TrainingImages or None
        Salted hashes of the training images, by which evaluation detects them.
    calibration : Calibration or None
        Temperature, thresholds and prediction sets; set by :func:`medimg.calibrate`.

    Raises
    ------
    TrainingError
        If a name is unknown, or the classes are invalid.
    PreprocessError
        If the backbone does not take images of the size of `preprocess`.
    WeightsUnavailableError
        If the weights can't be obtained, are damaged, or belong to another network.

    Examples
    --------
    >>> model = TransferClassifier("squeezenet1_1", classes=["normal", "pneumonia"], weights=None)
    >>> model
    TransferClassifier(squeezenet1_1, weights=None, classes=('normal', 'pneumonia'), task=multiclass,
        pool=none, 0.7 M parameters, 0.0 % frozen)
    """

    backbone: nn.Module
    head: nn.Linear | nn.Conv2d

    @with_gradients
    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "resnet50",
        *,
        classes: Sequence[str],
        weights: WeightsChoice = "DEFAULT",
        preprocess: Preprocess | None = None,
        task: Task = "multiclass",
        pool: Pool = "none",
        accept_license: bool = False,
        in_channels: int | None = None,
        min_match: float = 1.0,
        progress: Progress = "auto",
    ) -> None:
        super().__init__()
        network, path = resolve_backbone(backbone, weights)
        weights = path if path is not None and weights == "DEFAULT" else weights
        names = check_classes(classes, task)
        if preprocess is not None and not isinstance(preprocess, Preprocess):
            raise also(PreprocessError, TypeError)(
                f"preprocess must be a Preprocess or None; found a {type(preprocess).__name__}"
            )
        share = check_number("min_match", min_match, above=0, most=1)
        source = resolve_weights(network, weights, accept_license=accept_license)
        if source is not None and source.url is None:
            checkpoint.refuse_ensemble(source.path)
        # weights with a URL may have to be downloaded: the size of the images is checked before
        local = source.load(progress=progress) if source is not None and source.url is None else None
        self.weights_name = weights_name(network, source)
        earlier = checkpoint.find(source.path) if source is not None and local is not None else None
        if earlier is not None and earlier.architecture.name != network.name:
            raise WeightsUnavailableError(
                f"the weights {printable(self.weights_name)} are a checkpoint of a "
                f"{earlier.architecture.name}, expected one of a {network.name}: pass the backbone "
                "of the checkpoint, or other weights"
            )
        if earlier is not None and in_channels is None:
            in_channels = earlier.architecture.channels
        tensors = local.state if local is not None else None
        if preprocess is not None:
            recipe = preprocess
        elif earlier is not None and earlier.preprocess.n_channels == earlier.architecture.channels:
            recipe = grayscale_recipe(earlier.preprocess) if in_channels == 1 else earlier.preprocess
        else:
            recipe = default_recipe(network, source, tensors, channels=in_channels)
        architecture = architecture_for(
            network, weights=source, state=tensors, recipe=recipe, channels=in_channels
        )
        if earlier is not None:
            architecture = replace(architecture, transform_input=earlier.architecture.transform_input)
        if local is not None and architecture.settings is not None:
            checkpoint.check_parameter_count(
                local.state,
                architecture,
                network.count_parameters(architecture),
                what=f"the file {printable(self.weights_name)}",
                least=share,
                error=WeightsUnavailableError,
            )
        loaded = local or (source.load(progress=progress) if source is not None else None)
        self.weights_sha256 = loaded.sha256 if loaded is not None else None
        # the backbone of a checkpoint has seen its images
        seen = earlier.images_seen if earlier is not None else None
        state = loaded.state if loaded is not None else None
        self._assemble(
            architecture,
            names,
            recipe,
            task,
            pool,
            source=network,
            state=state,
            min_match=share,
            images_seen=seen,
        )
        self.weights_chain = checkpoint.extend_chain(self.weights_name, self.weights_sha256, earlier)

    def _assemble(
        self,
        architecture: Architecture,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        task: Task,
        pool: Pool,
        *,
        source: BackboneSource,
        state: Any = None,
        min_match: float = 1.0,
        images_seen: TrainingImages | None = None,
        bare: bool = False,
    ) -> None:
        initialize = state is None or min_match < 1
        parts = build_backbone(architecture, source, preprocess, initialize=initialize, tried=not bare)
        self.weights_report: WeightsReport | None = None
        if state is not None:
            self.weights_report = load_backbone(
                parts,
                convert_state(parts, architecture, source, state),
                backbone=architecture.name,
                source=str(self.weights_name),
                min_match=min_match,
            )
        self.architecture = architecture
        self.backbone_library = source.library
        self.classes = classes
        self.preprocess = preprocess
        self.task: Task = task
        self.pool: Pool = pool
        self.training_summary: dict[str, Any] | None = None
        self.training_ranges: TrainingDistribution | None = None
        self.images_seen = images_seen
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
        weights_chain: tuple[dict[str, Any], ...] = (),
        source: BackboneSource | None = None,
    ) -> TransferClassifier:
        """
        Build a classifier without weights, whose parameters are loaded next.

        Parameters
        ----------
        architecture : Architecture
            Description from which the backbone is built.
        classes, preprocess, task, pool
            As in the class.
        weights_name, weights_sha256 : str or None
            Name and SHA-256 of the weights from which training started.
        weights_chain : tuple of dict
            Where these come from.
        source : BackboneSource, optional
            Source of the backbone; by default that of the architecture's name.

        Returns
        -------
        TransferClassifier
            With a random backbone, and a head on the meta device, so that any number of classes takes no
            memory.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        source = rebuild_source(architecture) if source is None else source
        check_size(architecture, preprocess, source)
        model.weights_name, model.weights_sha256 = weights_name, weights_sha256
        model.weights_chain = weights_chain
        names = check_classes(classes, task)
        model._assemble(architecture, names, preprocess, task, pool, source=source, bare=True)
        return model

    @property
    def backbone_name(self) -> str:
        """Name of the backbone: in torchvision, as registered, or with its source before a colon."""
        return self.architecture.name

    def __setattr__(self, name: str, value: Any) -> None:
        """Take a network, such as ``torch.compile(model.backbone)``, without its wrapper."""
        super().__setattr__(
            name, unwrap(value) if name == "backbone" and isinstance(value, nn.Module) else value
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, grad_slices: int | None = None) -> Tensor:
        """
        Compute logits.

        Parameters
        ----------
        x : Tensor
            (B, C, H, W) normalized images, or (B, N, C, H, W) bags of slices, C 3 or 1 as of the backbone.
        mask : Tensor, optional
            (B, N) bool, True for slices and False for padding; all True by default.
        grad_slices : int, optional
            Most slices of each bag that keep a gradient, drawn at random; all by default. The others pass
            without one, in evaluation mode, a few at a time.

        Returns
        -------
        Tensor
            (B, K) logits.

        Raises
        ------
        PreprocessError
            If the shape does not fit, or the input is a bag and ``pool="none"``.
        """
        return head_logits(self.head, self.embed(x, mask, grad_slices=grad_slices))

    def embed(self, x: Tensor, mask: Tensor | None = None, *, grad_slices: int | None = None) -> Tensor:
        """
        Compute embeddings.

        Parameters
        ----------
        x, mask, grad_slices
            As for the logits.

        Returns
        -------
        Tensor
            (B, F): the embedding of each image, or the pooled one of each bag.
        """
        check_input(x, mask, self.pool, self.preprocess.n_channels)
        weight: object = self.head.weight
        if not isinstance(weight, Tensor):  # of a quantized layer, a method
            check_floating(self)
        x = x.to(self.head.weight.dtype)
        if x.ndim == 4:
            embeddings: Tensor = self.backbone(x)
            return embeddings
        slices = embed_slices(self.backbone, x, mask, grad_slices=grad_slices)
        return pool_embeddings(slices, mask, self.pool, self.attention)

    def predict(
        self,
        sources: PredictSource | Iterable[PredictSource],
        *,
        unit: Literal["series", "image", "slice"] = "series",
        batch_size: int = 32,
        on_error: Literal["raise", "collect"] = "raise",
        provenance: bool = False,
        workers: int | None = None,
        executor: Executor | None = None,
        tta: ViewChoice = None,
        progress: Progress = "auto",
    ) -> pd.DataFrame:
        """
        Predict on image files, series or volumes, with the model's preprocessing.

        Parameters
        ----------
        sources : path, Series, Volume, or an iterable of these
            Whatever :func:`medimg.read` takes, and folders or archives of several series; a list is several
            sources, not the files of one. Results that medimg has written are no images
            (:doc:`dicom_results`).
        unit : {"series", "image"}
            One row per series (without pooling: the mean of the probabilities of its slices), or one per
            image, such as a slice, scored by itself; "slice" is accepted, too.
        batch_size : int
            Number of images per batch.
        on_error : {"raise", "collect"}
            Whether a source that can't be read raises an error, or becomes a row with the error message.
        provenance : bool
            Whether to add the columns ``model`` and ``recipe``.
        workers : int, optional
            Number of sources that an executor works on at once; by default the number of its workers.
        executor : concurrent.futures.Executor, optional
            Executor whose workers read the images and run the model, each source by itself; see
            :doc:`/scale`. They get the model once.
        tta : int, list or None
            Test-time augmentation: probabilities are the mean of those of the image and of views of it. A
            number: so many views by the augmentation of the training. A list: "hflip", "vflip", "rotate180",
            functions of normalized images (n, C, H, W), or transforms of torchvision or MONAI. Views are the
            same for every image; ``weight`` and ``ood`` are those of the image itself.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

        Returns
        -------
        pandas.DataFrame
            Columns ``source`` (as given; the first file of each series of a folder with several),
            ``series_uid``; for slices ``sop_instance_uid`` and ``slice`` (index in the
            volume); ``predicted`` (for "multilabel": the labels with a probability of at least 0.5, joined by
            ";"); ``p_<class>`` for each class; for slices ``weight``, the contribution to the series, which
            sums to 1 over a source (attention weights; with "max" the fraction of features whose maximum is
            in the slice; otherwise equal weights); with "collect" ``error``, None without an error.

            A calibrated model adds ``set``, the prediction set, ``flagged``, with more than two classes those
            that reach their threshold, and ``ood``, an out-of-distribution score (the fraction of held-out
            images that are closer to the training data); see :func:`medimg.calibrate`. A trained model adds
            ``unlike``, the modality, body part or spacing that did not occur in the training data. The
            table's ``attrs`` have "model", the first digits of the model's hash, "recipe" and "medimg", the
            version.

        Raises
        ------
        TrainingError
            If a setting is invalid, or parameters were changed after calibration.
        MedimgError
            If a source can't be read and ``on_error="raise"``.

        Warns
        -----
        MedimgWarning
            If images are out of distribution, or the calibration does not apply to the unit.
        """
        from medimg.models.predict import predict

        return predict(
            self,
            sources,
            unit=unit,
            batch_size=batch_size,
            on_error=on_error,
            provenance=provenance,
            workers=workers,
            executor=executor,
            tta=tta,
            progress=progress,
        )

    def predict_proba(
        self,
        dataset: LabeledDataset,
        *,
        batch_size: int = 32,
        workers: int | None = None,
        executor: Executor | None = None,
        tta: ViewChoice = None,
        progress: Progress = "auto",
    ) -> NDArray[np.float64]:
        """
        Predict on every item of a dataset, in its order.

        Parameters
        ----------
        dataset : ImageDataset
            Dataset with the model's preprocessing.
        batch_size : int
            Number of items per batch.
        workers : int, optional
            Number of processes that read the images, by default none; or number of parts that an executor
            works on at once.
        executor : concurrent.futures.Executor, optional
            Executor whose workers read the images and run the model, whole series at once; see :doc:`/scale`.
        tta : int, list or None
            Test-time augmentation; see :meth:`predict`.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

        Returns
        -------
        numpy.ndarray
            (n, K) float64 probabilities, calibrated if the model is.

        Raises
        ------
        TrainingError
            If it is not a dataset, or its classes, their order, or its task are not the model's; a dataset
            without labels may have none.
        PreprocessError
            If the dataset has another preprocessing.
        """
        from medimg.models.predict import predict_proba

        return predict_proba(
            self,
            dataset,
            batch_size=batch_size,
            workers=workers,
            executor=executor,
            tta=tta,
            progress=progress,
        )

    @overload
    def export(
        self,
        path: os.PathLike[str],
        *,
        check: PredictSource | Iterable[PredictSource] | LabeledDataset | None = None,
        tolerance: float = 1e-4,
    ) -> Path: ...
    @overload
    def export(
        self,
        path: str,
        *,
        check: PredictSource | Iterable[PredictSource] | LabeledDataset | None = None,
        tolerance: float = 1e-4,
    ) -> Path | str: ...
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        check: PredictSource | Iterable[PredictSource] | LabeledDataset | None = None,
        tolerance: float = 1e-4,
    ) -> Path | str:
        """
        Write the model as an ONNX file, or as a program of torch.export, that runs without medimg.

        The network takes intensities from 0 to 1, as :meth:`medimg.Preprocess.render_array` makes them, of
        any number of images or of bags of any length; normalization, pooling, calibration and
        out-of-distribution scores are inside. Classes, preprocessing, thresholds and hashes are in the
        file's metadata, and in a JSON file beside it, with the result of the check.
        :class:`medimg.OnnxClassifier` runs an ONNX file without torch.

        Parameters
        ----------
        path : path-like
            File or URL of object storage, ``.onnx`` or ``.pt2``; it is replaced atomically, and after it the
            ``.json`` of the same name.
        check : sources or ImageDataset, optional
            Images on which the file is run and compared with the model, up to 40 slices of five sources; by
            default those of a synthetic CT. Images of your own show more.
        tolerance : float
            Largest difference of a logit (relative to the largest one if that is above 1), of a probability,
            and of the weight of a slice.

        Returns
        -------
        pathlib.Path or str
            The file; of a URL the URL.

        Raises
        ------
        CheckpointError
            If the network can't be exported, is not in single precision, or predicts something else than
            the model, or the URL can't be written to; nothing is written then.
        OSError
            If a file can't be written; of a URL a :class:`~medimg.errors.StoreError`.
        TrainingError
            If parameters were changed after calibration.
        MissingDependencyError
            If onnx, onnxscript or onnxruntime is not installed, for ``.onnx``.

        Notes
        -----
        Input ``images``: (N, C, H, W) float32, or with pooling (B, N, C, H, W). Outputs: ``logits`` and
        ``probabilities`` (N or B, K); ``ood`` (N or B,) if the calibration has such scores; with pooling
        ``weights`` (B, N), the contribution of each slice. Reading a ``.pt2`` by ``torch.export.load`` may
        run code that a manipulated file contains, reading an ONNX file does not.
        """
        from medimg.models.portable.export import export_model

        return export_model(self, path, check=check, tolerance=tolerance)

    @overload
    def save(self, path: os.PathLike[str]) -> Path: ...
    @overload
    def save(self, path: str) -> Path | str: ...
    def save(self, path: str | os.PathLike[str]) -> Path | str:
        """
        Write parameters, classes, preprocessing, calibration, hashes and versions to a safetensors file.

        Of an ensemble, those of all members and the calibration of their mean are written to one file.

        Parameters
        ----------
        path : path-like
            File to write, usually ``.safetensors``, or URL of object storage such as
            ``s3://bucket/model.safetensors``; it is replaced atomically.

        Returns
        -------
        pathlib.Path or str
            The file; of a URL the URL.

        Raises
        ------
        CheckpointError
            If the path is not one, or the URL can't be written to.
        OSError
            If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.
        """
        target = check_target("path", path, error=CheckpointError)
        self._write(target)
        return target

    def _write(self, target: Path | str) -> None:
        self.to_checkpoint().write(target)

    def push_to_hub(
        self,
        repository: str,
        *,
        report: Any = None,
        license: str | None = None,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        message: str | None = None,
    ) -> str:
        """
        Upload the model with its model card to the Hugging Face hub, as one commit.

        The repository gets ``model.safetensors``, as :meth:`save` writes it, and its card, with
        the call of :func:`medimg.load` that reads this very file. No image, path or identifier is uploaded,
        but the file has hashes of the training images: who has an image can find out whether it was used.

        Parameters
        ----------
        repository : str
            Repository, as ``"owner/name"``; it is made if it does not exist.
        report : Report, optional
            Evaluation, for the card (:meth:`medimg.Report.to_model_card`). Without it the card says that it
            was not published.
        license : str, optional
            License, by the identifier of the hub, such as "apache-2.0".
        private : bool
            Whether a new repository is private; an existing one stays as it is.
        token : str, optional
            Access token with the right to write; by default that of ``hf auth login`` or ``HF_TOKEN``.
        revision : str, optional
            Branch; by default the main one.
        message : str, optional
            Message of the commit.

        Returns
        -------
        str
            Address of the commit. Its last part, as ``medimg.load("hf:owner/name@commit")``, always gives
            this model.

        Raises
        ------
        CheckpointError
            If `repository` is no name of a repository, or the hub refuses or does not answer.
        MissingDependencyError
            If ``huggingface_hub`` is not installed (extra ``hub``).

        Examples
        --------
        >>> url = model.push_to_hub("our-lab/chest-ct", report=report, license="apache-2.0")  # doctest: +SKIP
        >>> model = medimg.load("hf:our-lab/chest-ct")  # doctest: +SKIP
        """
        # export is a layer above models
        push: Callable[..., str] = import_module("medimg.export.hub").push_to_hub
        return push(
            self,
            repository,
            report=report,
            license=license,
            private=private,
            token=token,
            revision=revision,
            message=message,
        )

    def to_checkpoint(self) -> checkpoint.Checkpoint:
        """Return what :meth:`save` writes of a single model."""
        check_floating(self)
        check_whole(self)
        # during a training with adapters
        model = merged_copy(self)
        if is_wrapped(model):  # a layer was compiled since
            model = cast("Self", unwrap(copy.deepcopy(model), warned=False))
        return checkpoint.Checkpoint(
            architecture=self.architecture,
            libraries=self._libraries(),
            classes=self.classes,
            task=self.task,
            pool=self.pool,
            preprocess=self.preprocess,
            state=model.state_dict(),
            weights_name=self.weights_name,
            weights_sha256=self.weights_sha256,
            weights_chain=self.weights_chain,
            training_summary=self.training_summary,
            training_ranges=self.training_ranges,
            images_seen=self.images_seen,
            calibration=self.calibration,
            model_sha256=model_digest(model),
        )

    def _libraries(self) -> dict[str, str]:
        """Return the versions of libraries that the backbone is built by, beside torchvision."""
        used = {self.backbone_library: library_version(self.backbone_library)}
        return {name: found for name, found in used.items() if name is not None and found is not None}

    @classmethod
    @with_gradients
    def load(cls, path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> TransferClassifier:
        """
        Read a model written by :meth:`save`; see :func:`medimg.load`.

        Raises
        ------
        CheckpointError
            If the file is damaged, was changed, is newer than this version, or is not a medimg checkpoint.
        """
        with local_copy(check_location("path", path, error=CheckpointError), error=CheckpointError) as file:
            if checkpoint.is_ensemble(file):
                raise CheckpointError(
                    f"{file} is an ensemble; read it by medimg.load(path), or medimg.Ensemble.load"
                )
            return cls.from_checkpoint(checkpoint.read(file), file, backbone=backbone)

    @classmethod
    def from_checkpoint(
        cls, saved: checkpoint.Checkpoint, file: Path | str, *, backbone: nn.Module | None = None
    ) -> TransferClassifier:
        """Build the model of a checkpoint, in evaluation mode; `file` is named in messages."""
        # building draws random parameters, which are replaced: the global random state stays as it was
        with checkpoint.refuse_unsound(file, saved), torch.random.fork_rng(devices=[]):
            source = rebuild_source(saved.architecture, backbone)
            checkpoint.check_parameter_count(
                saved.state, saved.architecture, source.count_parameters(saved.architecture)
            )
            model = cls.rebuild(
                saved.architecture,
                classes=saved.classes,
                preprocess=saved.preprocess,
                task=saved.task,
                pool=saved.pool,
                weights_name=saved.weights_name,
                weights_sha256=saved.weights_sha256,
                weights_chain=saved.weights_chain,
                source=source,
            )
        model.load_state_dict(saved.state_for(model.state_dict(), file), strict=True, assign=True)
        model.training_summary, model.training_ranges = saved.training_summary, saved.training_ranges
        model.images_seen, model.calibration = saved.images_seen, saved.calibration
        if saved.model_sha256 not in (None, model_digest(model)):
            raise CheckpointError(
                f"the model in {file} is not the one that was saved (its SHA-256 differs): the file was "
                "changed, or this version of medimg would predict differently"
            )
        return model.eval()

    def __repr__(self) -> str:
        total = sum(p.numel() for p in self.parameters()) / 1e6
        names = self.classes if len(self.classes) <= 8 else f"{len(self.classes)} classes"
        name = None if self.weights_name is None else printable(self.weights_name)
        return (
            f"TransferClassifier({self.backbone_name}, weights={name}, classes={names}, "
            f"task={self.task}, pool={self.pool}, {total:.1f} M parameters, "
            f"{100 * frozen_fraction(self):.1f} % frozen)"
        )

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import facts_html, join_names

        facts = {
            "backbone": self.backbone_name,
            "weights": self.weights_name or "none",
            "classes": join_names(self.classes),
            "task": self.task,
            "pool": self.pool,
            "image size": "×".join(map(str, self.preprocess.hw)),
            "parameters": f"{sum(p.numel() for p in self.parameters()) / 1e6:.1f} million",
            "frozen": f"{100 * frozen_fraction(self):.1f} %",
            "calibrated": "no" if self.calibration is None else "yes",
        }
        return facts_html(type(self).__name__, facts)
