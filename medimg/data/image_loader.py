"""Load sources and render their images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medimg.core.volume import Volume
from medimg.data.cache.images import DamagedError, RenderedImages, normalize
from medimg.errors import DatasetError
from medimg.io.read import resolve_source
from medimg.preprocessing.output_buffer import Output, open_output
from medimg.preprocessing.render import count_images, render, render_series

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.cache.keys import Address
    from medimg.io.read import Source
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.render import Rendered

__all__ = ["ImageLoader", "ResolvedSource"]


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedSource:
    """
    A source whose headers are read.

    Attributes
    ----------
    image : Series or Volume
        What pictures are made of.
    finish : callable
        Completes the report of its volume; see :func:`medimg.io.read.resolve_source`.
    """

    image: Series | Volume
    finish: Callable[[Volume], Volume]

    @classmethod
    def of(cls, source: Source | Volume) -> ResolvedSource:
        """
        Open a source.

        Raises
        ------
        ReadError, SeriesError
            See :func:`medimg.read`.
        """
        return cls(source, _as_it_is) if isinstance(source, Volume) else cls(*resolve_source(source))

    def count(self, recipe: Preprocess) -> int:
        """
        Return how many pictures its headers promise.

        Raises
        ------
        PreprocessError
            If there would be unreasonably many.
        """
        return count_images(recipe, self.image)


def _as_it_is(volume: Volume) -> Volume:
    return volume


@dataclass(frozen=True, slots=True, eq=False)
class ImageLoader:
    """
    Makes pictures of sources, or takes them from a cache.

    Attributes
    ----------
    recipe : Preprocess
    policies : Policies
        How to read.
    cache : ImageCache or None
    """

    recipe: Preprocess
    policies: Policies
    cache: ImageCache | None = None

    def address(self, image: Series | Volume) -> Address | None:
        """Return where pictures are kept; None if they are not."""
        if self.cache is None or isinstance(image, Volume):
            return None
        return self.cache.address(self.recipe, image, self.policies)

    def pictures(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """
        Return the pictures of a source, from its address in the cache where they are there.

        Raises
        ------
        PreprocessError
            If the recipe does not fit the image.
        ReadError, SeriesError
            If it can't be read.
        DatasetError
            If it has another number of slices than its headers promise.
        """
        kept = self.cache.load(address, self.recipe) if self.cache and address else None
        return kept or self.made(source, address)

    def made(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """Return the pictures of a source, made anew, and keep them where there is an address."""
        pictures = RenderedImages.of(self._rendered(source))
        self._check_count(source, len(pictures.planes))
        if self.cache is None or address is None:
            return pictures
        pictures = self.cache.rounded(pictures)
        # files that changed since their address was found would be kept in the name of what they were
        return (
            self.cache.store(address, self.recipe, pictures)
            if self.address(source.image) == address
            else pictures
        )

    def tensor(
        self, source: ResolvedSource, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Rendered | RenderedImages]:
        """Return the normalized tensor (N, 3, H, W) of a source, in `out` if given, and where it is from."""
        address = self.address(source.image)
        if address is None:
            rendered = self._rendered(source, Output.of(out=out, normalized=True))
            self._check_count(source, len(rendered.planes))
            return rendered.planes, rendered
        pictures = self.pictures(source, address)
        with open_output(out):
            with suppress(DamagedError):
                return normalize(self.recipe, [pictures.taken()], out), pictures
            pictures = self.remade(source, address)
            return normalize(self.recipe, [pictures.planes], out), pictures

    def remade(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """Return pictures anew whose kept ones turned out to be damaged, with a warning."""
        if self.cache is not None and address is not None:
            self.cache.note_damage(address, DamagedError("their pixels don't match their checksums"))
        return self.made(source, address)

    def _check_count(self, source: ResolvedSource, count: int) -> None:
        expected = source.count(self.recipe)
        if count != expected:
            raise DatasetError(
                f"{_name(source.image)} gave {count} pictures, its headers promise {expected}: "
                "read it alone and look at its report"
            )

    def _rendered(self, source: ResolvedSource, output: Output | None = None) -> Rendered:
        if isinstance(source.image, Volume):
            return render(self.recipe, source.image, output)
        return render_series(self.recipe, source.image, self.policies, output, source.finish)


def _name(image: Series | Volume) -> str:
    return "the volume" if isinstance(image, Volume) else image.path
