"""A torch module or function of others as a model to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from torch import nn

from medimg._validation import check_batch_size, check_choice, check_processes
from medimg.core.progress import Progress, progress_bar
from medimg.data.dataloader import make_evaluation_loader
from medimg.errors import DatasetError, TrainingError, also
from medimg.evaluation._prediction_arrays import name_classes
from medimg.models.module_mode import module_mode
from medimg.models.probabilities import probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.protocols import LabeledDataset, Recipe

__all__ = ["ExternalModel", "Outputs", "is_external"]

#: What a model returns.
Outputs: TypeAlias = Literal["logits", "probabilities"]

_MEMBERS: Final = ("classes", "task", "preprocess", "predict_proba")


def is_external(model: object) -> bool:
    """Whether a model is a module or function; DatasetError if it is neither that nor a classifier."""
    if isinstance(model, type) or (not callable(model) and not _is_classifier(model)):
        raise also(DatasetError, TypeError)(
            f"the model is a {type(model).__name__}; expected a TransferClassifier, a torch module or a "
            "function of a batch of images: medimg.score takes the probabilities of any other model"
        )
    return not _is_classifier(model)


def _is_classifier(model: object) -> bool:
    return all(hasattr(model, member) for member in _MEMBERS)


@dataclass(frozen=True, eq=False, kw_only=True)
class ExternalModel:
    """A module or function that takes batches (B, C, H, W), with what it does not say itself."""

    function: Callable[[Tensor], Any]
    classes: tuple[str, ...]
    task: str
    preprocess: Recipe
    outputs: Outputs
    device: torch.device | None = None
    weights_name: None = None

    @classmethod
    def make(
        cls,
        model: Any,
        *,
        classes: Sequence[object] | None,
        outputs: object,
        task: str,
        preprocess: Recipe,
        device: Any,
    ) -> ExternalModel:
        """Check what a module or function needs; DatasetError if its classes or outputs are not given."""
        if classes is None or outputs is None:
            raise DatasetError(
                f"the model is a {type(model).__name__}, which does not say what it returns; expected "
                'classes=, the names in the order of its outputs, and outputs="logits" or "probabilities"'
            )
        names = name_classes(classes)
        check_choice("outputs", outputs, get_args(Outputs), error=DatasetError)
        try:
            found = None if device is None else torch.device(device)
        except (TypeError, RuntimeError):
            raise DatasetError(f'device must be such as "cpu" or "cuda:0"; found {device!r}') from None
        return cls(
            function=model,
            classes=names,
            task=task,
            preprocess=preprocess,
            outputs=cast("Outputs", outputs),
            device=found,
        )

    @property
    def backbone_name(self) -> str:
        """Name of the module's class or of the function."""
        named = getattr(self.function, "__name__", None)
        return named if isinstance(named, str) else type(self.function).__name__

    @property
    def module(self) -> nn.Module | None:
        """The module, if it is one."""
        return self.function if isinstance(self.function, nn.Module) else None

    def predict_proba(
        self, dataset: Any, *, batch_size: int = 32, workers: int | None = None, progress: Progress = "auto"
    ) -> NDArray[np.float64]:
        """Return the probabilities (n, K) of every item; modes and device of a module are restored."""
        data: LabeledDataset = dataset
        # bags differ in length
        size = 1 if data.unit == "series" else check_batch_size(batch_size)
        loader = make_evaluation_loader(data, batch_size=size, workers=check_processes(workers))
        # not inference_mode, whose tensors a module might keep and then could not be trained with
        with self._in_evaluation() as device, torch.no_grad():
            batches = progress_bar(loader, desc="predicting", unit="batch", progress=progress)
            rows = [self._predict_batch(batch.images.to(device)) for batch in batches]
        return np.concatenate(rows)

    @contextmanager
    def _in_evaluation(self) -> Iterator[torch.device]:
        module = self.module
        tensors = [] if module is None else [*module.parameters(), *module.buffers()]
        home = tensors[0].device if tensors else torch.device("cpu")
        device = self.device or home
        with nullcontext() if module is None else module_mode(module, training=False):
            try:
                if module is not None and device != home:
                    module.to(device)
                yield device
            finally:
                if module is not None and device != home:
                    module.to(home)

    def _predict_batch(self, images: Tensor) -> NDArray[np.float64]:
        """Return probabilities (B, K) of a batch."""
        found, count = self.function(images), len(images)
        if not isinstance(found, torch.Tensor | np.ndarray):
            raise TrainingError(
                f"the model returned a {type(found).__name__}; expected a tensor or array (B, K): pass a "
                "function that returns it, such as lambda images: model(images).logits"
            )
        is_float = found.is_floating_point() if isinstance(found, torch.Tensor) else found.dtype.kind == "f"
        if not is_float:
            raise TrainingError(
                f"the model returned values of type {found.dtype}; expected {self.outputs} as floats: return "
                "what classes are chosen by, not the classes"
            )
        tensor = torch.as_tensor(found).detach().cpu().double()
        classes, is_single = len(self.classes), self.task == "multiclass" and len(self.classes) == 2
        if is_single and tensor.shape in {(count,), (count, 1)}:
            second = tensor.reshape(-1).sigmoid() if self.outputs == "logits" else tensor.reshape(-1)
            return np.stack([1 - second.numpy(), second.numpy()], axis=1)
        if tensor.shape != (count, classes):
            raise TrainingError(
                f"the model returned the shape {tuple(tensor.shape)} for {count} images; expected "
                f"{(count, classes)}, one column for each class"
                + (f", or {(count,)} or {(count, 1)} for the second of two" if is_single else "")
            )
        return probabilities(tensor, self.task) if self.outputs == "logits" else tensor.numpy()
