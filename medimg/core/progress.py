"""Progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm

__all__ = ["progress_bar"]

_Item = TypeVar("_Item")

#: Seconds after which a bar appears by default.
_DELAY: Final = 1.0


@overload
def progress_bar(
    iterable: Iterable[_Item],
    *,
    desc: str,
    unit: str,
    progress: bool | None,
    total: int | None = ...,
    initial: int = ...,
) -> tqdm[_Item]: ...


@overload
def progress_bar(
    iterable: None = ...,
    *,
    desc: str,
    unit: str,
    progress: bool | None,
    total: int | None = ...,
    initial: int = ...,
) -> tqdm[Any]: ...


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    progress: bool | None,
    total: int | None = None,
    initial: int = 0,
) -> tqdm[Any]:
    """
    Return a bar over an iterable, or one to update by hand.

    `progress` is True: shown at once, and kept at the end; None: shown after 1 s in an interactive terminal,
    and cleared at the end; False: never shown.
    """
    from tqdm import tqdm  # reading a single file needs none

    return tqdm(
        iterable,
        desc=desc,
        total=total,
        initial=initial,
        unit=unit,
        disable=None if progress is None else not progress,
        delay=0.0 if progress else _DELAY,
        leave=bool(progress),
    )
