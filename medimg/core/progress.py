"""Progress of long tasks: a bar in a terminal, a widget in a notebook, log lines elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

from medimg._validation import check_choice
from medimg.core.logger import get_logger
from medimg.errors import MedimgError, also

_Item = TypeVar("_Item")

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tqdm import tqdm

    ProgressBar: TypeAlias = "tqdm[_Item] | LoggedProgress[_Item]"

__all__ = ["LoggedProgress", "Progress", "check_progress", "is_notebook", "progress_bar", "shows_bars"]

#: None, as in tqdm's ``disable=None``, means "auto".
Progress: TypeAlias = Literal["auto"] | bool | None

#: Seconds after which a bar appears by default.
_DELAY: Final = 1.0
#: Seconds between the log lines of a task: in its first two minutes, and after them.
_SHORT_INTERVAL: Final = 10.0
_INTERVAL: Final = 30.0
_SHORT_UNTIL: Final = 120.0

_PLURALS: Final = {"series": "series", "batch": "batches"}


def check_progress(progress: object) -> Progress:
    """Return ``progress=`` of a public function."""
    choices: tuple[Any, ...] = ("auto", True, False)
    if progress is None:
        return "auto"
    return check_choice("progress", progress, choices, error=also(MedimgError, ValueError))


def is_notebook() -> bool:
    """Whether a Jupyter kernel runs this code, so that HTML and widgets can be shown."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython is not None else False


def shows_bars(progress: Progress) -> bool:
    """Whether ``progress=`` means bars, here and now."""
    choice = check_progress(progress)
    return (is_notebook() or _is_terminal()) if choice == "auto" else bool(choice)


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # None in a program without a console; closed
        return False


class LoggedProgress(Generic[_Item]):
    """Progress as log lines, of tasks that take long; it has what is used of tqdm's interface."""

    def __init__(
        self,
        iterable: Iterable[_Item] | None,
        *,
        desc: str,
        unit: str,
        total: int | None,
        initial: int = 0,
        interval: float | None = None,
        has_end: bool = True,
    ) -> None:
        self._iterable = iterable
        self._desc, self._unit = desc, _PLURALS.get(unit, f"{unit}s")
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.n = initial
        self._interval = interval
        self._started = time.monotonic()
        self._next = self._started + (interval or _SHORT_INTERVAL)
        self._logged: int | None = None
        self._is_closed = not has_end

    def __iter__(self) -> Iterator[_Item]:
        try:
            for item in () if self._iterable is None else self._iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> LoggedProgress[_Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count further items."""
        self.n += n
        now = time.monotonic()
        if now >= self._next:
            usual = _SHORT_INTERVAL if now - self._started < _SHORT_UNTIL else _INTERVAL
            self._next = now + (self._interval or usual)
            self._log(now)

    def close(self) -> None:
        """End the task; if it has logged a line, it logs a last one."""
        if not self._is_closed and self._logged not in (None, self.n):
            self._log(time.monotonic())
        self._is_closed = True

    def _log(self, now: float) -> None:
        self._logged = self.n
        done = f"{self.n:,}" if self._total is None else f"{self.n:,} of {self._total:,}"
        get_logger().info("%s: %s %s, %.0f s", self._desc, done, self._unit, now - self._started)


@overload
def progress_bar(
    iterable: Iterable[_Item],
    *,
    desc: str,
    unit: str,
    progress: Progress,
    total: int | None = ...,
    initial: int = ...,
) -> ProgressBar[_Item]: ...


@overload
def progress_bar(
    iterable: None = ...,
    *,
    desc: str,
    unit: str,
    progress: Progress,
    total: int | None = ...,
    initial: int = ...,
) -> ProgressBar[Any]: ...


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    progress: Progress,
    total: int | None = None,
    initial: int = 0,
) -> ProgressBar[Any]:
    """
    Return a bar over an iterable, or one to update by hand.

    `progress` is True: shown at once, and kept at the end; "auto": shown after 1 s in a terminal or a
    notebook, and cleared at the end, elsewhere a log line now and then; False: neither.
    """
    choice = check_progress(progress)
    shown = shows_bars(choice)
    if choice == "auto" and not shown:
        return LoggedProgress(iterable, desc=desc, unit=unit, total=total, initial=initial)
    bar = _import_tqdm(notebook=shown and is_notebook())
    return bar(
        iterable,
        desc=desc,
        total=total,
        initial=initial,
        unit=unit,
        disable=not shown,
        delay=0.0 if choice is True else _DELAY,
        leave=choice is True,
    )


def _import_tqdm(*, notebook: bool) -> type[tqdm[Any]]:
    """Return tqdm's class: ``tqdm.auto``'s, which outside notebooks is the plain one with asyncio."""
    if not notebook:
        from tqdm import tqdm as plain

        return plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets it shows text, and says so
        from tqdm.auto import tqdm as widget

    return widget
