"""The report as one HTML page, and its metrics as a table for notebooks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report import _sections
from medimg.evaluation.report._calibration_facts import describe_other_intervals
from medimg.evaluation.report._formats import format_interval_or_reason, format_number, format_percent
from medimg.evaluation.report._jinja import render_template
from medimg.evaluation.report._metric_names import describe_metric
from medimg.evaluation.report.cautions import FEWEST_SHOWN, describe_decision_rule
from medimg.plotting.html_repr import rows_html

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report

__all__ = ["render_notebook_table", "render_report"]


def render_report(
    report: "Report",
    *,
    fit: FitHistory | None = None,
    split: Mapping[str, EvaluationDataset] | None = None,
    title: str | None = None,
    example_images: bool = True,
) -> str:
    """Render the page, which refers to no other file or address."""
    return render_template(
        "report.html.j2",
        report=report,
        title=title or f"Evaluation of {_sections.name_model(report.provenance) or 'predictions'}",
        created=report.provenance["created"].replace("T", " ").replace("+00:00", " UTC"),
        headlines=_sections.choose_headlines(report),
        decision_rule=describe_decision_rule(report.task, report.classes, report.provenance["evaluation"]),
        other_intervals=describe_other_intervals(report.metrics.values()),
        data=_sections.build_data(report),
        split=_sections.build_split(report, split),
        curves=_sections.build_curves(report),
        overall=_sections.build_overall_metrics(report),
        by_class=_sections.build_metrics_by_class(report),
        subgroups=_sections.build_subgroups(report),
        fewest_shown=FEWEST_SHOWN,
        calibration=_sections.build_calibration(report),
        gallery=_sections.build_gallery(report) if example_images and report.example_images else None,
        fit=fit,
        training=_sections.build_training(fit),
        settings=_sections.build_settings(report),
    )


def render_notebook_table(report: "Report") -> str:
    """Return all metrics and the limitations as HTML for a notebook."""
    rows = [
        [describe_metric(name), format_number(e.value), format_interval_or_reason(e)]
        for name, e in report.metrics.items()
    ]
    head = ["Metric", "Value", f"{format_percent(report.ci)} CI"]
    title = f"Report: {report.size}, scored by {report.unit}"
    return rows_html(title, head, rows, notes=report.notes)
