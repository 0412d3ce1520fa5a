"""Checks of input tensors, network outputs, class names and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from medimg._validation import check_choice, printable
from medimg.errors import PreprocessError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medimg.errors import MedimgError

__all__ = [
    "POOLS",
    "TASKS",
    "Pool",
    "Task",
    "check_classes",
    "check_finite",
    "check_floating",
    "check_input",
    "check_whole",
]

Task: TypeAlias = Literal["multiclass", "multilabel"]
Pool: TypeAlias = Literal["none", "mean", "max", "attention"]

_QUANTIZED: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
#: Where torch's classes for divided modules are.
_DIVIDED: Final = "torch.distributed.fsdp"

TASKS: Final[tuple[Task, ...]] = get_args(Task)
POOLS: Final[tuple[Pool, ...]] = get_args(Pool)


def check_floating(model: nn.Module, *, error: type[MedimgError] = TrainingError) -> None:
    """Refuse a classifier with layers of integers, such as ``quantize_dynamic`` makes."""
    found = [name for name, layer in model.named_modules() if type(layer).__module__.startswith(_QUANTIZED)]
    if found:
        raise error(
            f"the model has {len(found)} quantized layers ({', '.join(map(printable, found[:3]))}), and a "
            "TransferClassifier predicts, is trained and saved in floating-point numbers only: pass the one "
            "that was quantized; medimg.evaluate and medimg.compare_models also take a function of images"
        )


def check_whole(model: nn.Module) -> None:
    """Refuse to save a model of which this process has a share, as in a callback of such a training."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    if any(kind.__module__.startswith(_DIVIDED) for kind in kinds):
        raise TrainingError(
            'the model is divided between processes by strategy="fsdp", and this one has a share of each '
            "parameter: save the model that was passed to fine_tune after training, pass output= for the "
            'best and the last one, or use strategy="ddp"'
        )


def check_finite(rows: Tensor, name: str = "embeddings") -> Tensor:
    """Return embeddings or logits (n, F), all of which must be finite."""
    bad = int((~rows.isfinite()).any(dim=1).sum())
    if bad:
        raise TrainingError(
            f"the {name} of {bad} of {len(rows)} images are not finite: the weights may be damaged, or "
            "training may have diverged; load other weights"
        )
    return rows


def check_input(x: Tensor, mask: Tensor | None, pool: str, channels: int = 3) -> None:
    """Refuse an input x, or a mask (B, N), of a shape that a classifier does not take."""
    if x.ndim not in (4, 5) or x.shape[-3] != channels or 0 in x.shape:
        raise PreprocessError(
            f"the model takes (B, {channels}, H, W) or (B, N, {channels}, H, W); found {tuple(x.shape)}; "
            "make tensors with model.preprocess(source)"
        )
    if x.ndim == 5 and pool == "none":
        raise PreprocessError(
            f'a model with pool="none" takes single images (B, {channels}, H, W); found bags '
            f'{tuple(x.shape)}; use pool="mean", "max" or "attention", or a dataset with unit="image"'
        )
    if mask is None:
        return
    if x.ndim == 4 or mask.shape != x.shape[:2] or not bool(mask.any(dim=1).all()):
        raise PreprocessError(
            f"a mask must be (B, N) for bags (B, N, {channels}, H, W), with at least one slice per bag; "
            f"found {tuple(mask.shape)} for {tuple(x.shape)}"
        )


def check_classes(classes: Sequence[str], task: str) -> tuple[str, ...]:
    """Return the class names of a task; they must be unique, and at least two (one for "multilabel")."""
    check_choice("task", task, TASKS)
    is_list = isinstance(classes, Sequence) and not isinstance(classes, str)
    if not is_list or not all(isinstance(name, str) and name for name in classes):
        raise TrainingError(
            f"classes must be a list of names, in the order of the outputs; found {classes!r}"
        )
    names = tuple(classes)
    least = 2 if task == "multiclass" else 1
    if len(names) < least or len(set(names)) < len(names):
        raise TrainingError(
            f"a {task} model needs at least {least} different class names; found {names!r}; for one finding "
            'that is present or absent, name both, such as ("normal", "pneumonia")'
        )
    return names
