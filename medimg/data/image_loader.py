"""Load sources and render their images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from medimg.core.volume import Volume
from medimg.data.cache.images import DamagedError, RenderedImages, normalize_images
from medimg.errors import DatasetError
from medimg.preprocessing.output_buffer import Output, open_output
from medimg.preprocessing.render import render, render_series

if TYPE_CHECKING:
    import torch

    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.cache.keys import Address
    from medimg.data.resolved_source import ResolvedSource
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.render import Rendered

__all__ = ["ImageLoader", "ImagesReader"]


def _find_prepared(source: ResolvedSource) -> ImagesReader | None:
    """Return the reader of images that were prepared; None for all other sources."""
    image = source.image
    if isinstance(image, Volume) or not isinstance(image.reader, ImagesReader):
        return None
    return image.reader


@runtime_checkable
class ImagesReader(Protocol):
    """Reader of a series whose images were prepared before, with a recipe."""

    @property
    def recipe(self) -> Preprocess:
        """Recipe of the images."""
        ...

    def load_images(self, recipe: Preprocess) -> RenderedImages:
        """Return the images; PreprocessError for another recipe than theirs."""
        ...

    def reload_images(self, error: DamagedError) -> RenderedImages:
        """Return the images from their source again; DatasetError if they are not as prepared."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ImageLoader:
    """Loads images of sources: from a cache, or rendered."""

    recipe: Preprocess
    policies: Policies
    cache: ImageCache | None = None

    def address(self, image: Series | Volume) -> Address | None:
        """Return the cache address of an image; None if it is not cached."""
        if self.cache is None or isinstance(image, Volume) or isinstance(image.reader, ImagesReader):
            return None
        return self.cache.address(self.recipe, image, self.policies)

    def load(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """Return the images of a source, from the cache if they are there, or as they were prepared."""
        prepared = _find_prepared(source)
        if prepared is not None:
            return prepared.load_images(self.recipe)
        cached = self.cache.load(address, self.recipe) if self.cache and address else None
        return cached or self.render(source, address)

    def render(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """Render the images of a source, and cache them if there is an address."""
        images = RenderedImages.from_rendered(self._render(source))
        self._check_count(source, len(images.planes))
        if self.cache is None or address is None:
            return images
        images = self.cache.round(images)
        # files that changed since their address was found would be cached under their former content
        if self.address(source.image) != address:
            return images
        return self.cache.store(address, self.recipe, images)

    def replace_damaged(self, source: ResolvedSource, address: Address | None) -> RenderedImages:
        """Render images again whose cached pixels are damaged, with a warning."""
        prepared = _find_prepared(source)
        if prepared is not None:
            return prepared.reload_images(DamagedError("its pixels don't match their checksums"))
        if self.cache is not None and address is not None:
            self.cache.warn_of_damage(address, DamagedError("their pixels don't match their checksums"))
        return self.render(source, address)

    def tensor(
        self, source: ResolvedSource, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Rendered | RenderedImages]:
        """Return the normalized tensor (N, C, H, W) of a source, in `out` if given, and its images."""
        address = self.address(source.image)
        if address is None and _find_prepared(source) is None:
            rendered = self._render(source, Output.of(out=out, normalized=True))
            self._check_count(source, len(rendered.planes))
            return rendered.planes, rendered
        images = self.load(source, address)
        with open_output(out):
            with suppress(DamagedError):
                return normalize_images(self.recipe, [images.take()], out), images
            images = self.replace_damaged(source, address)
            return normalize_images(self.recipe, [images.planes], out), images

    def _check_count(self, source: ResolvedSource, count: int) -> None:
        expected = source.count(self.recipe)
        if count != expected:
            name = "the volume" if isinstance(source.image, Volume) else source.image.path
            raise DatasetError(
                f"{name} gave {count} images, its headers promise {expected}: "
                "read it alone and look at its report"
            )

    def _render(self, source: ResolvedSource, output: Output | None = None) -> Rendered:
        if isinstance(source.image, Volume):
            return render(self.recipe, source.image, output)
        return render_series(self.recipe, source.image, self.policies, output, source.finish)
