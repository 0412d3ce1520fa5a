"""Choice between methods of adaptation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medimg._validation import check_number
from medimg.adapt.adabn import AdaBN
from medimg.adapt.base import Adaptation, Images
from medimg.adapt.dann import DANN
from medimg.adapt.discrepancy import CORAL, MMD
from medimg.adapt.multi_source import MultiSource
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["Auto"]


@dataclass(frozen=True, repr=False, eq=False)
class Auto:
    """
    Choice between methods of adaptation, without labels of the target.

    A model is trained without adaptation and with each candidate, from the same weights and for the same
    epochs, which takes as many times longer. Of those whose AUROC on the validation data of the source is at
    most `margin` below that without adaptation, the model with the highest mutual information of images and
    predicted classes on the target (:func:`medimg.adapt.mutual_information`) is kept; this can be the one
    without adaptation. It is that one, with a warning, if the target has fewer than 10 patients, or if the
    95 % interval of the difference, resampling these, includes 0. The choice can be wrong: it is made without
    labels of the target.

    Parameters
    ----------
    target : ImageDataset
        Images of the target domain; their labels are not used.
    candidates : sequence of Adaptation, optional
        Methods to choose from; by default CORAL, MMD and DANN, MultiSource if the training data are of
        several domains ("column"), and AdaBN if the network has batch normalization.
    margin : float
        Largest loss of AUROC on the source, 0 to 1.

    Raises
    ------
    TrainingError
        If a setting is invalid.

    Examples
    --------
    >>> import medimg
    >>> target = [None, None]
    >>> medimg.adapt.Auto(target, candidates=[medimg.adapt.MMD(target)])
    Auto(target_items=2, candidates=['MMD'], margin=0.02)
    """

    target: Images
    candidates: Sequence[Adaptation] | None = None
    margin: float = 0.02

    def __post_init__(self) -> None:
        check_number("margin", self.margin, least=0, most=1)
        given = self.candidates
        if given is None:
            return
        if not isinstance(given, list | tuple) or not given:
            raise TrainingError(
                "candidates must be a list of methods of medimg.adapt, such as "
                f"[medimg.adapt.MMD(target)]; found {type(given).__name__}"
            )
        wrong = [one for one in given if not isinstance(one, Adaptation)]
        if wrong:
            raise TrainingError(
                "candidates must be methods of medimg.adapt, such as medimg.adapt.MMD(target); found "
                f"{type(wrong[0]).__name__}"
            )
        object.__setattr__(self, "candidates", tuple(given))

    def list_methods(self, model: nn.Module, train: Any) -> dict[str, Adaptation | None]:
        """
        Return the methods by name; "source_only", which is None, comes first.

        Parameters
        ----------
        model : nn.Module
            Network to train.
        train : ImageDataset
            Training data.

        Returns
        -------
        dict of str to Adaptation or None
            Names are those of the classes in lower case, numbered if they repeat.
        """
        several = self.candidates if self.candidates is not None else self._list_defaults(model, train)
        found: dict[str, Adaptation | None] = {"source_only": None}
        for one in several:
            name = type(one).__name__.lower()
            count = sum(known.rstrip("0123456789_") == name for known in found)
            found[f"{name}_{count + 1}" if count else name] = one
        return found

    def _list_defaults(self, model: nn.Module, train: Any) -> list[Adaptation]:
        target = self.target
        several: list[Adaptation] = [CORAL(target), MMD(target), DANN(target)]
        if len(set(getattr(train, "domains", ())) - {""}) > 1:
            several.append(MultiSource(target, domain="column"))
        if AdaBN.suits(model):
            several.append(AdaBN(target))
        return several

    def settings(self) -> dict[str, Any]:
        """
        Return name and settings, also those of the candidates, without information on the images.

        Returns
        -------
        dict
            JSON values by name.
        """
        given = self.candidates
        return {
            "name": "Auto",
            "target_items": len(self.target),
            "margin": self.margin,
            "candidates": None if given is None else [one.settings() for one in given],
        }

    def __repr__(self) -> str:
        """Return the settings, of the target only its size."""
        given = self.candidates
        names = None if given is None else [type(one).__name__ for one in given]
        return f"Auto(target_items={len(self.target)}, candidates={names}, margin={self.margin})"
