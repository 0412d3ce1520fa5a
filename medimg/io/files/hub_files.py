"""Files of the Hugging Face hub: found in the cache without its library, down- and uploaded by it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medimg._validation import check_text, printable
from medimg.core.logger import get_logger
from medimg.errors import CheckpointError, MissingDependencyError, WeightsUnavailableError, also
from medimg.io.files.regular_file import is_regular_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "MODEL_FILE",
    "WEIGHT_FILES",
    "cached_file",
    "check_repository",
    "fetch_file",
    "push_files",
    "stated_sha256",
]

#: Name of a medimg model in its repository.
MODEL_FILE: Final = "model.safetensors"

#: Names of a repository's weights, of which the first that exists is taken.
WEIGHT_FILES: Final = (MODEL_FILE, "pytorch_model.bin")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REPOSITORY: Final = re.compile(r"[\w-]+[\w.-]*/[\w-]+[\w.-]*(@[\w-]+[\w./-]*)?", re.ASCII)


def check_repository(repository: object) -> str:
    """Return the name of a repository, owner/name, or owner/name@revision."""
    name = check_text("repository", repository, error=CheckpointError)
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        raise CheckpointError(
            f"{printable(name)} is no repository of the hub; expected owner/name, or owner/name@revision "
            "with a branch, tag or commit"
        )
    return name


def _cache_folder() -> Path:
    """Return the folder of the cache, as huggingface_hub finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """Return the first of some files of a repository (owner/name) that is in the cache, or None."""
    repository, _, revision = repository.partition("@")
    folder = _cache_folder() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    if not commit:
        return None
    paths = (folder / "snapshots" / commit / name for name in names)
    return next((path for path in paths if is_regular_file(path)), None)


def stated_sha256(path: Path) -> str | None:
    """Return the SHA-256 by which the cache names the content of a large file, or None."""
    target = path.resolve()
    return target.name if target.parent.name == "blobs" and _SHA256.fullmatch(target.name) else None


def fetch_file(
    repository: str,
    names: Sequence[str],
    *,
    what: str,
    is_weights: bool = True,
    otherwise: str = "",
    extra: str = "hf",
) -> Path:
    """
    Return the first of some files of a repository, from the cache or by huggingface_hub.

    `what`, the `extra` to install, and `otherwise`, what else can be done, are for messages.
    """
    cached = cached_file(repository, names)
    if cached is not None:
        return cached
    where = f"https://huggingface.co/{repository.partition('@')[0]}"
    elsewhere = otherwise or (
        f"download it elsewhere from {where} and pass weights=<path of the file>, or weights=None for random "
        "weights"
        if is_weights
        else f"download it elsewhere from {where} and pass the path of a folder with config.json as backbone"
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} is not in the cache, and huggingface_hub, which downloads it, can't be imported "
            f'({error}); install it with: pip install "medimg[{extra}]"; or {elsewhere}'
        ) from error
    plain, _, revision = repository.partition("@")
    get_logger().info("downloading %s of %s", names[0], where)
    for number, name in enumerate(names):
        try:
            return Path(hf_hub_download(plain, name, revision=revision or None))
        except Exception as error:  # no network, no such repository, a gated one, or no such file
            is_missing = type(error).__name__ == "RemoteEntryNotFoundError"
            if is_missing and number + 1 < len(names):
                continue
            if is_missing:
                raise WeightsUnavailableError(
                    f"{plain} has no {' or '.join(names)} at this revision, which {what} would be in"
                ) from error
            raise WeightsUnavailableError(
                f"could not download {what} ({type(error).__name__}); {elsewhere}"
            ) from error
    raise AssertionError  # names are never empty


def push_files(
    repository: str,
    files: Mapping[str, Path],
    *,
    private: bool,
    token: str | None,
    revision: str | None,
    message: str,
) -> str:
    """Upload files by their names in a repository as one commit, and return its address."""
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError as error:
        raise MissingDependencyError(
            f"huggingface_hub, which uploads models, can't be imported ({error}); install it with: "
            'pip install "medimg[hub]"'
        ) from error
    hub = HfApi(token=token)
    try:
        # an existing repository stays as public or private as it is
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        commit = hub.create_commit(
            repository,
            [CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message=message,
            revision=revision,
        )
    # no network, no token, no right to write, or an answer that the library does not know
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        found = f"{type(error).__name__}{f', HTTP {status}' if status else ''}"
        raise also(CheckpointError, OSError)(
            f"could not write to {repository} on the hub ({found}); check the network, that the repository "
            "is yours, and the token: log in with: hf auth login, or pass token="
        ) from error
    return str(commit.commit_url)
