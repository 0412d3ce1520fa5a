"""Views of images for test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from medimg._validation import check_whole_number, did_you_mean
from medimg.data.augmentation.library_transforms import check_shape, is_library_transform
from medimg.data.augmentation.random_scan import make_augmentation
from medimg.errors import MedimgError, TrainingError, also

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = ["View", "ViewChoice", "make_views"]

#: A function of normalized images (n, C, H, W).
View: TypeAlias = Callable[[Tensor], Tensor]

#: Values of ``tta=``.
ViewChoice: TypeAlias = (
    int | Sequence[Literal["hflip", "vflip", "rotate180"] | Callable[[Tensor], Tensor]] | None
)

_FLIPS: Final[dict[str, tuple[int, ...]]] = {"hflip": (-1,), "vflip": (-2,), "rotate180": (-2, -1)}


def make_views(choice: Any, model: TransferClassifier) -> tuple[View, ...]:
    """
    Return the views of images whose probabilities are averaged, of which the first is the images themselves.

    A view changes every image in the same way, so that a prediction depends neither on the batch nor on the
    order.

    Examples
    --------
    >>> from medimg import TransferClassifier
    >>> model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None)
    >>> [view(torch.arange(4).view(1, 1, 2, 2)).flatten().tolist() for view in make_views(["hflip"], model)]
    [[0, 1, 2, 3], [1, 0, 3, 2]]
    """
    if choice is None:
        return (_same,)
    if isinstance(choice, int) and not isinstance(choice, bool):
        return (_same, *_training_views(check_whole_number("tta", choice, least=1), model))
    if isinstance(choice, str | bytes) or not isinstance(choice, Sequence):
        raise also(TrainingError, TypeError)(
            "tta must be a number of views, a list of views such as ['hflip'], or None; found "
            + (repr(choice) if isinstance(choice, str) else f"a {type(choice).__name__}")
        )
    if not choice:
        raise TrainingError("tta is empty; expected at least one view, or None")
    return (_same, *(_named_view(one, model) for one in choice))


def _same(images: Tensor) -> Tensor:
    return images


def _named_view(choice: Any, model: TransferClassifier) -> View:
    if isinstance(choice, str) and choice in _FLIPS:
        return lambda images: images.flip(_FLIPS[choice])
    if is_library_transform(choice):
        return _each_alone(make_augmentation(choice, model.preprocess), 0)
    if callable(choice):
        return partial(_apply_function, choice)
    raise TrainingError(
        f"tta has {choice!r}; expected {', '.join(map(repr, _FLIPS))}, or a function of normalized images "
        f"(n, C, H, W){did_you_mean(choice, _FLIPS)}"
    )


def _apply_function(function: View, images: Tensor) -> Tensor:
    """Return a view by the user's function, which gets a copy: it may change its argument in place."""
    try:
        found = function(images.clone())
    except (MedimgError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TrainingError(
            f"a function of tta= fails on images of shape {tuple(images.shape)}: {type(error).__name__}: "
            f"{error}"
        ) from error
    return check_shape(found, images)


def _training_views(count: int, model: TransferClassifier) -> list[View]:
    """Return views by the augmentation of the training."""
    members = getattr(model, "members", (model,))
    used = {(one.training_summary or {}).get("augment") for one in members}
    choice = used.pop() if len(used) == 1 else None
    if not isinstance(choice, str) or choice == "own":
        why = {
            "own": "was trained with a function of your own as augmentation: pass it, as tta=[function]",
            None: "was trained without augmentation, or with several",
        }.get(choice, "has an unknown augmentation")
        raise TrainingError(
            f"tta={count} takes views by the augmentation of the training, and the model {why}; or name "
            'views that do not change the class, such as tta=["hflip"]'
        )
    ranges = model.training_ranges
    modalities = ranges.modalities if ranges is not None and ranges.modalities else ("",)
    augment = make_augmentation(choice, model.preprocess, modalities)  # type: ignore[arg-type]  # of a file
    return [_drawn_view(augment, number) for number in range(count)]


def _each_alone(transform: Any, number: int) -> View:
    """Return a view by a library's transform, whose random numbers depend on the shape it is given."""

    def view(images: Tensor) -> Tensor:
        seeds = (torch.Generator().manual_seed(number) for _ in images)
        return torch.cat([transform(one[None], seed) for one, seed in zip(images, seeds, strict=True)])

    return view


def _drawn_view(augment: Any, number: int) -> View:
    def view(images: Tensor) -> Tensor:
        # as slices of one series, which change alike
        changed: Tensor = augment(images[None], torch.Generator().manual_seed(number))[0]
        return changed

    return view
