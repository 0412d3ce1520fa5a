"""Named checks: one rule of the contract each, and the code that checks it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medimg.core.volume import Volume
from medimg.errors import MedimgError
from medimg.testing.observed_read import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medimg.io.series import Series
    from medimg.testing.observed_read import Read

__all__ = ["Check", "get_rule", "report_breach", "require", "series_check", "volume_check"]


@dataclass(frozen=True, slots=True)
class Check:
    """
    One rule of the contract, executable.

    Attributes
    ----------
    name : str
        Name of the check, as shown by pytest.
    rule : str
        The rule, in one sentence.
    function : callable
        Function that raises AssertionError if the rule is broken.
    needs_series : bool
        Whether a volume without a series can't be checked.
    """

    name: str
    rule: str
    function: Callable[[Reading], None] = field(repr=False)
    needs_series: bool = True

    @property
    def __name__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return f"{self.name}: {self.rule}"

    def __call__(
        self, subject: Series | Volume | Reading, *, read: Read | None = None, secrets: Sequence[str] = ()
    ) -> None:
        """
        Check one series or volume.

        Parameters
        ----------
        subject : Series, Volume or Reading
            Series or volume to check; a Reading shares reads with other checks.
        read : callable, optional
            Function that reads some slices, or all for None; `subject.read` by default.
        secrets : sequence of str
            Texts of the file that identify the patient, which must not appear anywhere.

        Raises
        ------
        AssertionError
            If the rule is broken; the message says what was found.
        MedimgError
            If the reader refuses the series, so that there is nothing to check.
        TypeError
            If the check needs a series, and a volume is given.
        """
        reading = subject
        if isinstance(reading, Volume):
            reading = Reading.of_volume(reading, secrets=secrets)
        elif not isinstance(reading, Reading):
            reading = Reading(reading, read=read, secrets=secrets)
        if self.needs_series and reading.is_volume_only:
            raise TypeError(f"{self.name} checks a series, not a volume")
        _ = reading.volume  # a refusal is the caller's to judge
        with report_breach(self.name, self.rule):
            self.function(reading)


@contextmanager
def report_breach(name: str, rule: str) -> Iterator[None]:
    """Add name and rule to an AssertionError; an error of medimg breaks the rule as well."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {rule}\nfound: {error}") from error
    except MedimgError as error:
        raise AssertionError(f"{name}: {rule}\nfound: {type(error).__name__}: {error}") from error


def series_check(function: Callable[[Reading], None]) -> Check:
    """Make a check of a series; the docstring is its rule."""
    return Check(function.__name__, get_rule(function), function)


def volume_check(function: Callable[[Volume], None]) -> Check:
    """Make a check of a volume, which applies to that of a series too; the docstring is its rule."""
    return Check(
        function.__name__, get_rule(function), lambda reading: function(reading.volume), needs_series=False
    )


def get_rule(function: Callable[..., None]) -> str:
    """Return the docstring of a check on one line."""
    return " ".join((function.__doc__ or "").split())


def require(condition: object, found: str) -> None:
    """Raise AssertionError with what was found, also if Python runs with -O."""
    if not condition:
        raise AssertionError(found)
