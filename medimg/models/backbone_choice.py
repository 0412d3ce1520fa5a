"""Which network is meant by a name, a path, or a network itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from medimg.errors import TrainingError, WeightsUnavailableError, also
from medimg.io.files.regular_file import is_regular_file
from medimg.models import checkpoint
from medimg.models.backbones.architecture import find_backbone, is_name, open_folder, rebuild_source
from medimg.models.backbones.weights import is_weights_path

if TYPE_CHECKING:
    from medimg.models.backbones.source import BackboneSource
    from medimg.models.backbones.weights import WeightsChoice

__all__ = ["resolve_backbone"]


def resolve_backbone(
    backbone: str | os.PathLike[str] | nn.Module, weights: WeightsChoice
) -> tuple[BackboneSource, Path | None]:
    """
    Return the source of a network, and if it was given by a path, its file of weights, if these are wanted.

    A folder is one that transformers or timm wrote; a file must be a checkpoint of medimg, as weights alone
    do not state their network.
    """
    if isinstance(backbone, nn.Module):
        return find_backbone(backbone), None
    if isinstance(backbone, type):
        raise also(TrainingError, TypeError)(
            f"backbone must be a network, a name or a path; found a class: pass {backbone.__name__}()"
        )
    if not isinstance(backbone, os.PathLike):
        if not isinstance(backbone, str) or is_name(backbone):
            return find_backbone(backbone), None
        if not is_weights_path(backbone):
            try:
                return find_backbone(backbone), None
            except KeyError:  # no name of a network
                if not Path(backbone).expanduser().exists():
                    raise
    path = Path(backbone).expanduser()
    if path.is_dir():
        source = open_folder(path)
        if not (isinstance(weights, str) and weights == "DEFAULT"):
            return source, None
        found = source.resolve_weights("DEFAULT", accept_license=True)
        return source, None if found is None else found.path
    if not is_regular_file(path):
        raise also(WeightsUnavailableError, FileNotFoundError)(
            f"there is no file or folder {path}; correct the path, or pass the name of a network"
        )
    saved = checkpoint.find(path)
    if saved is None:
        raise TrainingError(
            f"{path.name} has weights, but does not state of which network: pass its name as the backbone, "
            "and the path as weights="
        )
    return rebuild_source(saved.architecture), path
