"""Sections of the report on what lies behind the scores: data flow, split, training, subgroups, methods."""

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from medimg.evaluate._html import (
    duration,
    estimate_cell,
    facts,
    percent,
    scrolling,
    section,
    shown,
    table,
)
from medimg.evaluate._protocols import Dataset, Fit
from medimg.evaluate.bootstrap import Estimate
from medimg.evaluate.flow import shared_patients, sides_of
from medimg.evaluate.plots import training_plots
from medimg.evaluate.report import describe_metric
from medimg.evaluate.subgroups import FEWEST_SHOWN

if TYPE_CHECKING:
    import pandas as pd

    from medimg.evaluate.report import Report

__all__ = [
    "data_section",
    "headline_metrics",
    "method_section",
    "split_section",
    "subgroups_section",
    "training_section",
]

_HEADLINES = {
    "binary": ("auroc", "sensitivity", "specificity", "balanced_accuracy"),
    "multiclass": ("auroc", "balanced_accuracy", "accuracy", "f1_macro"),
    "multilabel": ("auroc", "recall_macro", "specificity_macro", "f1_macro"),
}
_COLUMNS = {
    "phase": "Phase",
    "train_loss": "Training loss",
    "adapt_loss": "Adaptation loss",
    "val_loss": "Validation loss",
    "val_accuracy": "Accuracy",
    "val_balanced_accuracy": "Balanced accuracy",
    "val_f1": "F1",
    "val_auroc": "AUROC",
    "monitor": "Chosen by",
    "lr": "Learning rate",
}
_FLOW = ("patients", "series", "slices")


def headline_metrics(report: "Report") -> tuple[str, ...]:
    """Give the names of the metrics that are read first."""
    return _HEADLINES["binary" if "sensitivity" in report.metrics else report.task]


def data_section(report: "Report") -> str:
    """Show how files became scores, and how many of each class there are."""
    flow = report.provenance.get("data", {})
    content = f'<div class="beside"><div><h3>By class</h3>{_classes(report)}</div>{_flow(report, flow)}</div>'
    return section("What was evaluated", content)


def _classes(report: "Report") -> str:
    of_series = report.provenance["evaluation"]["item"] == "series"
    unit_column = report.unit == "series" and not of_series
    rows = [
        [c.name, f"{c.patients:,}", *([f"{c.units:,}"] if unit_column else []), f"{c.images:,}"]
        for c in report.counts
    ]
    head = ["Class", "Patients", *(["Series"] if unit_column else []), "Series" if of_series else "Images"]
    sizes = (report.n_patients, *((report.n_units,) if unit_column else ()), report.n_images)
    extra = "" if report.task == "multiclass" else _soft("An image may carry several labels, or none.")
    return table(head, [*rows, ["All", *(f"{n:,}" for n in sizes)]]) + extra


def _flow(report: "Report", flow: Mapping[str, Any]) -> str:
    if not flow:
        return ""
    head = ["", *(name.capitalize() for name in _FLOW)]
    steps = [("All that was found", flow.get("found")), ("Evaluated", flow["evaluated"])]
    rows = [[name, *(_count(step.get(key)) for key in _FLOW)] for name, step in steps if step]
    left = [[reason, f"{n:,}"] for reason, n in flow["skipped"].items()]
    parts = [table(head, rows, caption="From files to what was scored")]
    pictures = flow.get("pictures")
    made = f"The recipe made {pictures:,} pictures of them; they" if pictures else "They"
    parts.append(_soft(f"{made} gave {flow['units']:,} scores, one for each {report.unit}."))
    if flow.get("modalities"):
        listed = ", ".join(f"{name} {n:,}" for name, n in flow["modalities"].items())
        parts.append(_soft(f"Series by modality: {listed}."))
    if left:
        parts.append(table(["Left out because", "Files"], left, caption="Files that were found and skipped"))
    else:
        parts.append(_soft("No file was skipped."))
    return f"<div><h3>Data flow</h3>{''.join(parts)}</div>"


def split_section(report: "Report", split: Mapping[str, Dataset] | None) -> str:
    """Show how large the sides of the split are, and whether a patient is on two of them."""
    if not split:
        return ""
    sides = sides_of(split)
    evaluated = report.provenance.get("data", {}).get("digest")
    classes = list(dict.fromkeys(name for side in sides for name in side.classes))
    rows = [
        [
            side.name + (" (evaluated here)" if side.digest == evaluated else ""),
            *(f"{n:,}" for n in (side.patients, side.series, side.items)),
            *(f"{side.classes.get(name, 0):,}" for name in classes),
            side.digest[:12],
        ]
        for side in sides
    ]
    shared = shared_patients(split)
    said = (
        '<div class="notice" role="note" aria-label="Caution"><p>'
        f"{shared:,} patients are on more than one side: scores are better than they would be on new "
        "patients.</p></div>"
        if shared
        else _soft("Split by patient: none is on two sides. The digest tells these images and labels again.")
    )
    return section("Split", table(["Side", "Patients", "Series", "Items", *classes, "Digest"], rows) + said)


def training_section(fit: Fit | None) -> str:
    """Draw the losses and scores of training by epoch, with the numbers below."""
    if fit is None or not fit.history:
        return ""
    phases = [row.get("phase") for row in fit.history]
    text = f"{len(phases)} epoch{'s' if len(phases) > 1 else ''} in {duration(fit.seconds)}."
    if "head" in phases and "full" in phases:
        text += " Before the dashed line only the head was trained, after it the whole network."
    plots = "".join(
        f'<figure class="plot"><img src="{address}" alt="{alt}"></figure>'
        for alt, address in training_plots(fit.history)
    )
    return section("Training", f'{_soft(text)}<div class="columns">{plots}</div>{_epochs(fit)}')


def _epochs(fit: Fit) -> str:
    keys = [key for key in fit.history[0] if key not in {"epoch", "seconds"}]
    filled = [key for key in keys if any(row.get(key) is not None for row in fit.history)]
    rows = [[str(i), *(shown(row.get(key)) for key in filled)] for i, row in enumerate(fit.history, 1)]
    return table(["Epoch", *(_COLUMNS.get(key, key) for key in filled)], rows)


def subgroups_section(report: "Report") -> str:
    """Show the first metrics of each group of patients, with its size."""
    if report.subgroups is None or report.subgroups.empty:
        return ""
    text = (
        f"Each group of patients by itself, with {percent(report.ci)} intervals. Groups of fewer than "
        f"{FEWEST_SHOWN} patients are put together, or not shown. Differences between small groups are often "
        "chance: look whether the intervals overlap."
    )
    tables = [
        _groups(report, str(name), rows) for name, rows in report.subgroups.groupby("subgroup", sort=False)
    ]
    return section("Subgroups", _soft(text) + "".join(tables), long=True)


def _groups(report: "Report", subgroup: str, table: "pd.DataFrame") -> str:
    names = headline_metrics(report)
    head = "".join(
        f'<th scope="col" class="number">{escape(text)}</th>'
        for text in ("Patients", *(describe_metric(name) for name in names))
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(str(label))}</th><td class="number">{_patients(group)}</td>'
        + "".join(estimate_cell(_estimate(group, name)) for name in names)
        + f'<td class="note">{escape(str(group["note"].iloc[0]))}</td></tr>'
        for label, group in table.groupby("group", sort=False)
    )
    whole = (
        f"<table><caption>By {escape(subgroup)}</caption>"
        f'<thead><tr><th scope="col">Group</th>{head}<th scope="col" class="note">Note</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return scrolling(whole, f"Scores by {subgroup}")


def _patients(group: "pd.DataFrame") -> str:
    n = group["n_patients"].iloc[0]
    return f"&lt;{FEWEST_SHOWN}" if group["n_patients"].isna().iloc[0] else f"{int(n):,}"


def _estimate(group: "pd.DataFrame", metric: str) -> Estimate:
    rows = group.loc[group["metric"] == metric, ["value", "low", "high"]]
    values = rows.to_numpy(dtype=float).tolist() or [[math.nan] * 3]
    return Estimate(*values[0])


def method_section(report: "Report") -> str:
    """Show model, recipe, settings and versions in full."""
    provenance = report.provenance
    training = provenance.get("training") or {}
    tables = (
        ("Model", provenance["model"] | {"classes": ", ".join(report.classes)}),
        ("Recipe", {"fingerprint": provenance["recipe_fingerprint"]} | provenance["recipe"]),
        ("Training", training),
        ("Evaluation", provenance["evaluation"] | _digest(provenance)),
        ("Versions", provenance["versions"]),
    )
    parts = "".join(f"<div><h3>{name}</h3>{facts(rows)}</div>" for name, rows in tables if rows)
    return section("How it was done", f'<div class="columns">{parts}</div>', long=True)


def _digest(provenance: Mapping[str, Any]) -> dict[str, str]:
    digest = provenance.get("data", {}).get("digest")
    return {"data digest": digest} if digest else {}


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'
