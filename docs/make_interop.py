"""
Convert volumes to the images of other libraries and back, and write the results to docs/interop.rst.

python docs/make_interop.py

It needs all these libraries: pip install "medimg[test]".
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "interop.rst"
START = ".. table of docs/make_interop.py\n"
END = ".. end of the table\n"
DISTRIBUTIONS = {"Pillow": "pillow", "MONAI": "monai", "TorchIO": "torchio"}


def make_table() -> str:
    """Return the table in reStructuredText, and the errors below it."""
    sys.path.insert(0, str(DOCS.parent))
    from tests.interop.libraries import CASES, LIBRARIES, try_round_trip

    errors: dict[str, int] = {}
    rows = [
        ["Volume", *(f"{lib.name} {version(DISTRIBUTIONS.get(lib.name, lib.name))}" for lib in LIBRARIES)]
    ]
    for name, make in CASES.items():
        row = [name]
        for library in LIBRARIES:
            result, message = try_round_trip(library, make())
            if message:
                result = f"``{result}`` ({errors.setdefault(message, len(errors) + 1)})"
            row.append(result)
        rows.append(row)
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if n == 0 else '  -'} {cell}" for n, cell in enumerate(row)]
    lines += ["", "The errors:", ""]
    lines += [f"{number}. {message}" for message, number in errors.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{START}\n{make_table()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
