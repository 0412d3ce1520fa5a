"""``python -m benchmarks.adaptation``."""

from __future__ import annotations

from benchmarks.adaptation.cli import main

if __name__ == "__main__":
    main()
