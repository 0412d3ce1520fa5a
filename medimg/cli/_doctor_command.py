"""``medimg doctor``: versions, codecs, devices and weights of an installation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimg import __version__
from medimg._native.library import describe_library
from medimg.cli._options import Commands, add_command, add_json
from medimg.cli._terminal import print_facts, print_json, print_table

if TYPE_CHECKING:
    import argparse

__all__ = ["add_doctor"]

#: Codec of a transfer syntax: what in imagecodecs has to be compiled in.
_IMAGECODECS = {"rle": "DICOMRLE", "jpeg": "JPEG8", "jpeg-lossless": "JPEG8", "jpeg-ls": "JPEGLS",
                "jpeg-2000": "JPEG2K", "jpeg-xl": "JPEGXL"}  # fmt: skip
_EXTRAS = (
    "adlfs",
    "aiohttp",
    "gcsfs",
    "highdicom",
    "ipyniivue",
    "optuna",
    "s3fs",
    "tensorboard",
    "timm",
    "torchio",
    "torchxrayvision",
    "transformers",
    "xarray",
)


def add_doctor(commands: Commands) -> None:
    """Add ``medimg doctor``."""
    parser = add_command(
        commands, "doctor", _doctor, "describe the installation: versions, codecs, devices, weights"
    )
    add_json(parser)


def _doctor(args: argparse.Namespace) -> int:
    """Print what is installed; the exit code is 1 if something that medimg needs is not."""
    facts, problems = _describe_installation()
    if args.json:
        print_json({**facts, "problems": problems})
    else:
        _print_sections(facts, problems)
    return 1 if problems else 0


def _describe_installation() -> tuple[dict[str, Any], list[str]]:
    import platform

    libraries = {name: _find_version(name) for name in _list_requirements()}
    codecs = _list_codecs()
    problems = [
        f"{name} is not installed; run pip install {name}" for name, v in libraries.items() if v is None
    ]
    problems += [
        f"{codec['name']} has no decoder; run pip install --upgrade --force-reinstall imagecodecs"
        for codec in codecs
        if not codec["available"]
    ]
    facts = {
        "medimg": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiled core": describe_library(),
        "libraries": libraries,
        "extras": {name: _find_version(name) for name in _EXTRAS},
        "plugins": _list_plugins(),
        "codecs": codecs,
        "devices": _list_devices(),
        "weights": _list_weights(),
    }
    return facts, problems


def _list_requirements() -> list[str]:
    """Return the names of the libraries that medimg requires."""
    import re
    from importlib import metadata

    try:
        required = metadata.requires("medimg") or []
    except metadata.PackageNotFoundError:  # on the path, not installed
        required = []
    names = [
        match.group() for text in required if "extra ==" not in text and (match := re.match(r"[\w.-]+", text))
    ]
    return sorted(names, key=str.lower)


def _find_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _list_plugins() -> list[str]:
    from medimg.io.detect import list_plugin_readers

    return list_plugin_readers()


def _list_codecs() -> list[dict[str, Any]]:
    """Return the transfer syntaxes that are read, and whether their decoder works here."""
    from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES, SYNTAXES

    native = [
        {"uid": uid, "name": _name_uid(uid), "codec": "native", "available": True}
        for uid in sorted(NATIVE_SYNTAXES)
        if uid
    ]
    encapsulated = [
        {"uid": uid, "name": syntax.name, "codec": syntax.codec, "available": _has_codec(syntax.codec)}
        for uid, syntax in SYNTAXES.items()
    ]
    return native + encapsulated


def _name_uid(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).name


def _has_codec(codec: str) -> bool:
    name = _IMAGECODECS.get(codec)
    if name is None:  # decoded without a library
        return True
    try:
        import imagecodecs

        return bool(getattr(imagecodecs, name).available)
    except (ImportError, AttributeError):
        return False


def _list_devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"cpu: {cores} cores, {torch.get_num_threads()} threads"]
    for n in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(n)
        found.append(f"cuda:{n}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    return found


def _list_weights() -> dict[str, Any]:
    """Return the files of weights in torch's cache, with their size in MB."""
    try:
        from torch.hub import get_dir
    except ImportError:
        return {"folder": None, "files": {}}
    folder = Path(get_dir(), "checkpoints")
    files = [path for path in sorted(folder.glob("*")) if path.is_file()] if folder.is_dir() else []
    return {"folder": str(folder), "files": {f.name: round(f.stat().st_size / 1e6, 1) for f in files}}


def _print_sections(facts: dict[str, Any], problems: list[str]) -> None:
    names = ("medimg", "python", "platform", "compiled core")
    print_facts({n: facts[n] for n in names})
    print("\nLibraries")
    print_facts({**facts["libraries"], **{f"{n} (optional)": v for n, v in facts["extras"].items()}})
    print("\nReaders of plug-ins")
    print(", ".join(facts["plugins"]) or "none")
    print("\nTransfer syntaxes")
    rows = [(c["name"], c["uid"], c["codec"], c["available"]) for c in facts["codecs"]]
    print_table(("name", "UID", "codec", "available"), rows)
    print("\nDevices")
    print("\n".join(facts["devices"]) or "none")
    weights = facts["weights"]
    print(f"\nWeights in {weights['folder']}")
    if weights["files"]:
        print_table(("file", "MB"), list(weights["files"].items()))
    else:
        print("none")
    for problem in problems:
        print(f"\nProblem: {problem}")
