from __future__ import annotations

import hashlib
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, get_model

from medimg import Preprocess, TransferClassifier
from medimg.errors import PreprocessError, WeightsUnavailableError
from medimg.models.backbones.architecture import resolve_weights
from medimg.models.training_images import TrainingImages
from tests.models.fakes import SMALL, classifier


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a network that is down."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def down(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", down)
    return tmp_path / "torch" / "hub" / "checkpoints"


def squeezenet_state() -> OrderedDict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return OrderedDict(get_model("squeezenet1_1", weights=None).state_dict())


def save_with_hash(state: Any, folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain.pth"
    torch.save(state, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    return plain.rename(folder / f"{stem}-{digest[:8]}.pth")


def body_loaded(model: TransferClassifier, state: dict[str, torch.Tensor]) -> bool:
    own = model.backbone.state_dict()
    assert own
    return all(torch.equal(own[name], state[name]) for name in own)


def model_from(path: Path | str, backbone: str = "squeezenet1_1", **fields: Any) -> TransferClassifier:
    return TransferClassifier(backbone, classes=("a", "b"), weights=path, preprocess=SMALL, **fields)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"),
        ("IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"),
        ("ResNet50_Weights.IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2"),
        ("ResNet50_Weights.DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"),
        ("./mine.pth", "mine.pth"),
        ("mine.safetensors", "mine.safetensors"),
        (Path("folder") / "mine", "mine"),
    ],
)
def test_names_and_paths(weights: Any, name: str) -> None:
    source = resolve_weights("resnet50", weights)
    assert source is not None
    assert source.name == name
    assert (source.url is None) == (not name.startswith("ResNet50"))


@pytest.mark.parametrize(
    "weights", ["IMAGENET1K_V3", "ResNet18_Weights.IMAGENET1K_V1", ResNet18_Weights.DEFAULT]
)
def test_unknown_name_lists_known_ones(weights: Any) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"resnet50 has no weights.*'IMAGENET1K_V2'"):
        resolve_weights("resnet50", weights)


def test_no_network_names_address_cache_and_remedy(cache: Path) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        TransferClassifier("resnet18", classes=("a", "b"))
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache / "resnet18-f37072fd.pth") in message
    assert "weights=<path" in message
    assert "weights=None" in message
    assert isinstance(caught.value, OSError)
    assert not list(cache.glob("*"))


def test_weights_by_name_come_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = squeezenet_state()
    path = save_with_hash(state, cache, "squeezenet1_1")
    _point_default_at(monkeypatch, f"https://example.org/models/{path.name}")
    model = TransferClassifier("squeezenet1_1", classes=("a", "b"))
    assert model.weights_name == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert model.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert body_loaded(model, state)


def test_download_fills_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = squeezenet_state()
    served = save_with_hash(state, tmp_path / "served", "squeezenet1_1")
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    _point_default_at(monkeypatch, served.as_uri())
    model = TransferClassifier("squeezenet1_1", classes=("a", "b"), progress=False)
    assert [p.name for p in cache.iterdir()] == [served.name]
    assert body_loaded(model, state)


def test_download_of_other_content_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "squeezenet1_1-00000000.pth"
    served.write_bytes(b"something else")
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    _point_default_at(monkeypatch, served.as_uri())
    with pytest.raises(WeightsUnavailableError, match="invalid hash value"):
        TransferClassifier("squeezenet1_1", classes=("a", "b"), progress=False)
    assert not list(cache.iterdir())


def _point_default_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    import dataclasses

    from torchvision.models import SqueezeNet1_1_Weights

    member = SqueezeNet1_1_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member, "_value_", dataclasses.replace(member.value, url=url))


def test_truncated_file_in_the_cache(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"PK\x03\x04 and then the line broke")
    with pytest.raises(WeightsUnavailableError, match=r"expected f37072fd.*delete it"):
        TransferClassifier("resnet18", classes=("a", "b"))


@pytest.mark.parametrize("name", ["resnet18-5c106cde.pth", "resnet18-f37072fd.pth"])
@pytest.mark.parametrize("renamed", [False, True])
def test_real_truncated_downloads(real_data: Path, tmp_path: Path, name: str, renamed: bool) -> None:
    path = real_data / "malformed" / "truncated_weights" / name
    if renamed:  # without digits in its name, only its content can tell
        (tmp_path / "mine.pth").write_bytes(path.read_bytes())
        path = tmp_path / "mine.pth"
    expected = "can't be read as weights" if renamed else "by its name"
    with pytest.raises(WeightsUnavailableError, match=expected):
        model_from(path, "resnet18")


def test_right_hash_in_the_name_is_accepted(tmp_path: Path) -> None:
    state = squeezenet_state()
    path = save_with_hash(state, tmp_path, "anything")
    assert body_loaded(model_from(str(path)), state)


@pytest.mark.parametrize("wrapped", ["state_dict", "model", None])
def test_habits_of_training_scripts(tmp_path: Path, wrapped: str | None) -> None:
    state = squeezenet_state()
    renamed: Any = {f"module.{name}": value for name, value in state.items()}
    torch.save({wrapped: renamed, "epoch": 3} if wrapped else renamed, tmp_path / "mine.pth")
    assert body_loaded(model_from(tmp_path / "mine.pth"), state)


def test_safetensors(tmp_path: Path) -> None:
    state = squeezenet_state()
    save_file(dict(state), tmp_path / "mine.safetensors")
    assert body_loaded(model_from(tmp_path / "mine.safetensors"), state)


def test_head_of_another_size_is_left_out(tmp_path: Path) -> None:
    state = get_model("resnet18", weights=None, num_classes=7).state_dict()
    torch.save(state, tmp_path / "mine.pth")
    model = model_from(tmp_path / "mine.pth", "resnet18")
    assert body_loaded(model, state)
    assert model.head.weight.shape == (2, 512)


@pytest.mark.parametrize("content", [[1, 2, 3], {"epoch": 1}, {}, torch.zeros(3)])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match="expected a state dict"):
        model_from(tmp_path / "mine.pth")


class Payload:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Payload, "ran", True))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(Payload(), tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match="can't be read as weights"):
        model_from(tmp_path / "mine.pth")
    assert not Payload.ran


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(squeezenet_state(), tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError) as caught:
        model_from(tmp_path / "mine.pth", "resnet18")
    message = str(caught.value)
    assert "don't fit a resnet18" in message
    assert "missing (conv1.weight" in message
    assert "unexpected (features.0.weight" in message


@pytest.mark.usefixtures("narrow")
def test_weights_of_another_width(tmp_path: Path) -> None:
    torch.save(get_model("resnet34", weights=None).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match=r"of another shape \(layer1.0.conv1.weight"):
        model_from(tmp_path / "mine.pth", "resnet50")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    state = squeezenet_state()
    state["features.0.bias"][3] = torch.nan
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match=r"not finite in features\.0\.bias"):
        model_from(tmp_path / "mine.pth")


def test_values_that_are_not_finite_in_the_type_of_the_network(tmp_path: Path) -> None:
    state = squeezenet_state()
    state["features.0.bias"] = torch.full((64,), 1e300, dtype=torch.float64)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match=r"not finite in features\.0\.bias"):
        model_from(tmp_path / "mine.pth")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_numbers_of_eight_bits(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    state = OrderedDict((n, v.to(dtype)) for n, v in squeezenet_state().items())
    torch.save(state, tmp_path / "mine.pth")
    for channels in (1, 3):
        model = TransferClassifier(
            "squeezenet1_1", classes=("a", "b"), weights=tmp_path / "mine.pth", in_channels=channels
        )
        found = model.backbone.state_dict()["features.0.weight"]
        expected = state["features.0.weight"].float()
        assert torch.equal(found, expected if channels == 3 else expected.sum(dim=1, keepdim=True))
    state["features.0.bias"] = torch.zeros(1).to(dtype).expand(10**6, 10**6)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match="of another shape"):
        model_from(tmp_path / "mine.pth")


NAMES = ["\n\x1b[31mred", "a" * 100_000, "\u202eright"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors_are_shown_escaped_and_shortened(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def shown(text: str) -> None:
        assert text.isprintable()
        assert len(text) < 1500

    caplog.set_level("INFO", logger="medimg")
    state = squeezenet_state()
    path = tmp_path / "mine.pth"
    for wrapped in (
        {f"{name}{n}": v for n, v in enumerate(state.values())},
        {f"{name}.{n}": v for n, v in list(state.items())[1:]},
        {**state, f"features.{name}": torch.ones(2)},
        {**state, "features.0.bias": torch.ones(2), f"features.{name}": torch.ones(2)},
        {f"{name}{n}.{key}": v + n for n in range(2) for key, v in state.items()},
        {name: 3},
    ):
        torch.save(wrapped, path)
        with pytest.raises(WeightsUnavailableError) as error:
            model_from(path)
        shown(str(error.value))
    torch.save({f"{name}.{n}": v for n, v in state.items()}, path)
    shown(str(model_from(path).weights_report))
    assert caplog.messages
    for message in caplog.messages:
        shown(message)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="there is no file of weights"):
        model_from(tmp_path / "none.pth")


@pytest.mark.usefixtures("narrow")
def test_old_spelling_of_densenet(tmp_path: Path) -> None:
    import re

    state = get_model("densenet121", weights=None).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")  # torch before 0.4.1 didn't count
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "mine.pth")
    model = model_from(tmp_path / "mine.pth", "densenet121")
    assert body_loaded(model, state)


def test_mnasnet_without_version(tmp_path: Path) -> None:
    state = get_model("mnasnet0_5", weights=None).state_dict()
    save_file(dict(state), tmp_path / "mine.safetensors")
    assert body_loaded(model_from(tmp_path / "mine.safetensors", "mnasnet0_5"), state)


def test_swag_needs_an_opt_in() -> None:
    name = "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"
    with pytest.raises(WeightsUnavailableError, match=r"under a license of their own: .*accept_license=True"):
        resolve_weights("vit_b_16", name)
    source = resolve_weights("vit_b_16", name, accept_license=True)
    assert source is not None
    assert source.name == name


def test_size_is_checked_before_any_download() -> None:
    with pytest.raises(PreprocessError, match="takes images of 224×224 only"):
        TransferClassifier("vit_b_16", classes=("a", "b"), preprocess=Preprocess(size=256))


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    state, path = squeezenet_state(), tmp_path / "mine.pth"
    torch.save({"state_dict": state}, path)
    name = "features.3.squeeze.weight"
    written = path.read_bytes()
    at = written.index(state[name].numpy().tobytes()[:64]) + 3
    flipped = bytearray(written)
    flipped[at] ^= 0x40
    path.write_bytes(flipped)
    with pytest.raises(WeightsUnavailableError, match=r"the checksum \(CRC-32\) of its part mine/data"):
        model_from(path)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # such a file has none
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert body_loaded(model_from(path), state)


def test_random_weights_need_nothing() -> None:
    model = classifier()
    assert model.weights_name is None
    assert model.weights_sha256 is None


def renamed(prefix: str, state: Any) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


PREFIXES = ("model.", "backbone.", "encoder.", "encoder_q.", "_orig_mod.", "module.", "net.", "features.")


@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    wrappers=st.lists(st.sampled_from(["state_dict", "model", "net", "weights"]), max_size=2),
    more=st.sampled_from([{}, {"epoch": 3}, {"best": torch.tensor(0.9), "optimizer": {"state": {}}}]),
)
@settings(max_examples=12, deadline=None)
def test_prefixes_and_wrappers_in_any_order(prefixes: list[str], wrappers: list[str], more: Any) -> None:
    state = squeezenet_state()
    content: Any = renamed("".join(prefixes), state)
    for wrapper in wrappers:
        content = {wrapper: content}
    if wrappers:
        content.update(more)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.pth"
        torch.save(content, path)
        assert body_loaded(model_from(path), state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda s: {**renamed("left.", s), **renamed("right.", {n: v + 1 for n, v in s.items()})},
            "prefixes 'left.', 'right.'",
        ),
        (lambda s: renamed("model.", dict(list(s.items())[1:])), "1 missing \\(features.0.weight\\)"),
        (lambda s: {"state_dict": s, "args": Fraction(1, 2)}, "fractions.Fraction"),
        (lambda s: get_model("squeezenet1_1"), "whole pickled model .*torch.nn"),
        (lambda s: np.zeros(3), "expected a state dict"),
    ],
)
def test_what_does_not_load_is_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content(squeezenet_state()), tmp_path / "mine.pth")
    with pytest.raises(WeightsUnavailableError, match=message):
        model_from(tmp_path / "mine.pth")


def test_a_momentum_encoder_is_left_out(tmp_path: Path) -> None:
    state = squeezenet_state()
    keys = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {**renamed("module.encoder_q.", state), **renamed("module.encoder_k.", keys)}
    torch.save({"state_dict": {**content, "module.queue": torch.zeros(3, 4)}}, tmp_path / "moco.pth")
    assert body_loaded(model_from(tmp_path / "moco.pth"), state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x89HDF\r\n", "HDF5"),
    ],
)
def test_other_types_of_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match=message):
        model_from(tmp_path / "mine.pth")


def test_the_type_of_file_counts_and_not_its_suffix(tmp_path: Path) -> None:
    state = squeezenet_state()
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert body_loaded(model_from(tmp_path / name), state)


def test_a_checkpoint_is_a_start_for_other_classes(tmp_path: Path) -> None:
    own = SMALL.replace(mean=(0.5, 0.5, 0.5))
    first = classifier(classes=("x", "y", "z"), preprocess=own)
    first.images_seen = TrainingImages()
    path = first.save(tmp_path / "first.safetensors")
    second = TransferClassifier("squeezenet1_1", classes=("a", "b"), weights=path)
    assert body_loaded(second, first.backbone.state_dict())
    # its preprocessing, and the images that it has seen, come with it
    assert second.preprocess == own
    assert second.images_seen == first.images_seen
    with pytest.raises(
        WeightsUnavailableError, match="checkpoint of a squeezenet1_1, expected one of a resnet18"
    ):
        model_from(path, "resnet18")


def test_a_state_dict_is_no_path() -> None:
    state: Any = {"layer.weight": torch.zeros(300)}
    with pytest.raises(
        WeightsUnavailableError, match=r"found a dict, such as a state dict.*pass the path"
    ) as caught:
        resolve_weights("resnet18", state)
    assert "tensor" not in str(caught.value)
