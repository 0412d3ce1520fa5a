"""
Names for authors of plug-ins: readers of file formats, backbones, adaptation methods.

Each is imported when it is first used, so that a reader loads no torch:

- ``register_reader``, ``unregister_reader``: file formats, written with ``Blob``, ``Raster``,
  ``raster_series``, ``Series``, ``SliceReader``, ``PieceReader``, ``Policies``, ``Volume``, ``ReadReport``.
- ``register_backbone``: networks by name.
- ``Adaptation``, ``AdaptationTerm``: base classes of methods for ``medimg.fine_tune(adapt=...)``.

Readers are tested by :mod:`medimg.testing`.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

_HOMES = {
    "Adaptation": "medimg.adapt",
    "AdaptationTerm": "medimg.adapt",
    "Blob": "medimg.io.files.blob",
    "PieceReader": "medimg.io.series",
    "Policies": "medimg.io.series",
    "Raster": "medimg.io.formats.raster",
    "ReadReport": "medimg.core.read_report",
    "Series": "medimg.io.series",
    "SliceReader": "medimg.io.series",
    "Volume": "medimg.core.volume",
    "raster_series": "medimg.io.formats.raster_reader",
    "register_backbone": "medimg.models.backbones.registry",
    "register_reader": "medimg.io.detect",
    "unregister_reader": "medimg.io.detect",
}

__all__ = [*_HOMES]  # noqa: PLE0604  # all of them are strings


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medimg.plugins' has no attribute {name!r}")
    value = getattr(_import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
