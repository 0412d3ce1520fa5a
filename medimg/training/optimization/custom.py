"""Optimizers, schedules, losses and metrics of the user's own in fine-tuning."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
import types
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from medimg.core.content_hash import content_hash, describe_callable, json_text, name_callable
from medimg.errors import MedimgError, MedimgWarning, TrainingError
from medimg.models.digest import tensors_sha256

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

__all__ = [
    "OWN",
    "CustomLoss",
    "CustomParts",
    "LossFunction",
    "MetricFunction",
    "OptimizerFactory",
    "ScheduleFactory",
    "identify_parts",
    "loss_state",
    "naming",
    "restore_loss",
    "run_step",
]

#: From parameter groups, dicts with "params", "lr" and "weight_decay", to an optimizer.
OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
#: From an optimizer, and the number of steps of a phase if it takes that, to a schedule.
ScheduleFactory: TypeAlias = Callable[..., LRScheduler]
#: From logits (B, K) and labels to losses (B,), (B, K) or their mean.
LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: From labels (n,) or (n, K) and probabilities (n, K) to a score; higher is better.
MetricFunction: TypeAlias = Callable[["NDArray[Any]", "NDArray[Any]"], float]

#: Value of a setting of the configuration that a callable stands for.
OWN: Final = "own"
_GROUP_SETTINGS: Final = {
    "lr": "lr, backbone_lr_scale and layer_decay",
    "weight_decay": "weight_decay",
    "params": "nothing",
}
#: Names of the number of steps in schedules of torch and other libraries.
_STEPS: Final = ("steps", "total_steps", "num_steps", "T_max", "total_iters", "num_training_steps")
_METRIC_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_DIGITS: Final = 16


class CustomLoss(nn.Module):
    """A loss function of the user, or a copy of a module, as losses (B,) of samples."""

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        own = _copy_loss(function)
        if isinstance(own, nn.Module) and getattr(own, "reduction", "none") != "none":
            # samples are averaged once, over all processes
            own.reduction = "none"  # type: ignore[assignment]  # of the user's class
        self.function = own
        #: Modules among the arguments of a partial function; they go to the device, too.
        self.parts = nn.ModuleList(() if isinstance(own, nn.Module) else _find_modules(own))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses (B,) of logits (B, K), computed in float32; of a mean, the mean for each."""
        what = f"logits {tuple(logits.shape)} {logits.dtype} and labels {tuple(labels.shape)} {labels.dtype}"
        found = _call("loss", self.function, logits.float(), labels, on=what)
        if not isinstance(found, Tensor) or not found.is_floating_point() or not _is_loss(found, logits):
            shape = (
                f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise TrainingError(
                f"the loss returned {shape} for logits {tuple(logits.shape)}; expected a floating-point "
                f"tensor of shape ({len(logits)},), {tuple(logits.shape)}, or a single mean"
            )
        if found.ndim == 2:
            return found.mean(dim=1)
        return found.expand(len(logits)) if found.ndim == 0 else found


def _find_modules(value: object) -> list[nn.Module]:
    """Return a module itself, or those that a partial function holds."""
    if isinstance(value, nn.Module):
        return [value]
    if not isinstance(value, functools.partial):
        return []
    return [
        one for part in (value.func, *value.args, *value.keywords.values()) for one in _find_modules(part)
    ]


def _copy_loss(function: LossFunction) -> LossFunction:
    """Return a copy of a loss with modules, whose state is that of one training; the user's object stays."""
    if not _find_modules(function):
        return function
    try:
        return copy.deepcopy(function)
    except Exception as error:  # whatever its parts raise
        raise TrainingError(
            f"loss={name_callable(function)} can't be copied, and every training has a copy of its own "
            f"({type(error).__name__}: {error}): keep files, loggers and tensors with a gradient out of it"
        ) from error


def loss_state(loss: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a loss that training may change; warn of what else it keeps."""
    state = loss.state_dict()
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(found) < len(state):
        warnings.warn(
            f"the extra state of the loss {_name_loss(loss)} is no tensor, and can't be saved: after resume= "
            "it starts from its initial state",
            MedimgWarning,
            stacklevel=2,
        )
    return found


def restore_loss(loss: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a loss the state of a resume file; one that was written before may have none."""
    if not state:
        return
    own = loss.state_dict()
    try:
        loss.load_state_dict({**own, **state})
    except RuntimeError as error:
        found = " ".join(str(error).split())
        raise TrainingError(
            f"the resume file has another state of the loss {_name_loss(loss)} ({found}): register all its "
            "buffers in __init__, or pass overwrite=True instead of resume to start again"
        ) from error


def _name_loss(loss: nn.Module) -> str:
    return name_callable(loss.function if isinstance(loss, CustomLoss) else loss)


def _is_loss(found: Tensor, logits: Tensor) -> bool:
    return found.shape in ((), logits.shape[:1], logits.shape)


@dataclass(frozen=True, slots=True, eq=False)
class CustomParts:
    """What a user passes instead of built-in settings, checked; None for what is built in."""

    optimizer: OptimizerFactory | None = None
    schedule: ScheduleFactory | None = None
    loss: CustomLoss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)
    #: Names by which the history and the checkpoint record them.
    names: Mapping[str, Any] = field(default_factory=dict)
    #: What identifies them in a resume file.
    identity: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, *, optimizer: Any, schedule: Any, loss: Any, metrics: Any, taken: Collection[str]
    ) -> CustomParts:
        """
        Check the arguments of fine_tune; `schedule` is None if it is a built-in one.

        `taken` are the names of built-in scores.
        """
        if optimizer is not None:
            _check_optimizer(optimizer)
        if schedule is not None:
            _check_schedule(schedule)
        if loss is not None:
            _check_loss(loss)
        scores = _check_metrics(metrics, taken)
        given = {"optimizer": optimizer, "schedule": schedule, "loss": loss}
        given = {name: value for name, value in given.items() if value is not None}
        names: dict[str, Any] = {name: name_callable(value) for name, value in given.items()}
        identity: dict[str, Any] = {name: _identify(value) for name, value in given.items()}
        if scores:
            names["metrics"] = {name: name_callable(value) for name, value in scores.items()}
            identity["metrics"] = {name: _identify(value) for name, value in scores.items()}
        return cls(optimizer, schedule, None if loss is None else CustomLoss(loss), scores, names, identity)

    def check_settings(self, *, balance: object, label_smoothing: float, adapts: bool) -> None:
        """Raise TrainingError if a setting of the built-in loss would have no effect."""
        if self.loss is None:
            return
        if balance == "loss":
            raise TrainingError(
                'balance="loss" (the default) weights the classes of the built-in loss only, and loss= '
                'replaces it: pass balance=None, or balance="sampler"'
            )
        if label_smoothing:
            raise TrainingError(
                f"label_smoothing={label_smoothing:g} is that of the built-in loss, and loss= replaces it: "
                "leave it out, and smooth the labels in your loss"
            )
        if adapts:
            raise TrainingError(
                "adapt= weights the built-in loss of each sample, and loss= replaces it: pass one of them"
            )

    def check_loss(self, labels: NDArray[Any], outputs: int, device: torch.device) -> None:
        """Raise TrainingError if the loss fails on logits of zeros and the first labels."""
        if self.loss is None:
            return
        first = torch.from_numpy(np.array(labels[:2])).to(device)
        logits = torch.zeros(len(first), outputs, device=device, requires_grad=True)
        # a copy: a module may count its calls
        loss = copy.deepcopy(self.loss) if _find_modules(self.loss.function) else self.loss
        found = loss.to(device)(logits, first)
        if not found.requires_grad:
            raise TrainingError(
                f"the loss {self.names['loss']} has no gradient with respect to the logits: compute it by "
                "differentiable functions of torch"
            )

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the user's optimizer of parameter groups, checked to hold them at their rates."""
        assert self.optimizer is not None
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        own = [dict(group) for group in groups]
        found = _call("optimizer", self.optimizer, own, on=f"{len(own)} parameter groups")
        if not isinstance(found, torch.optim.Optimizer):
            raise TrainingError(
                f"optimizer= returned a {type(found).__name__}, expected a torch.optim.Optimizer: pass a "
                "class, such as torch.optim.SGD, or functools.partial(torch.optim.SGD, momentum=0.9)"
            )
        held = {id(p): group.get("lr") for group in found.param_groups for p in group["params"]}
        if held.keys() != rates.keys():
            raise TrainingError(
                f"the optimizer {type(found).__name__} has {len(held)} parameters, expected the "
                f"{len(rates)} trainable ones: pass it all groups that optimizer= is called with"
            )
        if held != rates:
            raise TrainingError(
                f"the optimizer {type(found).__name__} has other learning rates than its groups: leave lr to "
                "the groups, and set lr, backbone_lr_scale and layer_decay of fine_tune"
            )
        return found

    def make_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        """Return the user's schedule of an optimizer and a number of steps."""
        assert self.schedule is not None
        wanted = _find_steps(self.schedule)
        given = () if wanted is None else (steps,)
        found = _call("schedule", self.schedule, optimizer, *given, on="its optimizer")
        if not isinstance(found, LRScheduler) or isinstance(found, ReduceLROnPlateau):
            raise TrainingError(
                f"schedule= returned a {type(found).__name__}, expected a scheduler of "
                "torch.optim.lr_scheduler that is stepped after every step, and not by a score"
            )
        if found.optimizer is not optimizer:
            raise TrainingError(
                "schedule= returned a scheduler of another optimizer than the one it was given"
            )
        return found

    def score(self, labels: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, float | None]:
        """Return the user's scores by the names of their columns; None for what is not finite."""
        found = {
            f"val_{name}": _score(name, one, labels, probabilities) for name, one in self.metrics.items()
        }
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def check_metrics(self, labels: NDArray[Any], probabilities: NDArray[Any]) -> None:
        """Raise TrainingError if a metric fails on validation labels and equal probabilities."""
        with warnings.catch_warnings():
            # scores of equal probabilities may be undefined
            warnings.simplefilter("ignore")
            self.score(labels, probabilities)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the history that the metrics add."""
        return tuple(f"val_{name}" for name in self.metrics)


def identify_parts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the user's own parts among arguments of fine_tune, by their names."""
    several = {f"metrics {name}": value for name, value in (arguments.get("metrics") or {}).items()}
    several |= {name: arguments.get(name) for name in ("optimizer", "schedule", "loss")}
    return {name: _identify(value) for name, value in several.items() if callable(value)}


def _check_optimizer(value: object) -> None:
    if not callable(value) or isinstance(value, torch.optim.Optimizer):
        found = "an optimizer of parameters" if isinstance(value, torch.optim.Optimizer) else _found(value)
        raise TrainingError(
            f"optimizer must be a class such as torch.optim.SGD, or a function from parameter groups to an "
            f"optimizer; found {found}"
        )
    _refuse_keywords("optimizer", value, _GROUP_SETTINGS)


def _check_schedule(value: object) -> None:
    if not callable(value):
        raise TrainingError(
            "schedule must be 'one_cycle', 'cosine', 'constant', or a function from an optimizer (and a "
            f"number of steps) to a scheduler; found {_found(value)}"
        )
    if _unwrap(value) is ReduceLROnPlateau:
        raise TrainingError(
            "schedule=ReduceLROnPlateau is stepped by a score, and schedules here after every step: use "
            "another schedule, and patience= to stop"
        )
    _refuse_keywords("schedule", value, {"optimizer": "nothing"})
    _find_steps(value)


def _check_loss(value: object) -> None:
    if isinstance(value, type) or not callable(value):
        raise TrainingError(
            "loss must be a function of logits and labels, or a module such as torch.nn.CrossEntropyLoss(); "
            f"found {_found(value)}"
        )
    if any(p.requires_grad for module in _find_modules(value) for p in module.parameters()):
        raise TrainingError(
            f"the loss {name_callable(value)} has trainable parameters, which no optimizer would train: "
            "call loss.requires_grad_(False)"
        )


def _check_metrics(value: object, taken: Collection[str]) -> dict[str, MetricFunction]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TrainingError(
            'metrics must be a mapping of functions by name, such as {"kappa": kappa}; found '
            f"{_found(value)}"
        )
    for name, metric in value.items():
        if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
            raise TrainingError(
                f"names of metrics must be lower case letters, digits and underscores; found {name!r}"
            )
        if f"val_{name}" in taken:
            raise TrainingError(f"the metric {name!r} has the name of a built-in one: choose another name")
        if isinstance(metric, type) or not callable(metric):
            raise TrainingError(
                f"the metric {name!r} must be a function of labels and probabilities; found {_found(metric)}"
            )
    return dict(value)


def _find_steps(schedule: Any) -> str | None:
    """Return the name of the parameter that takes the number of steps; None if there is none."""
    try:
        parameters = list(inspect.signature(schedule).parameters.values())[1:]
    except (TypeError, ValueError):
        return None  # built in C
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    first = positional[0].name if positional else None
    is_plain = isinstance(schedule, types.FunctionType | types.MethodType)
    if not required:
        return first if first in _STEPS and is_plain else None
    if required == [first] and (first in _STEPS or is_plain):
        return first
    raise TrainingError(
        f"schedule={name_callable(schedule)} also needs {', '.join(required)}: give them by "
        "functools.partial, or pass a function of an optimizer and a number of steps"
    )


def _refuse_keywords(argument: str, value: object, names: Mapping[str, str]) -> None:
    """Refuse a partial function with a keyword that would have no effect, or that is given here."""
    if not isinstance(value, functools.partial):
        return
    for name in value.keywords:
        if name in names:
            raise TrainingError(
                f"{argument}= sets {name!r}, which its parameter groups have: set {names[name]} of fine_tune"
                if names[name] != "nothing"
                else f"{argument}= sets {name!r}, which fine_tune gives: leave it out"
            )


def _call(argument: str, function: Callable[..., object], *given: Any, on: str) -> object:
    """Call a function of the user; TrainingError says which one fails, and on what."""
    with naming(argument, function, on=on):
        return function(*given)


@contextmanager
def naming(argument: str, part: object, *, on: str) -> Iterator[None]:
    """Raise errors of the user's own code as TrainingError, which says what fails, and on what."""
    try:
        yield
    except (MedimgError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TrainingError(
            f"{argument}={name_callable(part)} fails on {on}: {type(error).__name__}: {error}"
        ) from error


def run_step(
    step: Callable[[Callable[[], Any]], Any],
    closure: Callable[[], Any],
    optimizer: OptimizerFactory | None,
    *,
    on: str,
) -> None:
    """Step; an error of the user's optimizer is named, one of the batch in the closure is not."""
    inside: list[BaseException] = []
    called = False

    def watched() -> Any:
        nonlocal called
        called = True
        try:
            return closure()
        except BaseException as error:
            inside.append(error)
            raise

    try:
        step(watched)
    except Exception:
        if optimizer is None or inside:
            raise
        with naming("optimizer", optimizer, on=on):
            raise
    if not called:
        raise TrainingError(
            f"optimizer={name_callable(optimizer)} does not call the closure that step(closure) is given, "
            "which computes the gradients: begin with `loss = closure()` under torch.enable_grad(), as the "
            "optimizers of torch do"
        )


def _score(name: str, metric: MetricFunction, labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Return the score of a metric, which gets arrays of its own."""
    try:
        found: Any = metric(labels.copy(), probabilities.copy())
        if not isinstance(found, str | bytes):
            return float(found)
    except MedimgError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the metric {name!r} fails on labels {labels.shape} and probabilities {probabilities.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    raise TrainingError(f"the metric {name!r} returned a {type(found).__name__}, expected a number")


def _unwrap(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _found(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _identify(value: Any) -> str:
    """Return a name and a digest of what a callable computes, as far as its code and settings tell."""
    facts: list[Any] = [describe_callable(value)]
    for module in _find_modules(value):
        tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}
        plain = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        scalars = {
            n: v for n, v in vars(module).items() if v is None or isinstance(v, bool | int | float | str)
        }
        facts += [tensors_sha256(plain), sorted(map(repr, scalars.items()))]
    return f"{name_callable(value)} {content_hash(json_text(facts))[:_DIGITS]}"
