"""The model card, with the sections of Mitchell et al., Model cards for model reporting, FAT* 2019."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report._calibration_facts import (
    describe_calibration,
    describe_other_intervals,
    describe_training_ranges,
)
from medimg.evaluation.report._formats import format_count, format_number, format_percent, format_setting
from medimg.evaluation.report._jinja import render_template
from medimg.evaluation.report._metric_names import describe_metric
from medimg.evaluation.report._sections import Table, choose_headlines, name_model
from medimg.evaluation.report.cautions import FEWEST_SHOWN, describe_decision_rule
from medimg.evaluation.report.data_flow import count_shared_patients, count_subsets

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report

__all__ = ["render_card"]

_BY_CLASS = ("auroc", "recall", "specificity", "precision")


def render_card(
    report: "Report",
    *,
    fit: FitHistory | None,
    split: Mapping[str, EvaluationDataset] | None,
    statements: Mapping[str, str | None],
) -> str:
    """Render the card; names from data are escaped, statements about the model may be in Markdown."""
    provenance = report.provenance
    return render_template(
        "model_card.md.j2",
        report=report,
        model_name=name_model(provenance) or "model without a name",
        statements=statements,
        details={
            **provenance["model"],
            "classes": ", ".join(report.classes),
            "preprocessing fingerprint": provenance["recipe_fingerprint"] or "not stated",
            "card created": provenance["created"],
            "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        },
        groupings=[] if report.subgroups is None else report.subgroups["subgroup"].unique().tolist(),
        decision_rule=describe_decision_rule(report.task, report.classes, provenance["evaluation"]),
        other_intervals=describe_other_intervals(report.metrics.values()),
        calibration=describe_calibration(provenance.get("calibration"), is_known="calibration" in provenance),
        classes=_list_classes(report),
        subsets=_list_subsets(split) if split else None,
        n_shared=count_shared_patients(split or {}),
        ranges=describe_training_ranges(provenance.get("ranges")),
        fit=fit if fit is not None and fit.history else None,
        training=_list_settings(provenance["training"]) if provenance.get("training") else None,
        metrics=_list_metrics(report),
        by_class=_list_metrics_by_class(report),
        subgroups=None if report.subgroups is None else _list_subgroups(report),
        fewest_shown=FEWEST_SHOWN,
    )


def _list_classes(report: "Report") -> Table:
    rows = [[c.name, format_count(c.patients), format_count(c.images)] for c in report.counts]
    return Table(["Class", "Patients", "Items"], rows)


def _list_subsets(split: Mapping[str, EvaluationDataset]) -> Table:
    rows = [
        [one.name, *map(format_count, (one.patients, one.series, one.items)), one.digest[:12]]
        for one in count_subsets(split)
    ]
    return Table(["Subset", "Patients", "Series", "Items", "Digest"], rows)


def _list_settings(settings: Mapping[str, object]) -> Table:
    return Table(["Setting", "Value"], [[name, format_setting(value)] for name, value in settings.items()])


def _list_metrics(report: "Report") -> Table:
    rows = [[describe_metric(name), str(e)] for name, e in report.metrics.items() if "[" not in name]
    return Table(["Metric", f"Value ({format_percent(report.ci)} CI)"], rows)


def _list_metrics_by_class(report: "Report") -> Table:
    metrics = [name for name in _BY_CLASS if f"{name}[{report.classes[0]}]" in report.metrics]
    rows = [
        [name, *(str(report.metrics[f"{metric}[{name}]"]) for metric in metrics)] for name in report.classes
    ]
    return Table(["Class", *map(describe_metric, metrics)], rows)


def _list_subgroups(report: "Report") -> Table:
    assert report.subgroups is not None
    names = choose_headlines(report)
    rows = []
    for (subgroup, group), part in report.subgroups.groupby(["subgroup", "group"], sort=False):
        values = part.set_index("metric")["value"]
        few = part["n_patients"].isna().any()
        size = f"fewer than {FEWEST_SHOWN}" if few else format_count(part["n_patients"].iloc[0])
        metrics = (format_number(values.get(name, float("nan"))) for name in names)
        rows.append([f"{subgroup}: {group}", size, *metrics])
    return Table(["Group", "Patients", *map(describe_metric, names)], rows)
