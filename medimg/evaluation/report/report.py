"""The result of an evaluation: metrics with intervals, confusion matrix, predictions and provenance."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from medimg._public import set_module
from medimg._tables import make_table
from medimg._validation import did_you_mean
from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.errors import DatasetError, also
from medimg.evaluation.report._formats import format_percent, format_quantity
from medimg.evaluation.report.cautions import ClassCount
from medimg.evaluation.report.example_images import ExampleImage
from medimg.io.files.output import check_target, replace_suffix, write_text
from medimg.io.files.spreadsheet import escape_formulas
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.curves import Curves

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from medimg.evaluation.report._report_plots import PlotType

__all__ = ["Metrics", "Report"]


class Metrics(dict[str, Estimate]):
    """Metrics by name; of a name that is none, the error says which are like it."""

    def __missing__(self, name: object) -> Estimate:
        listed = ", ".join(one for one in self if "[" not in one)
        raise also(DatasetError, KeyError)(
            f"there is no metric {name!r}; expected one of {listed}, or one of a class, such as "
            f"{next((one for one in self if '[' in one), 'recall[class]')!r}{did_you_mean(name, self)}"
        )


@set_module("medimg")
@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """
    Result of :func:`medimg.evaluate` or :func:`medimg.score`. It contains no patient's name or ID.

    Attributes
    ----------
    metrics : mapping of str to Estimate
        Metrics by name, as ``medimg.metrics.classification.name_metrics`` lists them: ``"accuracy"``,
        ``"auroc"``, ``"recall[class]"``, …
    confusion : ndarray of int64, shape (K, K) or (K, 2, 2)
        Multiclass: rows are the true classes, columns the predicted ones. Multilabel: for each label
        [[TN, FP], [FN, TP]], as scikit-learn's ``multilabel_confusion_matrix``.
    classes : tuple of str
        Names of the K classes.
    task : str
        ``"multiclass"`` or ``"multilabel"``.
    unit : str
        Unit of the scores: ``"patient"``, ``"series"`` or ``"image"``.
    n_units, n_patients, n_images : int
        Number of units, of patients, and of items of the dataset.
    predictions : pandas.DataFrame
        One row per unit: ``subject`` (salted hash of the patient), ``item`` (index in the dataset of the
        unit's first image), ``n_images``, ``label``, ``predicted`` and ``p_<class>``; multilabel:
        ``label_<class>`` and ``predicted_<class>`` instead of the two.
    counts : tuple of ClassCount
        Patients, units and images of each class.
    notes : tuple of str
        Limitations of the scores, in plain sentences.
    provenance : mapping
        Model with its hash, training, preprocessing with fingerprint, data flow with digest, settings of the
        evaluation, versions and time; serializable as JSON. What is not known, of predictions made elsewhere,
        is missing or None.
    example_images : tuple of ExampleImage
        The units with the largest errors, and a random sample of correct ones.
    subgroups : pandas.DataFrame or None
        Metrics of ``subgroups=``, one row per subgroup, group and metric: ``subgroup`` ("sex"), ``group``
        ("F"), ``n_patients`` and ``n_units`` (missing for fewer than 5 patients), ``metric``, ``value``,
        ``low``, ``high``, ``dropped``, ``reason`` (why there is no interval) and ``note``, which warns of
        small numbers.
    curves : Curves or None
        ROC, precision-recall and reliability curves.
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
    example_images: tuple[ExampleImage, ...] = field(default=())
    subgroups: "pd.DataFrame | None" = None
    curves: Curves | None = None

    @property
    def ci(self) -> float:
        """Confidence level of the intervals, in (0, 1)."""
        return float(self.provenance["evaluation"]["ci"])

    @property
    def size(self) -> str:
        """
        Number of patients and images, in words.

        Examples
        --------
        >>> report.size                                            # doctest: +SKIP
        '40 patients, 812 images'
        """
        item = "series" if self.provenance["evaluation"]["item"] == "series" else "image"
        parts = [format_quantity(self.n_patients, "patient")]
        if self.unit == "series" and item == "image":
            parts.append(format_quantity(self.n_units, "series"))
        return ", ".join([*parts, format_quantity(self.n_images, item)])

    def plot(self, plot: "PlotType" = "roc", *, axes: "Axes | None" = None) -> "Axes":
        """
        Plot curves or the confusion matrix.

        Parameters
        ----------
        plot : {"roc", "pr", "calibration", "confusion"}
            ROC or precision-recall curves with their areas and intervals; reliability diagram with the
            expected calibration error (of several exclusive classes, of the predicted one); or confusion
            matrix with shares of the row, in a multilabel task the counts of each label.
        axes : matplotlib.axes.Axes, optional
            Axes to draw on; new ones by default.

        Returns
        -------
        matplotlib.axes.Axes
            Shown by Jupyter as the result of a cell; ``axes.figure.savefig(path)`` saves it.

        Raises
        ------
        DatasetError
            If there is no such plot, or no curve, as only one class occurs.

        Examples
        --------
        >>> report.plot("calibration")                             # doctest: +SKIP
        """
        from medimg.evaluation.report._report_plots import plot_report

        return plot_report(self, plot, axes)

    def to_pandas(self) -> "pd.DataFrame":
        """
        Return the metrics as a table.

        Returns
        -------
        pandas.DataFrame
            Columns ``metric``, ``value``, ``low``, ``high``, ``dropped`` (number of resamples in which the
            metric was undefined) and ``reason`` (why there is no interval).
        """
        rows = [(name, e.value, e.low, e.high, e.dropped, e.reason) for name, e in self.metrics.items()]
        return make_table(rows, ["metric", "value", "low", "high", "dropped", "reason"])

    @overload
    def to_csv(self, path: os.PathLike[str]) -> Path: ...
    @overload
    def to_csv(self, path: str) -> Path | str: ...
    def to_csv(self, path: str | os.PathLike[str]) -> Path | str:
        """
        Write the predictions, one row per unit, as UTF-8 CSV.

        Texts that spreadsheets take for formulas, such as a class ``=1+1``, get an apostrophe in front.

        Parameters
        ----------
        path : path-like
            Output file, or URL of object storage; an existing one is replaced atomically.

        Returns
        -------
        pathlib.Path or str
            Path of the file; of a URL the URL.

        Raises
        ------
        DatasetError
            If the path is not one, or the URL can't be written to.
        OSError
            If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.
        """
        target = check_target("path", path, error=DatasetError)
        table = escape_formulas(self.predictions)
        return _write_text(target, table.to_csv(index=False, lineterminator="\n"))

    @overload
    def to_html(
        self,
        path: os.PathLike[str],
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        title: str | None = None,
        example_images: bool = True,
        card: bool = False,
    ) -> Path: ...
    @overload
    def to_html(
        self,
        path: str,
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        title: str | None = None,
        example_images: bool = True,
        card: bool = False,
    ) -> Path | str: ...
    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        title: str | None = None,
        example_images: bool = True,
        card: bool = False,
    ) -> Path | str:
        """
        Write a self-contained HTML page: data, metrics, curves, errors, example images and methods.

        Parameters
        ----------
        path : path-like
            Output file, or URL of object storage; an existing one is replaced atomically.
        fit : FitResult, optional
            Result of :func:`medimg.fine_tune`, to show the training.
        split : mapping of str to ImageDataset, optional
            Subsets of the split by name, such as ``{"train": train, "val": val, "test": test}``, to show
            their sizes.
        title : str, optional
            Heading of the page.
        example_images : bool
            Whether to show example images. They are shown as the model received them: text burned into the
            pixels is not removed.
        card : bool
            Whether to write the model card too, to the same path with the extension ``.md``.

        Returns
        -------
        pathlib.Path or str
            Path of the page; of a URL the URL.

        Raises
        ------
        DatasetError
            If `split` is not a mapping, `fit` has no history, page and card would be one file, or `path`
            can't be written to.
        OSError
            If a file can't be written; of a URL a :class:`~medimg.errors.StoreError`.
        """
        from medimg.evaluation.report._html import render_report

        _check_inputs(fit, split)
        target = check_target("path", path, error=DatasetError)
        if card and PurePath(target).suffix.lower() == ".md":
            raise DatasetError(
                "expected a page with another extension than the card's .md; rename it, for example to .html"
            )
        page = _write_text(
            target, render_report(self, fit=fit, split=split, title=title, example_images=example_images)
        )
        if card:
            self.to_model_card(replace_suffix(page, ".md"), fit=fit, split=split)
        return page

    @overload
    def to_model_card(
        self,
        path: os.PathLike[str],
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        contact: str | None = None,
        intended_use: str | None = None,
        out_of_scope: str | None = None,
        caveats: str | None = None,
    ) -> Path: ...
    @overload
    def to_model_card(
        self,
        path: str,
        *,
        fit: FitHistory | None = None,
        split: Mapping[str, EvaluationDataset] | None = None,
        contact: str | None = None,
        intended_use: str | None = None,
        out_of_scope: str | None = None,
        caveats: str | None = None,
    ) -> Path | str: ...
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
    ) -> Path | str:
        """
        Write a model card in Markdown.

        Parameters
        ----------
        path : path-like
            Output file, or URL of object storage; an existing one is replaced atomically.
        fit : FitResult, optional
            Result of :func:`medimg.fine_tune`.
        split : mapping of str to ImageDataset, optional
            Subsets of the split by name, as for :meth:`to_html`.
        contact, intended_use, out_of_scope, caveats : str, optional
            Statements about the model, in Markdown without HTML and headings. Without one, the card has a
            general text, or says that it was not stated.

        Returns
        -------
        pathlib.Path or str
            Path of the card; of a URL the URL.

        Raises
        ------
        DatasetError
            If `split` is not a mapping, `fit` has no history, or `path` can't be written to.
        OSError
            If the file can't be written; of a URL a :class:`~medimg.errors.StoreError`.

        Notes
        -----
        The sections are those of Mitchell et al., Model cards for model reporting, FAT* 2019.
        """
        from medimg.evaluation.report._model_card import render_card

        statements = {
            "contact": contact,
            "intended_use": intended_use,
            "out_of_scope": out_of_scope,
            "caveats": caveats,
        }
        target = check_target("path", path, error=DatasetError)
        _check_inputs(fit, split)
        return _write_text(target, render_card(self, fit=fit, split=split, statements=statements))

    def __str__(self) -> str:
        overall = {name: estimate for name, estimate in self.metrics.items() if "[" not in name}
        width = max(len(name) for name in overall)
        rows = [f"  {name:<{width}}  {estimate}" for name, estimate in overall.items()]
        head = f"Report: {len(self.classes)} classes, by {self.unit}, {self.size}"
        column = f"  {'metric':<{width}}  value ({format_percent(self.ci)} interval)"
        return "\n".join([head, column, *rows, *(f"  ! {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the metrics as HTML for notebooks."""
        from medimg.evaluation.report._html import render_notebook_table

        return render_notebook_table(self)


def _check_inputs(fit: object, split: object) -> None:
    if fit is not None and not hasattr(fit, "history"):
        raise also(DatasetError, TypeError)(
            f"fit must be a result of medimg.fine_tune or None; found a {type(fit).__name__}"
        )
    if split is not None and not isinstance(split, Mapping):
        raise DatasetError(
            'split must map names to subsets, such as {"train": train, "val": val, "test": test}; found a '
            f"{type(split).__name__}"
        )


def _write_text(target: Path | str, text: str) -> Path | str:
    """Write a text; names of folders that are not UTF-8 leave surrogates in the names of classes."""
    write_text(target, text.encode(errors="backslashreplace").decode())
    return target
