"""A classifier that is an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from medimg._public import set_module
from medimg._validation import (
    check_batch_size,
    check_choice,
    check_item_unit,
    check_whole_number,
    printable_error,
)
from medimg.core.content_hash import content_hash
from medimg.core.parallel import available_cores, one_core
from medimg.core.progress import progress_bar
from medimg.errors import (
    CheckpointError,
    PreprocessError,
    TrainingError,
)
from medimg.executors.executor_map import check_executor
from medimg.io.files.local_copy import local_copy
from medimg.io.files.object_storage import check_location, show_location
from medimg.models.portable.manifest import INPUT, KEY, Manifest
from medimg.models.portable.onnx_file import MOST_BYTES, check_seal, read_metadata, read_onnx
from medimg.models.portable.onnx_session import check_interface, check_providers, import_runtime, open_session
from medimg.models.prediction.prediction_table import PredictionTable
from medimg.models.prediction.scored_source import list_sources, lose_source, resolve_sources
from medimg.models.prediction.sent_model import ModelSender, map_with_model
from medimg.preprocessing.array_output import ArrayOutput

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from medimg.calibration.result import Calibration
    from medimg.core.progress import Progress
    from medimg.models.input_checks import Task
    from medimg.models.portable.onnx_session import Provider
    from medimg.models.prediction.scored_source import PredictSource, ScoredSource
    from medimg.models.training_distribution import TrainingDistribution
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["OnnxClassifier"]

_MOST_JSON: Final = 64 * 2**20


@set_module("medimg")
class OnnxClassifier:
    """
    An exported model: reads and renders images as medimg does, and runs the network without torch.

    Files are read, windowed and resized as in training, and run by ONNX Runtime; torch is not imported, and
    need not be installed where medimg itself is.

    Parameters
    ----------
    path : path-like
        ONNX file written by :meth:`medimg.TransferClassifier.export`, or its URL. If the ``.json`` that was
        written with it is beside it, the file must have the SHA-256 that is stated there.
    providers : sequence of str or (str, dict), optional
        Execution providers of ONNX Runtime, in order of preference, such as ``["CUDAExecutionProvider",
        "CPUExecutionProvider"]``; by default the CPU alone, on which the file was checked.
    threads : int, optional
        Number of threads; by default the cores that this process may use.

    Attributes
    ----------
    classes : tuple of str
        Class names, in the order of the outputs.
    task : {"multiclass", "multilabel"}
        One class per image, or several labels.
    pool : {"none", "mean", "max", "attention"}
        Pooling of the slices of a series.
    preprocess : Preprocess
        Preprocessing of its images; the network itself normalizes.
    calibration : Calibration or None
        Thresholds and prediction sets; probabilities come out of the network calibrated.
    training_ranges : TrainingDistribution or None
        Modalities, body parts and spacings of the training data.
    model_sha256 : str
        Hash of the exported model, as in the tables of its predictions.
    providers : tuple of str
        Execution providers in use.

    Raises
    ------
    CheckpointError
        If the file is no exported model, is damaged, was changed after the export, refers to other files, or
        is newer than this version; or if ONNX Runtime can't run it.
    TrainingError
        If a provider is not installed, or does not start.
    MissingDependencyError
        If onnxruntime is not installed.

    Examples
    --------
    >>> model = medimg.OnnxClassifier("model.onnx")  # doctest: +SKIP
    >>> model.predict("study/")[["series_uid", "predicted"]]  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        location = check_location("path", path, error=CheckpointError)
        onnxruntime = import_runtime()
        chosen = check_providers(onnxruntime, providers)
        cores = available_cores() if threads is None else check_whole_number("threads", threads, least=1)
        file = show_location(location)
        with local_copy(location, error=CheckpointError, most=MOST_BYTES, beside=".json") as copy:
            data = read_onnx(copy)
            _check_beside(copy, data, PurePath(file).name)
        try:
            manifest = _read_manifest(data)
            self._sha256 = check_seal(data)
        except CheckpointError as error:
            raise CheckpointError(f"{file} can't be used: {error}") from None
        self._session = open_session(onnxruntime, file, data, chosen, cores)
        self._manifest, self._path = manifest, file
        self._location, self._chosen = location, chosen
        check_interface(file, self._session, manifest)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._manifest.classes

    @property
    def task(self) -> Task:
        """``"multiclass"`` or ``"multilabel"``."""
        return self._manifest.task

    @property
    def pool(self) -> str:
        """Pooling of the slices of a series."""
        return self._manifest.pool

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of its images."""
        return self._manifest.preprocess

    @property
    def calibration(self) -> Calibration | None:
        """Thresholds and prediction sets."""
        return self._manifest.calibration

    @property
    def training_ranges(self) -> TrainingDistribution | None:
        """What the model was trained on."""
        return self._manifest.training_ranges

    @property
    def model_sha256(self) -> str:
        """Hash of the exported model."""
        return self._manifest.model_sha256

    def __call__(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """
        Run the network.

        Parameters
        ----------
        images : numpy.ndarray
            Intensities from 0 to 1, (N, C, H, W), or with pooling bags (B, N, C, H, W); see
            :meth:`medimg.Preprocess.render_array`.

        Returns
        -------
        dict of str to numpy.ndarray
            ``logits`` and ``probabilities`` (N or B, K), and what else the network computes; see
            :meth:`medimg.TransferClassifier.export`.

        Raises
        ------
        PreprocessError
            If the shape does not fit.
        TrainingError
            If outputs are not finite.
        CheckpointError
            If ONNX Runtime fails.
        """
        values = np.ascontiguousarray(images, np.float32)
        wanted = self._manifest.input_shape
        free = len(wanted) - 3
        if values.ndim != len(wanted) or list(values.shape[free:]) != wanted[free:] or 0 in values.shape:
            raise PreprocessError(
                f"the model takes images of shape ({', '.join(map(str, wanted))}); found {values.shape}; "
                "make them with model.preprocess.render_array(source)"
            )
        names = list(self._manifest.outputs)
        try:
            outputs = self._session.run(names, {INPUT: values})
        except MemoryError:
            raise
        # the exceptions of ONNX Runtime have no common base
        except Exception as error:
            raise CheckpointError(
                f"ONNX Runtime can't run {self._path}: {printable_error(error)}; try other providers"
            ) from error
        found = dict(zip(names, outputs, strict=True))
        self._check_outputs(found, values.shape)
        return found

    def _check_outputs(self, found: dict[str, NDArray[np.float32]], shape: tuple[int, ...]) -> None:
        rows, classes = shape[0], len(self.classes)
        sizes = {"ood": (rows,), "weights": shape[:2]}
        for name, values in found.items():
            expected = sizes.get(name, (rows, classes))
            if values.shape != expected:
                raise CheckpointError(
                    f"{self._path} gives {name} of shape {values.shape}; expected {expected}"
                )
            bad = int((~np.isfinite(values)).reshape(rows, -1).any(axis=1).sum())
            if bad:
                raise TrainingError(
                    f"the {name} of {bad} of {rows} images are not finite: the weights may be damaged, or "
                    "training may have diverged; export another model"
                )

    def predict(
        self,
        sources: PredictSource | Iterable[PredictSource],
        *,
        unit: Literal["series", "image", "slice"] = "series",
        batch_size: int = 32,
        on_error: Literal["raise", "collect"] = "raise",
        provenance: bool = False,
        executor: Executor | None = None,
        workers: int | None = None,
        progress: Progress = "auto",
    ) -> pd.DataFrame:
        """
        Predict on image files, series or volumes: the table of :meth:`medimg.TransferClassifier.predict`.

        Parameters
        ----------
        sources : path, Series, Volume, or an iterable of these
            Whatever :func:`medimg.read` takes, and folders or archives of several series; a list is several
            sources, not the files of one.
        unit : {"series", "image"}
            One row per series, or per image, such as a slice; "slice" is accepted, too.
        batch_size : int
            Number of images per batch; with pooling all slices of a series pass at once.
        on_error : {"raise", "collect"}
            Whether a source that can't be read raises an error, or becomes a row with the error message.
        provenance : bool
            Whether to add the columns ``model`` and ``recipe``.
        executor : concurrent.futures.Executor, optional
            Processes or a cluster that work on the sources, each with the model and on one core; see the
            page on scaling. Workers get the file of the model.
        workers : int, optional
            Number of workers of `executor`; by default the number that it states, or 64.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

        Returns
        -------
        pandas.DataFrame
            Columns and attributes as of the exported model.

        Raises
        ------
        TrainingError
            If a setting is invalid.
        MedimgError
            If a source can't be read and ``on_error="raise"``.
        ExecutorError
            If the executor can't run tasks.
        CheckpointError
            If the file of the model was changed or removed, and workers need it.

        Warns
        -----
        MedimgWarning
            If images are out of distribution, or the calibration does not apply to the unit.
        """
        unit_of_rows = check_item_unit(unit, error=TrainingError)
        collects = check_choice("on_error", on_error, ("raise", "collect")) == "collect"
        scores = self._score_all(
            sources, unit_of_rows, batch_size, on_error, executor=executor, workers=workers, progress=progress
        )
        table = PredictionTable(
            self,
            self.model_sha256,
            unit_of_rows,
            ood="ood" in self._manifest.outputs,
            collects=collects,
            provenance=provenance,
        )
        return table.to_pandas(scores)

    def predict_proba(
        self,
        sources: PredictSource | Iterable[PredictSource],
        *,
        batch_size: int = 32,
        executor: Executor | None = None,
        workers: int | None = None,
        progress: Progress = "auto",
    ) -> NDArray[np.float64]:
        """
        Predict on image files, series or volumes.

        Parameters
        ----------
        sources, batch_size, executor, workers, progress
            As for :meth:`predict`; a dataset of labeled images has ``dataset.series``.

        Returns
        -------
        numpy.ndarray
            (n, K) float64 probabilities, calibrated if the model is: a row per series.
        """
        scores = self._score_all(
            sources, "series", batch_size, "raise", executor=executor, workers=workers, progress=progress
        )
        rows = [row for scored in scores for row in scored.proba]
        return np.concatenate(rows) if rows else np.empty((0, len(self.classes)))

    def _score_all(
        self,
        sources: Any,
        unit: str,
        batch_size: int,
        on_error: str,
        *,
        executor: Executor | None,
        workers: int | None,
        progress: Progress,
    ) -> Iterator[ScoredSource]:
        """Yield the sources with the probabilities of the series, or of each image."""
        size = check_batch_size(batch_size)
        given = list_sources(sources)
        bar = partial(progress_bar, desc="predicting", unit="source", progress=progress, total=len(given))
        check_executor(executor)
        if executor is None:
            yield from self._score(enumerate(bar(given)), unit, size, on_error)
            return
        work = partial(_score_source, unit=unit, size=size, on_error=on_error)
        lost = partial(lose_source, on_error=on_error)
        results = map_with_model(self._send(), work, enumerate(given), workers, executor, lost=lost)
        with closing(results):
            for scored in bar(results):
                yield from scored

    def _send(self) -> ModelSender[OnnxClassifier]:
        """Return how the model gets to workers: as a copy of its file."""
        load = partial(_load_in_worker, self._chosen)
        options = json.dumps(self._chosen, default=str)
        return ModelSender("model.onnx", self._write, load, options, one_core)

    def _write(self, path: Path) -> None:
        with local_copy(self._location, error=CheckpointError, most=MOST_BYTES) as copy:
            data = read_onnx(copy)
        try:
            is_same = check_seal(data) == self._sha256
        except CheckpointError:
            is_same = False
        if not is_same:
            raise CheckpointError(
                f"{self._path} has changed since it was loaded; load it again to send it to workers"
            )
        path.write_bytes(data)

    def _score(
        self, sources: Iterable[tuple[int, Any]], unit: str, size: int, on_error: str
    ) -> Iterator[ScoredSource]:
        """Yield numbered sources with their probabilities."""
        for number, source in sources:
            for scored, planes in resolve_sources(self, [source], on_error, ArrayOutput(), first=number):
                if not scored.error:
                    shape = (len(planes), *self.preprocess.image_shape)
                    self._score_images(scored, np.broadcast_to(planes, shape), unit, size)
                yield scored

    def _score_images(
        self, scored: ScoredSource, images: NDArray[np.float32], unit: str, batch_size: int
    ) -> None:
        """Set the results of the images (N, C, H, W) of a series."""
        parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        if self.pool == "none":
            several = [self(part) for part in parts]
        elif unit == "series":
            several = [self(images[None])]
        else:
            # each as a bag of its own
            several = [self(part[:, None]) for part in parts]
        names = [name for name in self._manifest.outputs if name != "weights"]
        found = {name: np.concatenate([one[name] for one in several]).astype(np.float64) for name in names}
        is_mean = unit == "series" and self.pool == "none"
        rows = {name: v.mean(axis=0, keepdims=True) if is_mean else v for name, v in found.items()}
        scored.proba = [rows["probabilities"]]
        if "ood" in rows:
            scored.ood = [rows["ood"]]
        if unit == "image":
            count = len(images)
            weights = np.ones(count) if self.pool == "none" else self(images[None])["weights"][0]
            scored.weights = weights.astype(np.float64) / weights.sum(dtype=np.float64)

    def __repr__(self) -> str:
        names = self.classes if len(self.classes) <= 8 else f"{len(self.classes)} classes"
        return (
            f"OnnxClassifier({self._manifest.backbone}, classes={names}, task={self.task}, pool={self.pool}, "
            f"providers={self.providers})"
        )


def _load_in_worker(providers: Sequence[Provider], path: Path) -> OnnxClassifier:
    return OnnxClassifier(path, providers=providers, threads=1)


def _score_source(
    model: OnnxClassifier, task: tuple[int, PredictSource], *, unit: str, size: int, on_error: str
) -> list[ScoredSource]:
    return list(model._score([task], unit, size, on_error))


def _read_manifest(data: bytes) -> Manifest:
    metadata = read_metadata(data)
    if KEY not in metadata:
        raise CheckpointError(
            "it does not say that it is a model of medimg; expected a file written by model.export"
        )
    return Manifest.from_json(metadata[KEY])


def _check_beside(file: Path, data: bytes, name: str) -> None:
    """Refuse a file that is not the one which the JSON beside it was written with, if there is one."""
    beside = file.with_suffix(".json")
    try:
        if not beside.is_file() or beside.stat().st_size > _MOST_JSON:
            return
        facts: Any = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # of something else
        return
    if not isinstance(facts, dict) or facts.get("file") != name or "file_sha256" not in facts:
        return
    if facts["file_sha256"] != content_hash(data):
        raise CheckpointError(
            f"{file} is not the file that was exported with {beside.name} (its SHA-256 differs): it was "
            "damaged, changed or replaced; copy both again"
        )
