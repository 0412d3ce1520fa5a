"""Early stopping of a phase."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EarlyStopping"]


@dataclass(slots=True)
class EarlyStopping:
    """Counts the validated epochs since the best score; a phase stops after `patience` of them, if any."""

    patience: int | None
    waited: int = 0

    def end_epoch(self, *, better: bool, validated: bool) -> None:
        """Count an epoch; a better one restarts the count."""
        self.waited = 0 if better else self.waited + validated

    def start_phase(self) -> None:
        """Restart the count."""
        self.waited = 0

    @property
    def is_due(self) -> bool:
        """Whether the phase stops now."""
        return self.patience is not None and self.waited >= self.patience
