"""Sources whose headers are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medimg.core.volume import Volume
from medimg.io.read import resolve_source, resolve_sources
from medimg.preprocessing.render import count_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from medimg.errors import MedimgError
    from medimg.io.read import Source
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["ResolvedSource"]


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedSource:
    """A source whose headers are read; `finish` completes the report of its volume."""

    image: Series | Volume
    finish: Callable[[Volume], Volume]

    @classmethod
    def resolve(cls, source: Source | Volume) -> ResolvedSource:
        """Read the headers of a source."""
        return (
            cls(source, lambda volume: volume) if isinstance(source, Volume) else cls(*resolve_source(source))
        )

    @classmethod
    def resolve_all(
        cls, source: Source | Volume
    ) -> tuple[list[ResolvedSource], list[tuple[str, MedimgError]]]:
        """Read the headers of a source, such as a folder; return its series, and files that can't be read."""
        if isinstance(source, Volume):
            return [cls.resolve(source)], []
        found, lost = resolve_sources(source)
        return [cls(*one) for one in found], lost

    def count(self, recipe: Preprocess) -> int:
        """Return the number of images a recipe makes of it, by its headers."""
        return count_images(recipe, self.image)
