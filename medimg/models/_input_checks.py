"""Checks of input tensors and class names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medimg.errors import PreprocessError, TrainingError

__all__ = ["check_classes", "check_input", "checked_finite"]


def checked_finite(rows: Tensor, what: str = "embeddings") -> Tensor:
    """
    Return embeddings or logits (n, F), if all are numbers.

    Raises
    ------
    TrainingError
        It says how many.
    """
    bad = int((~rows.isfinite()).any(dim=1).sum())
    if bad:
        raise TrainingError(
            f"the {what} of {bad} of {len(rows)} pictures are not finite: the weights may be damaged or "
            "have diverged in training; load sound ones"
        )
    return rows


def check_input(x: Tensor, mask: Tensor | None, pool: str) -> None:
    """
    Refuse tensors that a classifier can't take.

    Raises
    ------
    PreprocessError
        It names the shape found and the one expected.
    """
    if x.ndim not in (4, 5) or x.shape[-3] != 3 or 0 in x.shape:
        raise PreprocessError(
            f"the model takes (B, 3, H, W) or (B, N, 3, H, W); found {tuple(x.shape)}. Make tensors with "
            "model.preprocess(source)"
        )
    if x.ndim == 5 and pool == "none":
        raise PreprocessError(
            f'a model with pool="none" takes single pictures (B, 3, H, W); found bags {tuple(x.shape)}. '
            'Use pool="mean", "max" or "attention", or a data set with unit="slice"'
        )
    if mask is None:
        return
    if x.ndim == 4 or mask.shape != x.shape[:2] or not bool(mask.any(dim=1).all()):
        raise PreprocessError(
            "a mask is (B, N) for bags (B, N, 3, H, W), with a slice in every bag; found "
            f"{tuple(mask.shape)} for {tuple(x.shape)}"
        )


def check_classes(classes: Sequence[str], task: str) -> tuple[str, ...]:
    """
    Return the names of the classes, if they are sound.

    Raises
    ------
    TrainingError
        If the task is unknown, a name stands twice, or there are too few.
    """
    if task not in ("multiclass", "multilabel"):
        raise TrainingError(f'task is "multiclass" or "multilabel"; found {task!r}')
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TrainingError(f"classes is a list of names, in the order of the outputs; found {classes!r}")
    if not all(isinstance(name, str) and name for name in classes):
        raise TrainingError(f"classes is a sequence of names; found {classes!r}")
    names = tuple(classes)
    least = 2 if task == "multiclass" else 1
    if len(names) < least or len(set(names)) < len(names):
        raise TrainingError(
            f"a {task} model needs at least {least} different class names; found {names!r}"
            '. For one finding that is there or not, name both, such as ("normal", "pneumonia")'
        )
    return names
