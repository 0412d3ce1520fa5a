"""What renders images on the CPU: the compiled core or torch, which agree within 1e-6."""

from __future__ import annotations

from typing import Literal, TypeAlias

from medimg._native.library import load_library

__all__ = ["Renderer", "find_renderer"]

Renderer: TypeAlias = Literal["compiled", "torch"]


def find_renderer() -> Renderer:
    """Return what renders images on the CPU; torch renders other devices, and a few windows, in any case."""
    return "torch" if load_library() is None else "compiled"
