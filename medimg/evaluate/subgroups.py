"""The metrics of groups of patients: by sex, age, scanner, site, or whatever else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import DatasetError
from medimg.evaluate.bootstrap import Estimate
from medimg.evaluate.grouping import UNKNOWN, GroupRule, groups_of
from medimg.evaluate.intervals import estimates
from medimg.evaluate.metrics import Support

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.evaluate.units import Units

__all__ = [
    "FEWEST_SHOWN",
    "FEW_PATIENTS",
    "FEW_POSITIVES",
    "Subgroups",
    "few_in_subgroups",
    "named_groups",
    "subgroup_table",
]

#: Names of rules, or rules by name.
Subgroups: TypeAlias = "str | Sequence[str] | Mapping[str, GroupRule]"

FEWEST_SHOWN: Final = 5
"""Groups of fewer patients are put together, and not shown if they still are so few."""
FEW_PATIENTS: Final = 30
FEW_POSITIVES: Final = 10
"""Below these, a note says so."""

OTHER: Final = f"other (fewer than {FEWEST_SHOWN} patients each)"
SEVERAL: Final = "several"
_LAST: Final = {SEVERAL: 1, UNKNOWN: 2, OTHER: 3}
_COLUMNS: Final = (
    "subgroup",
    "group",
    "n_patients",
    "n_units",
    "metric",
    "value",
    "low",
    "high",
    "dropped",
    "note",
)


def named_groups(dataset: Any, subgroups: Subgroups | None) -> dict[str, list[str]]:
    """
    Say which group of each subgroup each item is of.

    Parameters
    ----------
    dataset : ImageDataset
        The items.
    subgroups : str, sequence of str, mapping, or None
        See :func:`medimg.evaluate.grouping.groups_of`.

    Returns
    -------
    dict of str to list of str
        By name of the subgroup.

    Raises
    ------
    DatasetError
        See :func:`medimg.evaluate.grouping.groups_of`.
    """
    rules = {} if subgroups is None else _rules(subgroups)
    return {name: groups_of(dataset, name, rule) for name, rule in rules.items()}


def subgroup_table(
    groups: Mapping[str, Sequence[str]], units: Units, task: str, classes: tuple[str, ...], **settings: Any
) -> pd.DataFrame:
    """
    Score each group of each subgroup.

    Parameters
    ----------
    groups : mapping of str to sequence of str
        See :func:`named_groups`.
    units : Units
        What is scored. A unit whose items are of several groups is in a group "several".
    task : {"multiclass", "multilabel"}
        The task.
    classes : tuple of str
        Names of the classes.
    **settings
        Of :func:`medimg.evaluate.intervals.estimates`.

    Returns
    -------
    pandas.DataFrame
        See ``Report.subgroups``. Averages over classes run over those that occur in the group.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, of_item in groups.items():
        group = _groups_of_units(units, np.asarray(of_item, dtype=object))
        group = _without_small(group, units.patient)
        for label in sorted(set(group), key=lambda label: (_LAST.get(label, 0), label)):
            part = units.part(group == label)
            rows += [{"subgroup": name, "group": label} | row for row in _rows(part, classes, task, settings)]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"n_patients": "Int64", "n_units": "Int64"})


def few_in_subgroups(table: pd.DataFrame) -> list[str]:
    """
    Say which groups are too small to rely on.

    Parameters
    ----------
    table : pandas.DataFrame
        See :func:`subgroup_table`.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    noted = table[table["note"] != ""]
    names = dict.fromkeys(f"{s} {g}" for s, g in zip(noted["subgroup"], noted["group"], strict=True))
    if not names:
        return []
    return [
        f"Subgroups with fewer than {FEW_PATIENTS} patients, or fewer than {FEW_POSITIVES} of a class, can't "
        f"be relied on: {', '.join(names)}."
    ]


def _rules(subgroups: Subgroups) -> dict[str, GroupRule]:
    if isinstance(subgroups, str):
        return {subgroups: subgroups}
    if isinstance(subgroups, Mapping):
        rules = {str(name): rule for name, rule in subgroups.items()}
    elif isinstance(subgroups, Sequence) and all(isinstance(name, str) for name in subgroups):
        rules = {name: name for name in subgroups}
    else:
        raise DatasetError(
            'subgroups is a list of names, such as ["sex", "age"], or a mapping, such as {"sex": column}; '
            f"found {type(subgroups).__name__}."
        )
    if not rules:
        raise DatasetError('subgroups is empty; name one or more, such as ["sex", "age"], or pass None.')
    return rules


def _groups_of_units(units: Units, of_item: NDArray[np.object_]) -> NDArray[np.object_]:
    found: list[set[str]] = [set() for _ in range(len(units))]
    for unit, group in zip(units.item_unit.tolist(), of_item.tolist(), strict=True):
        if group != UNKNOWN:
            found[unit].add(group)
    names = [SEVERAL if len(groups) > 1 else next(iter(groups), UNKNOWN) for groups in found]
    return np.asarray(names, dtype=object)


def _without_small(group: NDArray[np.object_], patient: NDArray[np.int64]) -> NDArray[np.object_]:
    """Put groups of few patients together."""
    small = [label for label in set(group) if len(np.unique(patient[group == label])) < FEWEST_SHOWN]
    return np.where(np.isin(group.astype(str), small), OTHER, group).astype(object) if small else group


def _rows(
    part: Units, classes: tuple[str, ...], task: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    support = Support.of(part.truth, task, classes)
    found = estimates(part, support, **settings)
    hidden = part.n_patients < FEWEST_SHOWN
    sizes = {"n_patients": None if hidden else part.n_patients, "n_units": None if hidden else len(part)}
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    note = _note(part, classes)
    return [
        sizes | {"metric": name} | _cells(nothing if hidden else estimate) | {"note": note}
        for name, estimate in found.items()
        if "[" not in name
    ]


def _cells(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "dropped")}


def _note(part: Units, classes: tuple[str, ...]) -> str:
    if part.n_patients < FEWEST_SHOWN:
        return f"fewer than {FEWEST_SHOWN} patients: not shown"
    few = [
        name
        for k, name in enumerate(classes)
        if len(np.unique(part.patient[part.truth[:, k]])) < FEW_POSITIVES
    ]
    notes = [f"fewer than {FEW_PATIENTS} patients"] if part.n_patients < FEW_PATIENTS else []
    notes += [f"fewer than {FEW_POSITIVES} patients of {', '.join(few)}"] if few else []
    return "; ".join(notes)
