"""The report as one self-contained HTML page. Whatever comes from data passes through ``html.escape``."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report._calibration_facts import other_intervals
from medimg.evaluation.report._html_elements import (
    CSS,
    interval_bar,
    jpeg_address,
    number,
    percent,
    png_address,
    section,
    span,
    table,
)
from medimg.evaluation.report._sections import (
    curves_section,
    data_section,
    deciding_section,
    headline_metrics,
    method_section,
    scores_section,
    split_section,
    subgroups_section,
    training_section,
)
from medimg.evaluation.report.cautions import decision_rule
from medimg.evaluation.report.example_images import ExampleImage
from medimg.evaluation.report.metric_names import describe_metric

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report

__all__ = ["notebook_table", "render_report"]

_SHORT = {"recall_macro": "Mean recall", "specificity_macro": "Mean specificity", "f1_macro": "Mean F1"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_report(
    report: "Report",
    *,
    fit: FitHistory | None = None,
    split: Mapping[str, EvaluationDataset] | None = None,
    title: str | None = None,
    pictures: bool = True,
) -> str:
    """
    Make the page.

    Parameters
    ----------
    report : Report
        What to show.
    fit : FitResult or None
        Its history is drawn.
    split : mapping of str to ImageDataset, or None
        The sides of the split are counted.
    title : str or None
        Heading.
    pictures : bool
        Whether to show images.

    Returns
    -------
    str
        HTML without any reference to another file or address.
    """
    heading = escape(title or f"Evaluation of {report.provenance['model']['backbone']}")
    sections = [
        _scores(report),
        data_section(report),
        split_section(report, split),
        curves_section(report),
        scores_section(report),
        subgroups_section(report),
        deciding_section(report),
        _gallery(report) if pictures else "",
        training_section(fit),
        method_section(report),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>{heading}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
<p class="soft">{_subtitle(report)}</p>
</header>
<main>
{"".join(sections)}
</main>
<footer><p>Made by medimg {escape(report.provenance["versions"]["medimg"])}.
Patients appear only as salted hashes.
For research: these scores are no approval for clinical use.</p></footer>
</body>
</html>
"""


def notebook_table(report: "Report") -> str:
    """
    Make the table of metrics that a notebook shows.

    Parameters
    ----------
    report : Report
        What to show.

    Returns
    -------
    str
        An HTML fragment.
    """
    rows = [[describe_metric(name), number(e.value), span(e)] for name, e in report.metrics.items()]
    caption = f"Scored by {report.unit}: {report.size}"
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    return table(["Metric", "Value", f"{percent(report.ci)} interval"], rows, caption=caption) + notes


def _subtitle(report: "Report") -> str:
    made = report.provenance["created"].replace("T", " ").replace("+00:00", " UTC")
    return f"{escape(report.size)} · scored by {escape(report.unit)} · {escape(made)}"


def _scores(report: "Report") -> str:
    cards = "".join(_card(name, report) for name in headline_metrics(report))
    return f'{_notice(report.notes)}<section><ul class="cards">{cards}</ul>{_meaning(report)}</section>'


def _notice(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    sentences = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<div class="notice" role="note" aria-label="Caution">{sentences}</div>'


def _card(name: str, report: "Report") -> str:
    estimate = report.metrics[name]
    label = _SHORT.get(name, describe_metric(name))
    ends = span(estimate)
    return (
        f'<li class="card"><span class="name">{escape(label)}</span>'
        f'<span class="value">{number(estimate.value)}</span>'
        f'<span class="range">{f"{percent(report.ci)} CI {ends}" if ends else "no interval"}</span>'
        f"{interval_bar(estimate)}</li>"
    )


def _meaning(report: "Report") -> str:
    decision = escape(decision_rule(report.task, report.classes, report.provenance["evaluation"]))
    positive = (
        f" Sensitivity, specificity and AUROC take “{escape(report.classes[1])}” as the positive finding."
        if "sensitivity" in report.metrics
        else " AUROC, recall and F1 are means of each class against the rest."
    )
    n_resamples = report.provenance["evaluation"]["n_resamples"]
    besides = other_intervals(report.metrics.values())
    intervals = (
        f" The {percent(report.ci)} intervals come from drawing whole patients again {n_resamples:,} "
        f"times{besides}, because images of one patient resemble each other. They tell how much the scores "
        "depend on which patients happened to be tested; not what another hospital, scanner or training run "
        "would change."
        if report.n_patients > 1
        else ""
    )
    item = "series" if report.provenance["evaluation"]["item"] == "series" else "image"
    scored = (
        f"Each {item} is scored by itself"
        if report.unit in {"image", item}
        else f"The probabilities of all {'series' if item == 'series' else 'images'} of a {report.unit} are "
        "averaged"
    )
    return f'<p class="soft">{scored}; {decision}.{positive}{intervals}</p>'


def _gallery(report: "Report") -> str:
    wrong = [picture for picture in report.pictures if not picture.right]
    right = [picture for picture in report.pictures if picture.right]
    n_wrong = round((1 - report.metrics["accuracy"].value) * report.n_units)
    share = f"all {n_wrong:,}" if len(wrong) == n_wrong else f"the worst {len(wrong)} of {n_wrong:,}"
    headings = (f"Wrong: {share}", "Right: drawn at random")
    heat = any(picture.overlay is not None for picture in report.pictures)
    grid = "pictures wide" if heat else "pictures"
    parts = [
        f'<h3>{heading}</h3><div class="{grid}">{"".join(map(_picture, chosen))}</div>'
        for heading, chosen in zip(headings, (wrong, right), strict=True)
        if chosen
    ]
    text = (
        f"One image of a patient, as the model saw it, with the probability of the {report.unit}. "
        "Text burned into an image is not removed."
    )
    if heat:
        several = report.task == "multilabel"
        what = "label whose probability is given" if several else "class that it predicted"
        text += (
            f" Beside it, bright where the network found evidence for the {what} (Grad-CAM, "
            "Selvaraju 2017): where it looked, not why, nor whether that is right."
        )
    return section("Pictures", f'<p class="soft">{text}</p>{"".join(parts)}', long=True)


def _picture(picture: ExampleImage) -> str:
    alt = f"Image of subject {picture.subject}: true {picture.label}, predicted {picture.predicted}"
    return (
        f'<figure><div class="pair"><img src="{png_address(picture.pixels)}" alt="{escape(alt)}">'
        f"{_overlay(picture)}</div><figcaption>"
        f"True: <b>{escape(picture.label)}</b><br>"
        f"Predicted: <b>{escape(picture.predicted)}</b> ({escape(picture.confidence)})<br>"
        f"<code>{escape(picture.subject)}</code></figcaption></figure>"
    )


def _overlay(picture: ExampleImage) -> str:
    if picture.overlay is None:
        return ""
    alt = f"The same image with the heat that speaks for {picture.explained}"
    return f'<img src="{jpeg_address(picture.overlay)}" alt="{escape(alt)}">'
