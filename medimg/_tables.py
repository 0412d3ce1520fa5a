"""Tables of texts that may be names of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import pandas as pd

__all__ = ["make_table", "plain_texts"]


def plain_texts() -> AbstractContextManager[object]:
    """Let pandas keep texts as Python does: pyarrow, if it is installed, refuses names that are not UTF-8."""
    import pandas as pd

    return pd.option_context("mode.string_storage", "python")


def make_table(data: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a DataFrame, also of names that are not UTF-8."""
    import pandas as pd

    names = None if columns is None else list(columns)
    try:
        return pd.DataFrame(data, columns=names)
    except UnicodeEncodeError:
        with plain_texts():
            return pd.DataFrame(data, columns=names)
