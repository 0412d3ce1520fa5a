"""The module that public classes and functions name as theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["set_module"]

_Public = TypeVar("_Public", bound="type[Any] | Callable[..., Any]")


def set_module(name: str) -> Callable[[_Public], _Public]:
    """
    Return a decorator that sets ``__module__``, so that reprs and documentation show where to import from.

    It goes outermost: dataclasses resolve their annotations in the module that ``__module__`` names before.
    """

    def decorate(public: _Public) -> _Public:
        public.__module__ = name
        return public

    return decorate
