"""A named check: one sentence of the contract, and the code that holds a reader or a volume to it."""

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

__all__ = ["Check", "breaches_of", "contract", "on_volumes", "require", "rule_of"]


@dataclass(frozen=True, slots=True)
class Check:
    """
    One sentence of the contract, executable.

    Attributes
    ----------
    name : str
        What pytest shows.
    rule : str
        What must hold.
    function : callable
        Raises AssertionError where it does not.
    needs_series : bool
        Whether a volume by itself can't be checked.
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
            What to check; a Reading shares what was read with other checks.
        read : callable, optional
            Reads some slices, or all for None; `subject.read` by default.
        secrets : sequence of str
            Texts of the file that identify the patient, which must turn up nowhere.

        Raises
        ------
        AssertionError
            If the rule does not hold; the message says what was found.
        MedimgError
            If the reader refuses the series, so that there is nothing to check.
        TypeError
            If a volume is given where a series is needed.
        """
        reading = subject
        if isinstance(reading, Volume):
            reading = Reading.of_volume(reading, secrets=secrets)
        elif not isinstance(reading, Reading):
            reading = Reading(reading, read=read, secrets=secrets)
        if self.needs_series and reading.is_volume_only:
            raise TypeError(f"{self.name} checks a series, not a volume")
        _ = reading.volume  # a refusal is the caller's to judge
        with breaches_of(self.name, self.rule):
            self.function(reading)


@contextmanager
def breaches_of(name: str, rule: str) -> Iterator[None]:
    """Say of what goes wrong inside which rule it breaks; an error of medimg breaks it as well."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {rule}\nfound: {error}") from error
    except MedimgError as error:
        raise AssertionError(f"{name}: {rule}\nfound: {type(error).__name__}: {error}") from error


def contract(function: Callable[[Reading], None]) -> Check:
    """Make a check of a series; the docstring is its rule."""
    return Check(function.__name__, rule_of(function), function)


def on_volumes(function: Callable[[Volume], None]) -> Check:
    """Make a check of a volume, which holds for that of a series too; the docstring is its rule."""
    return Check(
        function.__name__, rule_of(function), lambda reading: function(reading.volume), needs_series=False
    )


def rule_of(function: Callable[..., None]) -> str:
    """Return the docstring of a check on one line."""
    return " ".join((function.__doc__ or "").split())


def require(condition: object, found: str) -> None:
    """Raise AssertionError with what was found, also where Python runs with -O."""
    if not condition:
        raise AssertionError(found)
