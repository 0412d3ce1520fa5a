"""The sections of the page as plain values for the template: tables, plots and counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medimg._plot_style import MOST_STYLES
from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report._calibration_facts import (
    describe_calibration,
    describe_training_ranges,
    measure_coverage,
)
from medimg.evaluation.report._formats import (
    format_count,
    format_interval_or_reason,
    format_number,
    format_percent,
    format_setting,
)
from medimg.evaluation.report._metric_names import describe_metric
from medimg.evaluation.report.cautions import FEWEST_SHOWN
from medimg.evaluation.report.data_flow import count_shared_patients, count_subsets
from medimg.evaluation.report.example_images import ExampleImage
from medimg.evaluation.report.plots import plot_curves, plot_reliability, plot_training
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.curves import Curves, Reliability

if TYPE_CHECKING:
    import pandas as pd

    from medimg.evaluation.report.report import Report

__all__ = [
    "CalibrationSection",
    "CurvesSection",
    "DataSection",
    "Gallery",
    "SplitSection",
    "Table",
    "TrainingSection",
    "build_calibration",
    "build_curves",
    "build_data",
    "build_gallery",
    "build_metrics_by_class",
    "build_overall_metrics",
    "build_settings",
    "build_split",
    "build_subgroups",
    "build_training",
    "choose_headlines",
    "name_model",
]

_HEADLINES = {
    "binary": ("auroc", "sensitivity", "specificity", "balanced_accuracy"),
    "multiclass": ("auroc", "balanced_accuracy", "accuracy", "f1_macro"),
    "multilabel": ("auroc", "recall_macro", "specificity_macro", "f1_macro"),
}
_HISTORY_COLUMNS = {
    "phase": "Phase",
    "train_loss": "Training loss",
    "adapt_loss": "Adaptation loss",
    "val_loss": "Validation loss",
    "val_accuracy": "Accuracy",
    "val_balanced_accuracy": "Balanced accuracy",
    "val_f1": "F1",
    "val_auroc": "AUROC",
    "monitor": "Monitored score",
    "lr": "Learning rate",
}
_CORRECT_COLOR, _ERROR_COLOR = (109, 179, 232), (242, 166, 90)
_LONG_TABLE = 8  # rows; a longer one is set in two columns
_MOST_CLASSES = 100  # of a matrix that can be read; that of 1,000 classes would take 68 MB
_MOST_CONFUSIONS = 50
_Curve = TypeVar("_Curve")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a head: the first cell names the row, the others are texts, estimates or a last note."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Estimate]]
    label: str = ""
    caption: str = ""
    has_notes: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot below a heading, with what each curve is and a note."""

    heading: str
    uri: str
    alt: str
    key: Sequence[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class DataSection:
    """Units of each class, and the files, series and slices they come from."""

    classes: Table
    flow: Table
    skipped: Table | None


@dataclass(frozen=True, slots=True)
class SplitSection:
    """The subsets of a split, and how many patients are in more than one."""

    subsets: Table
    n_shared: int


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A count of a confusion matrix, with its share of the row (None: an empty row) and a color."""

    n: int
    share: float | None
    color: str


@dataclass(frozen=True, slots=True)
class CurvesSection:
    """Curves, and the errors as a confusion matrix or a table."""

    plots: Sequence[Plot]
    matrix: Mapping[str, Sequence[MatrixCell]] | None
    errors: Table | None
    n_confusions: int = 0


@dataclass(frozen=True, slots=True)
class CalibrationSection:
    """What was fitted on validation data, in sentences, operating points, a plot and ranges."""

    sentences: Sequence[str]
    criterion: str
    points: Table | None
    plot: Plot | None
    ranges: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """Plots and a table of the epochs."""

    n_epochs: int
    has_two_phases: bool
    plots: Sequence[tuple[str, str]]
    epochs: Table


@dataclass(frozen=True, slots=True)
class Gallery:
    """Example images by heading."""

    groups: Mapping[str, Sequence[ExampleImage]]
    has_saliency: bool


def name_model(provenance: Mapping[str, Any]) -> str:
    """Name the model that made the predictions; "" if that is not known."""
    return str(provenance["model"].get("name") or provenance["model"].get("backbone") or "")


def choose_headlines(report: "Report") -> tuple[str, ...]:
    """Name the metrics to read first."""
    return _HEADLINES["binary" if "sensitivity" in report.metrics else report.task]


def build_data(report: "Report") -> DataSection:
    """Count patients and images of each class, and how files became predictions."""
    of_series = report.provenance["evaluation"]["item"] == "series"
    has_units = report.unit == "series" and not of_series
    sizes = [(c.name, c.patients, c.units, c.images) for c in report.counts]
    rows = [
        [name, *map(format_count, (patients, units, images) if has_units else (patients, images))]
        for name, patients, units, images in (
            *sizes,
            ("All", report.n_patients, report.n_units, report.n_images),
        )
    ]
    head = ["Class", "Patients", *(["Series"] if has_units else []), "Series" if of_series else "Images"]
    flow = report.provenance["data"]
    steps = {"Full dataset": flow.get("found"), "Evaluated": flow["evaluated"]}
    keys = ("patients", "series", "slices")
    found = [[name, *(format_count(step.get(k)) for k in keys)] for name, step in steps.items() if step]
    skipped = [[reason, format_count(n)] for reason, n in (flow["skipped"] or {}).items()]
    return DataSection(
        Table(head, rows, "Classes"),
        Table(["", "Patients", "Series", "Slices"], found, "Data flow"),
        Table(["Skipped files", "Files"], skipped, "Skipped files") if skipped else None,
    )


def build_split(report: "Report", split: Mapping[str, EvaluationDataset] | None) -> SplitSection | None:
    """Count the subsets of a split, and the patients in more than one of them."""
    if not split:
        return None
    subsets = count_subsets(split)
    classes = list(dict.fromkeys(name for subset in subsets for name in subset.classes))
    rows = [
        [
            subset.name
            + (" (evaluated here)" if subset.digest == report.provenance["data"]["digest"] else ""),
            *map(format_count, (subset.patients, subset.series, subset.items)),
            *(format_count(subset.classes.get(name, 0)) for name in classes),
            subset.digest[:12],
        ]
        for subset in subsets
    ]
    head = ["Subset", "Patients", "Series", "Items", *classes, "Digest"]
    return SplitSection(Table(head, rows, "Split"), count_shared_patients(split))


def build_curves(report: "Report") -> CurvesSection:
    """Plot ROC, precision-recall and reliability curves, and count the errors."""
    plots = [] if report.curves is None else _plot_all(report, report.curves)
    if report.task == "multilabel":
        rows = [
            [name, *map(format_count, (matrix[1, 1], matrix[1, 0], matrix[0, 1], matrix[0, 0]))]
            for name, matrix in zip(report.classes, report.confusion, strict=True)
        ]
        head = ["Label", "True positives", "False negatives", "False positives", "True negatives"]
        return CurvesSection(plots, None, Table(head, rows, "Predictions by label"))
    if len(report.classes) > _MOST_CLASSES:
        return CurvesSection(plots, None, *_rank_confusions(report))
    matrix = {
        name: [
            _shade(int(n), int(row.sum()), _CORRECT_COLOR if i == j else _ERROR_COLOR)
            for j, n in enumerate(row)
        ]
        for i, (name, row) in enumerate(zip(report.classes, report.confusion, strict=True))
    }
    return CurvesSection(plots, matrix, None)


def _rank_confusions(report: "Report") -> tuple[Table, int]:
    errors = report.confusion * ~np.eye(len(report.classes), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = [divmod(int(index), len(errors)) for index in order]
    rows = [
        [report.classes[i], report.classes[j], format_count(errors[i, j])] for i, j in pairs if errors[i, j]
    ]
    return Table(["True", "Predicted", "Units"], rows, "Confusions"), int(np.count_nonzero(errors))


def _shade(n: int, total: int, full: tuple[int, int, int]) -> MatrixCell:
    share = n / total if total else 0.0
    color = ", ".join(str(round(255 - (255 - channel) * share)) for channel in full)
    return MatrixCell(n, share if total else None, f"rgb({color})")


def _plot_all(report: "Report", curves: Curves) -> list[Plot]:
    plots = []
    if curves.roc:
        lines = _take_first(curves.roc)
        key = [_describe_curve(report, name, "auroc", "AUROC") for name in lines]
        alt = "ROC curve: sensitivity against false positive rate. The areas are listed below."
        uri = plot_curves(list(lines.values()), curve_type="roc")
        plots.append(Plot("ROC curve", uri, alt, key, _note_omitted(lines, curves.roc)))
    if curves.precision_recall:
        lines = _take_first(curves.precision_recall)
        key = [_describe_curve(report, name, "auprc", "average precision") for name in lines]
        alt = "Precision against recall. The average precisions are listed below."
        uri = plot_curves(list(lines.values()), curve_type="precision_recall")
        note = _note_omitted(lines, curves.precision_recall)
        plots.append(Plot("Precision–recall curve", uri, alt, key, note))
    return [*plots, _plot_reliability(report, curves)]


def _plot_reliability(report: "Report", curves: Curves) -> Plot:
    shown = _take_first(curves.reliability)
    if len(shown) > 1 and curves.confidence is not None:
        shown, omitted = {"": curves.confidence}, ""
    else:
        omitted = _note_omitted(shown, curves.reliability)
    key = [
        f"{_name_curve(report, name) if name else 'probability of the predicted class'}: ECE {curve.ece:.3f}"
        for name, curve in shown.items()
    ]
    alt = "Reliability diagram: observed frequency against predicted probability, in bins. The expected "
    alt += "calibration errors are listed below."
    note = "Larger markers are bins with more units. ECE: expected calibration error, the mean distance from "
    note += f"the diagonal, weighted by bin size. {omitted}"
    return Plot("Reliability diagram", plot_reliability(list(shown.values())), alt, key, note)


def _take_first(curves: Mapping[str, _Curve]) -> dict[str, _Curve]:
    """Take as many curves as there are styles."""
    return dict(list(curves.items())[:MOST_STYLES])


def _note_omitted(shown: Mapping[str, _Curve], curves: Mapping[str, _Curve]) -> str:
    if len(shown) >= len(curves):
        return ""
    return f"Only the first {len(shown)} of {len(curves):,} classes are plotted."


def _describe_curve(report: "Report", name: str, metric: str, words: str) -> str:
    by_class = f"{metric}[{name}]"
    estimate = report.metrics[by_class if by_class in report.metrics else metric]
    return f"{_name_curve(report, name)}: {words} {estimate}"


def _name_curve(report: "Report", name: str) -> str:
    several = report.task == "multiclass" and "sensitivity" not in report.metrics
    return f"{name} (versus rest)" if several else name


def build_overall_metrics(report: "Report") -> list[Table]:
    """List the metrics that are not of one class, a long list as two tables."""
    rows = [
        [describe_metric(name), format_number(e.value), format_interval_or_reason(e)]
        for name, e in report.metrics.items()
        if "[" not in name
    ]
    head = ["Metric", "Value", f"{format_percent(report.ci)} CI"]
    half = -(-len(rows) // 2) if len(rows) > _LONG_TABLE else len(rows)
    return [Table(head, part, "Overall metrics") for part in (rows[:half], rows[half:]) if part]


def build_metrics_by_class(report: "Report") -> Table:
    """List the metrics of each class."""
    names = dict.fromkeys(name.partition("[")[0] for name in report.metrics if "[" in name)
    rows: list[list[str | Estimate]] = [
        [name, *(report.metrics[f"{metric}[{name}]"] for metric in names)] for name in report.classes
    ]
    return Table(["Class", *map(describe_metric, names)], rows, "Metrics by class")


def build_subgroups(report: "Report") -> list[Table]:
    """List the headline metrics of each group of patients, with its size, one table for each attribute."""
    if report.subgroups is None:
        return []
    names = choose_headlines(report)
    head = ["Group", "Patients", *map(describe_metric, names), "Note"]
    return [
        Table(
            head,
            [
                [
                    str(group),
                    f"<{FEWEST_SHOWN}"
                    if part["n_patients"].isna().any()
                    else f"{part['n_patients'].iloc[0]:,}",
                    *(_find_estimate(part, name) for name in names),
                    str(part["note"].iloc[0]),
                ]
                for group, part in rows.groupby("group", sort=False)
            ],
            f"Metrics by {subgroup}",
            caption=f"By {subgroup}",
            has_notes=True,
        )
        for subgroup, rows in report.subgroups.groupby("subgroup", sort=False)
    ]


def _find_estimate(group: "pd.DataFrame", metric: str) -> Estimate:
    rows = group.loc[group["metric"] == metric]
    values = rows[["value", "low", "high"]].to_numpy(dtype=float).tolist() or [[math.nan] * 3]
    value, low, high = values[0]
    return Estimate(value, low, high, reason=next(iter(rows["reason"]), ""))


def build_calibration(report: "Report") -> CalibrationSection:
    """Describe calibration, operating points, prediction sets and the ranges of the training data."""
    calibration = report.provenance.get("calibration") or {}
    sentences = describe_calibration(calibration, is_known="calibration" in report.provenance)
    coverage = measure_coverage(report)
    if coverage is not None:
        share, size = coverage
        of = f"the {report.n_units:,} units" if report.task == "multiclass" else "the true labels"
        sentences.append(
            f"Empirical coverage on the evaluation data: {100 * share:.0f} % of {of}; mean set size "
            f"{size:.2f}."
        )
    rows = [
        [
            point["label"],
            *(f"{point[key]:.3f}" for key in ("threshold", "sensitivity", "specificity")),
            f"{point['positives']:,} / {point['negatives']:,}",
        ]
        for point in calibration.get("points", ())
    ]
    head = ["Class", "Threshold", "Sensitivity", "Specificity", "Pos. / neg."]
    return CalibrationSection(
        sentences,
        criterion=_describe_criterion(calibration.get("operating_point")),
        points=Table(head, rows, "Operating points") if rows else None,
        plot=_plot_calibration(calibration["bins"]) if calibration.get("bins") else None,
        ranges=describe_training_ranges(report.provenance.get("ranges")),
    )


def _describe_criterion(criterion: Any) -> str:
    if not isinstance(criterion, Mapping):
        return "the highest sensitivity + specificity (Youden’s J)"
    ((name, value),) = criterion.items()
    if name == "sensitivity":
        return f"the highest specificity at a sensitivity of at least {value:g}"
    return f"the lowest cost, with a false negative costing {value:g} false positives"


def _plot_calibration(bins: Sequence[tuple[str, float, float, int]]) -> Plot:
    curves = {}
    for name in dict.fromkeys(row[0] for row in bins):
        predicted, observed, n = zip(*(row[1:] for row in bins if row[0] == name), strict=True)
        curves[name] = Reliability(np.array(predicted), np.array(observed), np.array(n, dtype=np.int64))
    alt = "Reliability diagram of the validation data, before and after calibration: observed frequency "
    alt += "against predicted probability, in bins. The expected calibration errors are listed below."
    key = [f"{name}: ECE {curve.ece:.3f}" for name, curve in curves.items()]
    return Plot("Reliability diagram (validation data)", plot_reliability(list(curves.values())), alt, key)


def build_gallery(report: "Report") -> Gallery:
    """Group the example images: errors, then correct predictions."""
    errors = [image for image in report.example_images if not image.right]
    correct = [image for image in report.example_images if image.right]
    n_errors = round((1 - report.metrics["accuracy"].value) * report.n_units)
    shown = (
        f"all {n_errors:,}" if len(errors) == n_errors else f"{len(errors)} most confident of {n_errors:,}"
    )
    groups = {f"Errors ({shown})": errors, "Correct (random sample)": correct}
    return Gallery(
        {heading: images for heading, images in groups.items() if images},
        has_saliency=any(image.overlay is not None for image in report.example_images),
    )


def build_training(fit: FitHistory | None) -> TrainingSection | None:
    """Plot and list losses and scores by epoch."""
    if fit is None or not fit.history:
        return None
    phases = [row.get("phase") for row in fit.history]
    keys = [key for key in fit.history[0] if key not in {"epoch", "seconds"}]
    filled = [key for key in keys if any(row.get(key) is not None for row in fit.history)]
    rows = [
        [str(i), *(format_setting(row.get(key)) for key in filled)] for i, row in enumerate(fit.history, 1)
    ]
    return TrainingSection(
        n_epochs=len(phases),
        has_two_phases="head" in phases and "full" in phases,
        plots=plot_training(fit.history),
        epochs=Table(["Epoch", *(_HISTORY_COLUMNS.get(key, key) for key in filled)], rows, "Epochs"),
    )


def build_settings(report: "Report") -> dict[str, Mapping[str, Any]]:
    """Collect model, preprocessing, settings and versions by heading."""
    provenance = report.provenance
    tables = {
        "Model": provenance["model"] | {"classes": ", ".join(report.classes)},
        "Preprocessing": {}
        if provenance["recipe"] is None
        else {"fingerprint": provenance["recipe_fingerprint"]} | provenance["recipe"],
        "Training": provenance.get("training") or {},
        "Evaluation": provenance["evaluation"] | {"data digest": provenance["data"]["digest"]},
        "Versions": provenance["versions"],
    }
    return {heading: rows for heading, rows in tables.items() if rows}
