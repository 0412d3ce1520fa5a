"""Networks within torch.compile and DataParallel: stages, files and trainings are those of the networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import medimg
from medimg import Ensemble, Preprocess, TransferClassifier
from medimg.errors import MedimgWarning
from medimg.models import checkpoint, safetensors_file
from medimg.models.backbones.compiled import is_wrapped
from medimg.models.digest import model_digest
from tests.models.fakes import images
from tests.models.small_network import make_network, small_network

__all__ = ["small_network"]


def _compile_whole(network: Any) -> Any:
    return torch.compile(network, backend="eager")


def _compile_layers(network: Any) -> Any:
    network.layer1 = torch.compile(network.layer1, backend="eager")
    network.layer3[0] = torch.compile(network.layer3[0], backend="eager")
    return network


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": _compile_whole,
    "compiled layers": _compile_layers,
    "both": lambda network: _compile_whole(_compile_layers(network)),
    "parallel": nn.DataParallel,
}


def _classify(network: nn.Module) -> TransferClassifier:
    torch.manual_seed(0)
    return TransferClassifier(network, classes=["a", "b"], preprocess=Preprocess(size=32))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_is_the_network(wrapper: str, tmp_path: Path) -> None:
    wrap, network = WRAPPERS[wrapper], make_network()
    plain = _classify(copy.deepcopy(network))
    with pytest.warns(MedimgWarning, match="is taken without its wrapper"):
        model = _classify(wrap(network))
    assert model.backbone_name == plain.backbone_name
    assert model.stages == plain.stages
    assert model.freeze(upto="layer1").summary() == plain.freeze(upto="layer1").summary()
    assert model_digest(model) == model_digest(plain)
    first, second = model.save(tmp_path / "wrapped.safetensors"), plain.save(tmp_path / "plain.safetensors")
    assert first.read_bytes() == second.read_bytes()
    medimg.load(first, backbone=make_network())
    with pytest.warns(MedimgWarning, match="is taken without its wrapper"):
        medimg.load(second, backbone=wrap(make_network()))
    both = Ensemble([model, plain]).save(tmp_path / "both.safetensors")
    assert model_digest(medimg.load(both, backbone=make_network())) == model_digest(Ensemble([model, plain]))


def test_a_part_that_is_compiled_later(tmp_path: Path) -> None:
    plain = _classify(make_network()).eval()
    model = copy.deepcopy(plain)
    with pytest.warns(MedimgWarning, match="is taken without its wrapper"):
        model.backbone = torch.compile(model.backbone, backend="eager")  # type: ignore[assignment]  # a module
    assert model.stages == plain.stages
    _compile_layers(model.backbone)
    assert is_wrapped(model)
    assert model.stages == plain.stages
    assert model_digest(model) == model_digest(plain)
    file = model.save(tmp_path / "model.safetensors")
    assert is_wrapped(model)
    assert model_digest(medimg.load(file, backbone=make_network())) == model_digest(plain)


def test_a_training_goes_on_without_the_compiler(tmp_path: Path) -> None:
    data = images(8, preprocess=Preprocess(size=32))
    options: dict[str, Any] = {"head_epochs": 0, "batch_size": 4, "progress": False, "output": tmp_path}
    network = make_network()
    plain = _classify(copy.deepcopy(network))
    with pytest.warns(MedimgWarning, match="is taken without its wrapper"):
        model = _classify(_compile_whole(network))
    medimg.fine_tune(model, data, epochs=1, **options)
    assert len(medimg.fine_tune(plain, data, epochs=2, resume=True, **options).history) == 2


def test_a_registered_network_that_is_compiled(tmp_path: Path) -> None:
    medimg.register_backbone("compiled", lambda: _compile_whole(make_network()), size=32, head="_orig_mod.fc")
    with pytest.warns(MedimgWarning, match="is taken without its wrapper"):
        model = TransferClassifier("compiled", classes=["a", "b"])
    assert not is_wrapped(model)
    file = model.save(tmp_path / "model.safetensors")
    medimg.register_backbone("compiled", make_network, size=32)
    assert model_digest(medimg.load(file)) == model_digest(model)


def test_files_with_the_names_of_a_compiled_network_are_read(tmp_path: Path) -> None:
    model = _classify(make_network())
    header, tensors = model.to_checkpoint().parts()
    named = {name.replace("backbone.", "backbone._orig_mod."): value for name, value in tensors.items()}
    header |= {"model_sha256": "0" * 64}
    file = tmp_path / "old.safetensors"
    safetensors_file.write(file, "medimg", header, named)
    assert checkpoint.read(file).model_sha256 is None
    assert model_digest(medimg.load(file, backbone=make_network())) == model_digest(model)
