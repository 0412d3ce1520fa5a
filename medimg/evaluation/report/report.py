"""The result of an evaluation: metrics with intervals, confusion matrix, predictions and provenance."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.errors import DatasetError
from medimg.evaluation.report.cautions import ClassCount
from medimg.evaluation.report.example_images import ExampleImage
from medimg.io.files.atomic import write_text
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.curves import Curves

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report"]
_PLURALS = {"patient": "patients", "series": "series", "image": "images"}


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """
    What ``medimg.evaluate`` found. Nothing in it names a patient.

    Attributes
    ----------
    metrics : mapping of str to Estimate
        By name, as ``medimg.metrics.classification.named_metrics`` lists them: ``"accuracy"``, ``"auroc"``,
        ``"recall[class]"``, …
    confusion : ndarray of int64, shape (K, K) or (K, 2, 2)
        Multiclass: rows are the true classes, columns the predicted ones. Multilabel: for each label
        [[TN, FP], [FN, TP]], as scikit-learn's ``multilabel_confusion_matrix``.
    classes : tuple of str
        Names, K of them.
    task : str
        ``"multiclass"`` or ``"multilabel"``.
    unit : str
        What was scored: ``"patient"``, ``"series"`` or ``"image"``.
    n_units, n_patients, n_images : int
        How many were scored, of how many patients, from how many items of the dataset.
    predictions : pandas.DataFrame
        One row per unit: ``subject`` (salted hash of the patient), ``item`` (position in the dataset of the
        unit's first image), ``n_images``, ``label``, ``predicted`` and ``p_<class>``; multilabel:
        ``label_<class>`` and ``predicted_<class>`` instead of the two.
    counts : tuple of ClassCount
        Patients, units and images of each class.
    notes : tuple of str
        What the numbers can't be trusted for, in plain sentences.
    provenance : mapping
        Model with its hash, training, recipe with fingerprint, data flow with digest (see
        ``medimg.evaluation.report.data_flow``), settings of the evaluation, versions, time; fit for JSON.
    pictures : tuple of ExampleImage
        The worst wrong units and some right ones.
    subgroups : pandas.DataFrame or None
        What ``subgroups=`` asked for, one row per subgroup, group and metric: ``subgroup`` ("sex"), ``group``
        ("F"), ``n_patients`` and ``n_units`` (missing where fewer than 5 patients), ``metric``, ``value``,
        ``low``, ``high``, ``dropped`` and ``note``, which says where numbers are small.
    curves : Curves or None
        ROC, precision against recall, and reliability.
    """

    metrics: Mapping[str, Estimate]
    confusion: NDArray[np.int64]
    classes: tuple[str, ...]
    task: str
    unit: str
    n_units: int
    n_patients: int
    n_images: int
    predictions: "pd.DataFrame"
    counts: tuple[ClassCount, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    pictures: tuple[ExampleImage, ...] = field(default=())
    subgroups: "pd.DataFrame | None" = None
    curves: Curves | None = None

    @property
    def ci(self) -> float:
        """Share of the resamples between the ends of each interval."""
        return float(self.provenance["evaluation"]["ci"])

    @property
    def size(self) -> str:
        """
        How much was evaluated, in words.

        Examples
        --------
        >>> report.size                                            # doctest: +SKIP
        '40 patients, 812 images'
        """
        item = "series" if self.provenance["evaluation"]["item"] == "series" else "image"
        parts = [_count(self.n_patients, "patient")]
        if self.unit == "series" and item == "image":
            parts.append(_count(self.n_units, "series"))
        return ", ".join([*parts, _count(self.n_images, item)])

    def to_pandas(self) -> "pd.DataFrame":
        """
        Give the metrics as a table.

        Returns
        -------
        pandas.DataFrame
            Columns ``metric``, ``value``, ``low``, ``high`` and ``dropped`` (resamples in which the metric
            was undefined).
        """
        import pandas as pd

        rows = [(name, e.value, e.low, e.high, e.dropped) for name, e in self.metrics.items()]
        return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "dropped"])

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """
        Write the predictions, one row per unit, as UTF-8 CSV.

        Parameters
        ----------
        path : path-like
            The file; an old one is replaced, never left half-written.

        Returns
        -------
        pathlib.Path
            The file.
        """
        return _write(path, self.predictions.to_csv(index=False, lineterminator="\n"))

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        title: str | None = None,
        pictures: bool = True,
        card: bool = False,
    ) -> Path:
        """
        Write one self-contained page: what was found and scored, metrics, curves, errors, how it was done.

        Parameters
        ----------
        path : path-like
            The file; an old one is replaced, never left half-written.
        fit : FitResult, optional
            What :func:`medimg.fine_tune` returned; its history is drawn.
        split : mapping of str to ImageDataset, optional
            The sides of the split, such as ``{"train": train, "val": val, "test": test}``; they are counted.
        title : str, optional
            Heading of the page.
        pictures : bool
            Whether to show images. They are what the model saw: text burned into the pixels is not removed.
        card : bool
            Whether to write the model card beside it, under the same name with the ending ``.md``.

        Returns
        -------
        pathlib.Path
            The file of the page.

        Raises
        ------
        DatasetError
            If `split` names no sides, `fit` has no history, or page and card would be one file.
        """
        from medimg.evaluation.report._html import render_report

        _check(fit, split)
        if card and Path(path).suffix.lower() == ".md":
            raise DatasetError("The ending .md is that of the card; give the page another, such as .html.")
        page = _write(path, render_report(self, fit=fit, split=split, title=title, pictures=pictures))
        if card:
            self.to_model_card(page.with_suffix(".md"), fit=fit, split=split)
        return page

    def to_model_card(
        self,
        path: str | os.PathLike[str],
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        contact: str | None = None,
        intended_use: str | None = None,
        out_of_scope: str | None = None,
        caveats: str | None = None,
    ) -> Path:
        """
        Write a model card: what the model is, what it is for, how it did on what, and what is not known.

        Parameters
        ----------
        path : path-like
            The file, Markdown; an old one is replaced, never left half-written.
        fit : FitResult, optional
            What :func:`medimg.fine_tune` returned.
        split : mapping of str to ImageDataset, optional
            The sides of the split, as for :meth:`to_html`.
        contact, intended_use, out_of_scope, caveats : str, optional
            Whom to ask; what the model is for, and what not; what else to know. Markdown, as it stands;
            where one is missing, the card says so, or what holds of any such model.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        DatasetError
            If `split` names no sides, or `fit` has no history.

        Notes
        -----
        The sections are those of Mitchell et al., Model cards for model reporting, FAT* 2019.
        """
        from medimg.evaluation.report._model_card import render_card

        said = {
            "contact": contact,
            "intended_use": intended_use,
            "out_of_scope": out_of_scope,
            "caveats": caveats,
        }
        _check(fit, split)
        return _write(path, render_card(self, fit=fit, split=split, said=said))

    def __str__(self) -> str:
        overall = {name: estimate for name, estimate in self.metrics.items() if "[" not in name}
        width = max(len(name) for name in overall)
        rows = [f"  {name:<{width}}  {estimate}" for name, estimate in overall.items()]
        head = f"Report: {len(self.classes)} classes, by {self.unit}, {self.size}"
        column = f"  {'metric':<{width}}  value ({self.ci * 100:g} % interval)"
        return "\n".join([head, column, *rows, *(f"  ! {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Show the metrics in a notebook."""
        from medimg.evaluation.report._html import notebook_table

        return notebook_table(self)


def _check(fit: object, split: object) -> None:
    if fit is not None and not hasattr(fit, "history"):
        raise DatasetError(f"fit is what medimg.fine_tune returned, or None; found a {type(fit).__name__}.")
    if split is not None and not isinstance(split, Mapping):
        raise DatasetError(
            'split names the sides, such as {"train": train, "val": val, "test": test}; found a '
            f"{type(split).__name__}."
        )


def _write(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text; names of folders that are no UTF-8 leave surrogates in those of classes."""
    return write_text(path, text.encode(errors="backslashreplace").decode())


def _count(n: int, what: str) -> str:
    return f"{n:,} {what if n == 1 else _PLURALS[what]}"
