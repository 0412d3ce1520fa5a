"""
The model card: one page of Markdown for whoever is about to use a model.

Its sections are those of Mitchell et al., Model cards for model reporting, FAT* 2019.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report._calibration_facts import (
    decision_facts,
    other_intervals,
    training_range_facts,
)
from medimg.evaluation.report._html_elements import duration, number, percent, shown
from medimg.evaluation.report._sections import headline_metrics
from medimg.evaluation.report.cautions import FEWEST_SHOWN, decision_rule
from medimg.evaluation.report.data_flow import shared_patients, split_subsets
from medimg.evaluation.report.metric_names import describe_metric

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report

__all__ = ["render_card"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")
_NOT_SAID = "*Not stated.*"
_USE = (
    "Research: to study how well the classes below can be told apart on images like those it was trained on. "
    "It is no medical device."
)
_NO_USE = (
    "Diagnosis, triage or any decision about a patient; images of another modality, body part or population "
    "than those it was trained and evaluated on."
)
_CAVEATS = (
    "The intervals tell how much the scores depend on which patients happened to be tested; not what another "
    "hospital, scanner or training run would change.",
    "Probabilities hold for classes that are as frequent as in the data they were fitted on.",
    "Evaluate on your own patients before you rely on any number in this card.",
)


def render_card(
    report: "Report",
    *,
    fit: FitHistory | None = None,
    split: Mapping[str, EvaluationDataset] | None = None,
    said: Mapping[str, str | None] | None = None,
) -> str:
    """
    Write the card.

    Parameters
    ----------
    report : Report
        What the evaluation found.
    fit : FitResult or None
        How long training took.
    split : mapping of str to ImageDataset, or None
        The sides of the split.
    said : mapping of str to str or None
        What only people know: ``contact``, ``intended_use``, ``out_of_scope`` and ``caveats``.

    Returns
    -------
    str
        Markdown; names that come from data are escaped, what people said is not.
    """
    words = {name: text for name, text in (said or {}).items() if text}
    parts = [
        f"# Model card: {_plain(report.provenance['model']['backbone'])}",
        _section("Model details", _details(report, words)),
        _section("Intended use", _use(words)),
        _section("Factors", _factors(report)),
        _section("Metrics", _metrics(report)),
        _section("Evaluation data", _evaluated(report)),
        _section("Training data", _trained(report, fit, split)),
        _section("Quantitative analyses", _analyses(report)),
        _section("Ethical considerations", _ethics()),
        _section("Caveats and recommendations", _caveats(report, words)),
    ]
    return "\n\n".join(parts) + "\n"


def _details(report: "Report", words: Mapping[str, str]) -> list[str]:
    provenance = report.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    facts = {
        **provenance["model"],
        "classes": ", ".join(report.classes),
        "recipe fingerprint": provenance["recipe_fingerprint"],
        "card made": provenance["created"],
        "versions": versions,
    }
    return [_list(f"{_plain(name)}: {_plain(shown(v))}" for name, v in facts.items()), _contact(words)]


def _contact(words: Mapping[str, str]) -> str:
    return f"Contact: {words.get('contact', _NOT_SAID)}"


def _use(words: Mapping[str, str]) -> list[str]:
    return [
        f"**Intended use.** {words.get('intended_use', _USE)}",
        f"**Out of scope.** {words.get('out_of_scope', _NO_USE)}",
    ]


def _factors(report: "Report") -> list[str]:
    looked_at = [] if report.subgroups is None else report.subgroups["subgroup"].unique().tolist()
    modalities = report.provenance.get("data", {}).get("modalities")
    lines = [
        f"Scores were looked at by: {', '.join(map(_plain, looked_at))}."
        if looked_at
        else "Scores were not looked at by sex, age, scanner or site; how they differ is not known."
    ]
    if modalities:
        lines.append(
            f"Modalities (series): {', '.join(f'{_plain(k)} {n:,}' for k, n in modalities.items())}."
        )
    return lines


def _metrics(report: "Report") -> list[str]:
    evaluation = report.provenance["evaluation"]
    decided = _plain(decision_rule(report.task, report.classes, evaluation))
    return [
        f"Scored by {report.unit}; {decided}. The {percent(report.ci)} intervals resample whole patients "
        f"{evaluation['n_resamples']:,} times{other_intervals(report.metrics.values())}.",
        *decision_facts(report.provenance.get("calibration")),
    ]


def _evaluated(report: "Report") -> list[str]:
    data = report.provenance.get("data", {})
    found, skipped = data.get("found"), data.get("skipped", {})
    lines = [f"{report.size}."]
    if found:
        lines.append(
            f"Taken from {found['series']:,} series of {found['patients']:,} patients that were found; "
            f"{sum(skipped.values()):,} files were skipped."
        )
    lines += [_list(f"{_plain(why)}: {n:,} files" for why, n in skipped.items())] if skipped else []
    rows = [[count.name, f"{count.patients:,}", f"{count.images:,}"] for count in report.counts]
    lines.append(_table(["Class", "Patients", "Items"], rows))
    return [*lines, f"Digest of the data: `{data['digest']}`."] if data.get("digest") else lines


def _trained(
    report: "Report", fit: FitHistory | None, split: Mapping[str, EvaluationDataset] | None
) -> list[str]:
    lines = []
    if split:
        rows = [
            [side.name, *(f"{n:,}" for n in (side.patients, side.series, side.items)), side.digest[:12]]
            for side in split_subsets(split)
        ]
        lines.append(_table(["Side", "Patients", "Series", "Items", "Digest"], rows))
        shared = shared_patients(split)
        lines.append(
            f"**{shared:,} patients are on more than one side: the scores are too good.**"
            if shared
            else "No patient is on two sides."
        )
    ranges = training_range_facts(report.provenance.get("ranges"))
    if ranges:
        lines.append("What the model was trained on; it warns of images unlike these:")
        lines.append(_list(f"{_plain(name)}: {_plain(v)}" for name, v in ranges.items()))
    if fit is not None and fit.history:
        lines.append(f"{len(fit.history)} epochs in {duration(fit.seconds)}.")
    settings = report.provenance.get("training")
    if settings:
        rows = [[name, shown(value)] for name, value in settings.items()]
        lines += ["How it was trained:", _table(["Setting", "Value"], rows)]
    return lines or [_NOT_SAID]


def _analyses(report: "Report") -> list[str]:
    rows = [[describe_metric(name), str(e)] for name, e in report.metrics.items() if "[" not in name]
    lines = [_table(["Metric", f"Value ({percent(report.ci)} interval)"], rows)]
    kinds = [
        k
        for k in ("auroc", "recall", "specificity", "precision")
        if f"{k}[{report.classes[0]}]" in report.metrics
    ]
    by_class = [
        [name, *(str(report.metrics[f"{kind}[{name}]"]) for kind in kinds)] for name in report.classes
    ]
    lines.append(_table(["Class", *map(describe_metric, kinds)], by_class))
    if report.subgroups is not None:
        lines += _groups(report)
    return lines


def _groups(report: "Report") -> list[str]:
    assert report.subgroups is not None
    names = headline_metrics(report)
    rows: list[list[str]] = []
    for (subgroup, group), part in report.subgroups.groupby(["subgroup", "group"], sort=False):
        values = part.set_index("metric")["value"]
        n = part["n_patients"].iloc[0]
        size = f"fewer than {FEWEST_SHOWN}" if str(n) == "<NA>" else f"{int(n):,}"
        rows.append([f"{subgroup}: {group}", size, *(_value(values.get(name)) for name in names)])
    return ["By group of patients:", _table(["Group", "Patients", *map(describe_metric, names)], rows)]


def _value(value: Any) -> str:
    return "–" if value is None else number(value)


def _ethics() -> list[str]:
    return [
        "The images are of people. Nothing in this card names one of them; groups of fewer than "
        f"{FEWEST_SHOWN} are not shown. The parameters of a network can hold traces of the images it was "
        "trained on: share them as the images may be shared.",
        "A model repeats what its labels hold, their errors and inequalities included.",
    ]


def _caveats(report: "Report", words: Mapping[str, str]) -> list[str]:
    lines = [_list([*map(_plain, report.notes), *_CAVEATS])]
    return [*lines, words["caveats"]] if "caveats" in words else lines


def _section(heading: str, paragraphs: Iterable[str]) -> str:
    return "\n\n".join([f"## {heading}", *paragraphs])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cells if n == 1 else map(_plain, cells))} |" for n, cells in enumerate(lines)
    )


def _plain(text: str) -> str:
    """Let a text stand for itself: neither Markdown nor HTML, and on one line."""
    one_line = " ".join(text.split())
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", escaped)
