"""What the conformance tests found, for the table in the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Conformance:
    """Notes what was compared; docs/make_conformance.py makes a table of it."""

    record: Callable[[str, object], None]

    def note(self, what: str, where: str, compared: int, missed: int, explained: Sequence[str] = ()) -> None:
        """
        Note one comparison.

        Parameters
        ----------
        what : str
            The section of the table.
        where : str
            The data set.
        compared, missed : int
            How many were compared, and how many were not met.
        explained : sequence of str
            For each that was not met, its name and why.
        """
        row = {"what": what, "where": where, "compared": compared, "missed": missed, "why": list(explained)}
        self.record("conformance", json.dumps(row))
