"""Numbers, estimates and settings as text."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from medimg.metrics.bootstrap import Estimate, describe_ends

__all__ = [
    "format_count",
    "format_duration",
    "format_interval",
    "format_interval_or_reason",
    "format_number",
    "format_percent",
    "format_quantity",
    "format_setting",
]


def format_number(value: float) -> str:
    """Give three decimals, a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.3f}"


def format_interval(estimate: Estimate) -> str:
    """Give the ends of an interval, "" if there is none."""
    return "" if np.isnan(estimate.low) else "–".join(describe_ends(estimate.low, estimate.high))


def format_interval_or_reason(estimate: Estimate) -> str:
    """Give the ends of an interval, or why there is none."""
    return format_interval(estimate) or (f"none: {estimate.reason}" if estimate.reason else "")


def format_percent(share: float) -> str:
    """Give a share in percent."""
    return f"{share * 100:g} %"


def format_count(n: int | None) -> str:
    """Group the digits by thousands; a dash for None."""
    return "–" if n is None else f"{n:,}"


def format_quantity(n: int, noun: str) -> str:
    """
    Count a noun in the singular or plural.

    >>> format_quantity(1, "patient"), format_quantity(1200, "image"), format_quantity(2, "series")
    ('1 patient', '1,200 images', '2 series')
    """
    return f"{n:,} {noun if n == 1 or noun.endswith('s') else noun + 's'}"


def format_duration(seconds: float) -> str:
    """Give seconds, or minutes from two on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def format_setting(value: Any) -> str:
    """Put a setting or a value of the history into text."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = (f"{str(k).replace('_', ' ')} {format_setting(v)}" for k, v in value.items() if v is not None)
        return ", ".join(parts) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value)) or "–"
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
