"""Scores on images that a model knows: refused, or said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from medimg.data.leaks import OnLeak
from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from medimg.evaluate._protocols import Dataset, Model

__all__ = ["notes_on_seen"]

_VAL: Final = (
    "Validation data are among what was evaluated ({}): they chose the epoch or the calibration of the "
    "model, and score better by what that choice gained."
)
_TARGET: Final = (
    "The model was adapted to some of what was evaluated ({}), without the labels: the scores are not those "
    "on images that come later."
)
_UNKNOWN: Final = (
    "{:,} series that the model was trained on can't be told from others, as they were on no disk: make sure "
    "that none of them was evaluated."
)


def notes_on_seen(model: Model, dataset: Dataset, on_leak: OnLeak) -> tuple[str, ...]:
    """
    Say what of a data set a model has seen before.

    Parameters
    ----------
    model : TransferClassifier
        Or what stands for one, and has seen nothing.
    dataset : ImageDataset
        To be evaluated.
    on_leak : {"raise", "report"}
        Whether training images are an error.

    Returns
    -------
    tuple of str
        Sentences for the report.

    Raises
    ------
    LeakageError
        If the model was trained on any of it, and that is an error.
    DatasetError
        If `on_leak` is unknown.
    """
    if on_leak not in get_args(OnLeak):
        raise DatasetError(f'on_leak is "raise" or "report"; found {on_leak!r}')
    seen: Any = getattr(model, "images_seen", None)
    if seen is None:
        return ()
    from medimg.learn.seen import counted

    shared = seen.shared(dataset)
    notes = []
    if shared.any("train"):
        found = counted(shared, "train")
        if on_leak == "raise":
            raise LeakageError(
                f"the model was trained on {found} of the data to evaluate, and its scores would tell how "
                "well it remembers them: evaluate on a side of medimg.split(dataset) that it has not seen. "
                '(on_leak="report" scores it all the same, with a caution in the report.)'
            )
        notes.append(
            f"The model was trained on {found} of what was evaluated: the scores tell how well it remembers "
            "them, and nothing of how good it is."
        )
    if shared.any("val"):
        notes.append(_VAL.format(counted(shared, "val")))
    if shared.any("target"):
        notes.append(_TARGET.format(counted(shared, "target")))
    if seen.unknown:
        notes.append(_UNKNOWN.format(seen.unknown))
    return tuple(notes)
