"""What a run was made on and with."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

__all__ = ["made_with"]

_PACKAGES: Final = (
    "medimg",
    "numpy",
    "torch",
    "imagecodecs",
    "pydicom",
    "python-gdcm",
    "pylibjpeg",
    "SimpleITK",
    "itk-io",
    "monai",
    "torchio",
    "dicomsdl",
    "fastdicom",
    "medrs",
    "radreader",
    "highdicom",
    "nibabel",
    "pillow",
    "torchvision",
)


def made_with() -> dict[str, str]:
    """Return the date, the machine, and the versions, without a name of machine or user."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "versions": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
