"""What a data set says of its items."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.core.report import Skipped
    from medimg.data.items import Item, Task, Unit
    from medimg.data.sources import LabeledSeries
    from medimg.io.series import Series

__all__ = ["ItemFacts"]


class ItemFacts:
    """Facts of each item, and their sums: the part of a data set that looks at no picture."""

    classes: tuple[str, ...]
    task: Task
    unit: Unit
    skipped: tuple[Skipped, ...]
    _items: Sequence[Item]
    _labeled: Sequence[LabeledSeries]
    _targets: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def n_unknown_patients(self) -> int:
        """How many of the series have no known patient, and count as one of their own."""
        return sum(not self._labeled[n].patient for n in {item.source for item in self._items})

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Of each item: (n,) int64, or (n, K) float32 for multilabel."""
        return self._targets[[item.source for item in self._items]]

    @property
    def patients(self) -> tuple[str, ...]:
        """Of each item; for grouping, not for showing. An image without one counts as its own patient."""
        names = [item.patient or f"unknown: {item.series.uid}" for item in self._labeled]
        return tuple(names[item.source] for item in self._items)

    @property
    def file_patients(self) -> tuple[str, ...]:
        """Of each item: the Patient ID of its file where that counts beside the table; for grouping only."""
        return tuple(self._labeled[item.source].file_patient for item in self._items)

    @property
    def series(self) -> tuple[Series, ...]:
        """Of each item: where it comes from."""
        return tuple(self._labeled[item.source].series for item in self._items)

    @property
    def pictures(self) -> tuple[int | None, ...]:
        """Of each item: which of the pictures that the recipe makes of its series; None for all of them."""
        return tuple(item.picture for item in self._items)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of each item: "CT", "MR", …; "" where the file does not say."""
        return tuple(series.modality for series in self.series)

    @property
    def domains(self) -> tuple[str, ...]:
        """Of each item: the site or scanner that the table names; "" where it names none."""
        return tuple(self._labeled[item.source].domain for item in self._items)

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Of each item."""
        return tuple(self._labeled[item.source].series.uid for item in self._items)

    @property
    def sources(self) -> tuple[str, ...]:
        """Of each item: the first file of its series."""
        return tuple(self._labeled[item.source].series.path for item in self._items)

    def class_counts(self) -> dict[str, int]:
        """Return how many items each class has."""
        labels = self.labels
        if self.task == "multilabel":
            return {name: int(n) for name, n in zip(self.classes, np.sum(labels, axis=0), strict=True)}
        counts = Counter(int(n) for n in labels)
        return {name: counts[n] for n, name in enumerate(self.classes)}

    def summary(self) -> str:
        """Return what is in the data set, in one line, without a word on who."""
        series = len({item.source for item in self._items})
        counts = ", ".join(f"{name} {n}" for name, n in self.class_counts().items())
        kind = "slices" if self.unit == "slice" else "series"
        text = f"{len(self)} {kind} from {series} series of {len(set(self.patients))} patients ({counts})"
        return f"{text}; {len(self.skipped)} files skipped" if self.skipped else text
