"""The model as an algorithm: its name, version and digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from medimg import __version__
from medimg.models.digest import model_digest
from medimg.models.prediction.prediction_table import SHOWN

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = ["SOFTWARE", "Algorithm"]

SOFTWARE: Final = f"medimg {__version__}"
_LONGEST: Final = 64


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Name and digest of a model, and the fingerprint of its preprocessing."""

    name: str
    digest: str
    recipe: str

    @classmethod
    def of(cls, model: TransferClassifier, name: str | None = None) -> Algorithm:
        """Describe a model, under its own name or that of its backbone."""
        shown = f"{model.backbone_name} classifier" if name is None else name
        return cls(
            " ".join(shown.replace("\\", "/").split())[:_LONGEST],
            model_digest(model),
            model.preprocess.fingerprint,
        )

    @property
    def version(self) -> str:
        """First digits of the digest, as in tables of predictions."""
        return self.digest[:SHOWN]

    @property
    def parameters(self) -> list[str]:
        """What identifies the model and its preprocessing, one text each."""
        return [f"model sha256 {self.digest}", f"preprocessing {self.recipe}", SOFTWARE]
