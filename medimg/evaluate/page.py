"""The report as one self-contained HTML page. Whatever comes from data passes through ``html.escape``."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from medimg.evaluate._html import (
    duration,
    interval_bar,
    number,
    percent,
    png_address,
    section,
    shown,
    span,
    table,
)
from medimg.evaluate._protocols import Fit
from medimg.evaluate._results import curves_section, scores_section
from medimg.evaluate._style import CSS
from medimg.evaluate.pictures import Picture
from medimg.evaluate.plots import training_plots
from medimg.evaluate.report import describe_metric

if TYPE_CHECKING:
    from medimg.evaluate.report import Report

__all__ = ["notebook_table", "render"]

_HEADLINES = {
    "binary": ("auroc", "sensitivity", "specificity", "balanced_accuracy"),
    "multiclass": ("auroc", "balanced_accuracy", "accuracy", "f1_macro"),
    "multilabel": ("auroc", "recall_macro", "specificity_macro", "f1_macro"),
}
_SHORT = {"recall_macro": "Mean recall", "specificity_macro": "Mean specificity", "f1_macro": "Mean F1"}
_COLUMNS = {
    "phase": "Phase",
    "train_loss": "Training loss",
    "val_loss": "Validation loss",
    "val_accuracy": "Accuracy",
    "val_auroc": "AUROC",
    "lr": "Learning rate",
}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(report: "Report", *, fit: Fit | None, title: str | None, pictures: bool) -> str:
    """
    Make the page.

    Parameters
    ----------
    report : Report
        What to show.
    fit : FitResult or None
        Its history is drawn.
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
        _data(report),
        curves_section(report),
        scores_section(report),
        _training(fit),
        _gallery(report) if pictures else "",
        _method(report),
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
    kind = "binary" if "sensitivity" in report.metrics else report.task
    cards = "".join(_card(name, report) for name in _HEADLINES[kind])
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
    decision = (
        "a label counts as found from a probability of 0.5 on"
        if report.task == "multilabel"
        else "the class with the highest probability is the prediction"
    )
    positive = (
        f" Sensitivity, specificity and AUROC take “{escape(report.classes[1])}” as the positive finding."
        if "sensitivity" in report.metrics
        else " AUROC, recall and F1 are means of each class against the rest."
    )
    n_resamples = report.provenance["evaluation"]["n_resamples"]
    intervals = (
        f" The {percent(report.ci)} intervals come from drawing whole patients again {n_resamples:,} times, "
        "because images of one patient resemble each other. They tell how much the scores depend on which "
        "patients happened to be tested; not what another hospital, scanner or training run would change."
        if report.n_patients > 1
        else ""
    )
    scored = (
        "Each image is scored by itself"
        if report.unit == "image"
        else f"The probabilities of all images of a {report.unit} are averaged"
    )
    return f'<p class="soft">{scored}; {decision}.{positive}{intervals}</p>'


def _data(report: "Report") -> str:
    unit_column = report.unit == "series" and report.provenance["evaluation"]["item"] != "series"
    items = "Series" if report.provenance["evaluation"]["item"] == "series" else "Images"
    rows = [
        [c.name, f"{c.patients:,}", *([f"{c.units:,}"] if unit_column else []), f"{c.images:,}"]
        for c in report.counts
    ]
    head = ["Class", "Patients", *(["Series"] if unit_column else []), items]
    total = [
        f"{report.n_patients:,}",
        *([f"{report.n_units:,}"] if unit_column else []),
        f"{report.n_images:,}",
    ]
    counts = table(head, [*rows, ["All", *total]])
    extra = (
        ""
        if report.task == "multiclass"
        else '<p class="soft">An image may carry several labels, or none.</p>'
    )
    return section("What was evaluated", counts + extra)


def _training(fit: Fit | None) -> str:
    if fit is None or not fit.history:
        return ""
    phases = [row.get("phase") for row in fit.history]
    split = "head" in phases and "full" in phases
    text = f"{len(phases)} epoch{'s' if len(phases) > 1 else ''} in {duration(fit.seconds)}."
    if split:
        text += " Before the dashed line only the head was trained, after it the whole network."
    curves = training_plots(fit.history)
    plots = "".join(f'<figure><img src="{address}" alt="{alt}"></figure>' for alt, address in curves)
    content = f'<p class="soft">{escape(text)}</p><div class="columns">{plots}</div>{_epochs(fit)}'
    return section("Training", content)


def _epochs(fit: Fit) -> str:
    keys = [key for key in fit.history[0] if key not in {"epoch", "seconds"}]
    filled = [key for key in keys if any(row.get(key) is not None for row in fit.history)]
    rows = [[str(i), *(shown(row.get(key)) for key in filled)] for i, row in enumerate(fit.history, 1)]
    return table(["Epoch", *(_COLUMNS.get(key, key) for key in filled)], rows)


def _gallery(report: "Report") -> str:
    wrong = [picture for picture in report.pictures if not picture.right]
    right = [picture for picture in report.pictures if picture.right]
    n_wrong = round((1 - report.metrics["accuracy"].value) * report.n_units)
    share = f"all {n_wrong:,}" if len(wrong) == n_wrong else f"the worst {len(wrong)} of {n_wrong:,}"
    headings = (f"Wrong: {share}", "Right: drawn at random")
    parts = [
        f'<h3>{heading}</h3><div class="pictures">{"".join(map(_picture, chosen))}</div>'
        for heading, chosen in zip(headings, (wrong, right), strict=True)
        if chosen
    ]
    text = (
        f"One image of a patient, as the model saw it, with the probability of the {report.unit}. "
        "Text burned into an image is not removed."
    )
    return section("Pictures", f'<p class="soft">{text}</p>{"".join(parts)}', long=True)


def _picture(picture: Picture) -> str:
    alt = f"Image of subject {picture.subject}: true {picture.label}, predicted {picture.predicted}"
    return (
        f'<figure><img src="{png_address(picture.pixels)}" alt="{escape(alt)}"><figcaption>'
        f"True: <b>{escape(picture.label)}</b><br>"
        f"Predicted: <b>{escape(picture.predicted)}</b> ({escape(picture.confidence)})<br>"
        f"<code>{escape(picture.subject)}</code></figcaption></figure>"
    )


def _method(report: "Report") -> str:
    provenance = report.provenance
    tables = (
        ("Model", provenance["model"] | {"classes": ", ".join(report.classes)}),
        ("Recipe", {"fingerprint": provenance["recipe_fingerprint"]} | provenance["recipe"]),
        ("Evaluation", provenance["evaluation"]),
        ("Versions", provenance["versions"]),
    )
    parts = "".join(f"<div><h3>{name}</h3>{_facts(facts)}</div>" for name, facts in tables)
    return section("How it was done", f'<div class="columns">{parts}</div>', long=True)


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td><code>{escape(shown(value))}</code></td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'
