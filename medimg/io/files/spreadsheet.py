"""Tables that are opened in spreadsheets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg._tables import plain_texts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["escape_formulas"]

#: How formulas begin; numbers with a sign are none.
_FORMULA: Final = re.compile(r"[=@\t\r\n]|[+-](?![0-9.]*$)")


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts are no formulas to a spreadsheet: an apostrophe is put before those."""

    def escape(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

    with plain_texts():
        safe = table.rename(columns=escape)
        for n, dtype in enumerate(table.dtypes):
            if not isinstance(dtype, np.dtype) or dtype.kind == "O":
                safe.isetitem(n, table.iloc[:, n].map(escape).to_numpy())
    return safe
