"""Exported models against the models themselves."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import medimg
from medimg import OnnxClassifier, TransferClassifier
from medimg.calibration.logit_map import LogitMap
from medimg.errors import CheckpointError, MissingDependencyError, TrainingError
from medimg.models.backbones import registry
from medimg.models.low_rank import add_adapters, has_adapters
from medimg.models.pooling import slice_weights
from medimg.models.portable import export as export_module
from medimg.models.portable.onnx_file import read_metadata, seal_file
from medimg.models.portable.parity import check_parity, list_check_images
from medimg.models.portable.portable_network import CalibrationLayer, DetectorLayer, PortableNetwork
from medimg.models.probabilities import model_probabilities
from tests.models.networks import SMALLEST, network
from tests.models.portable_models import (
    MODELS,
    blurred,
    calibrate,
    calibration_fields,
    intensities,
    make_detector,
    make_ensemble,
    portable_model,
    register,
    strengthen,
)
from tests.sampling import SLOW

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir", reason="a dependency of onnxscript")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

#: Largest difference of single precision, far below the limit of the check.
CLOSE = 2e-6


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    register()


def reference(model: TransferClassifier, images: NDArray[np.float32]) -> tuple[Any, Any]:
    """Logits and calibrated probabilities by torch, of images or bags before normalization."""
    flat = torch.from_numpy(images.reshape(-1, *images.shape[-3:]))
    with torch.inference_mode():
        logits = model(model.preprocess.normalize(flat).reshape(images.shape))
    return logits.numpy(), model_probabilities(model, logits)


def run(path: Path, images: NDArray[np.float32]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_onnx_agrees(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    path = model.export(tmp_path / "model.onnx")
    size = model.preprocess.image_shape
    for slices in (1, 7, 40):
        shapes = [(slices, *size)] if model.pool == "none" else [(1, slices, *size), (3, slices, *size)]
        for shape in shapes:
            images = intensities(shape, slices)
            logits, probabilities = reference(model, images)
            found = run(path, images)
            assert np.abs(logits).max() > 0.5
            np.testing.assert_allclose(found["logits"], logits, atol=1e-5, rtol=CLOSE)
            np.testing.assert_allclose(found["probabilities"], probabilities, atol=CLOSE)
            check_scores(model, images, found)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["parity"]["images"] == 7
    assert facts["parity"]["differences"]["logits"] < 1e-5
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.json", "model.onnx"]


def check_scores(model: TransferClassifier, images: NDArray[np.float32], found: dict[str, Any]) -> None:
    """Out-of-distribution scores, and the weights of the slices of each bag."""
    flat = torch.from_numpy(images.reshape(-1, *images.shape[-3:]))
    with torch.inference_mode():
        pooled = model.embed(model.preprocess.normalize(flat).reshape(images.shape))
    outliers = model.calibration.outliers if model.calibration is not None else None
    assert ("ood" in found) == (outliers is not None)
    if outliers is not None:
        np.testing.assert_allclose(found["ood"], outliers.percentiles(pooled.numpy()), atol=1e-4)
    assert ("weights" in found) == (model.pool != "none")
    if model.pool != "none":
        with torch.inference_mode():
            slices = model.embed(model.preprocess.normalize(flat)).reshape(*images.shape[:2], -1)
            expected = [slice_weights(bag, model.pool, model.attention) for bag in slices]
        np.testing.assert_allclose(found["weights"], np.stack(expected), atol=CLOSE)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("method", ["none", "temperature", "platt", "vector", "isotonic"])
def test_calibrations_agree(method: str, classes: int, task: str) -> None:
    fields = calibration_fields(method, task, classes)
    logit_map = LogitMap(**fields)
    logits = np.random.default_rng(0).normal(0, 6, (200, classes)).astype(np.float32)
    expected = logit_map.apply(logits.astype(np.float64), task)
    found = CalibrationLayer(logit_map, task, classes)(torch.from_numpy(logits))
    activate = (lambda z: z.softmax(dim=1)) if task == "multiclass" else torch.sigmoid
    np.testing.assert_allclose(
        activate(found.double()), activate(torch.from_numpy(expected)), atol=2e-6, rtol=1e-5
    )
    assert np.abs(expected - logits).max() > 0.1 or method == "none"


@pytest.mark.parametrize("curve", [((0.0,), (1.0,)), ((0.0, 1e-9, 1.0), (0.0, 0.5, 1.0))])
def test_curves_without_slopes(curve: Any) -> None:
    logit_map = LogitMap("isotonic", curves=(curve,))
    logits = np.linspace(-3, 3, 40).reshape(20, 2)
    layer = CalibrationLayer(logit_map, "multiclass", 2)
    found = layer(torch.from_numpy(logits.astype(np.float32)))
    np.testing.assert_allclose(found, logit_map.apply(logits, "multiclass"), atol=1e-5)


def test_detectors_agree() -> None:
    detector = make_detector(24)
    rows = np.random.default_rng(1).normal(0, 0.5, (300, 24)).astype(np.float32)
    found = DetectorLayer(detector)(torch.from_numpy(rows)).numpy()
    expected = detector.percentiles(rows)
    assert expected.min() < 0.2
    assert expected.max() > 0.9
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_ensembles_agree_without_export(task: str) -> None:
    model = make_ensemble(task=task, classes=("a", "b", "c"))
    images = intensities((6, 3, 32, 32))
    logits, probabilities = reference(model, images)
    found = PortableNetwork(model)(torch.from_numpy(images))
    np.testing.assert_allclose(found[0].detach(), logits, atol=1e-5)
    np.testing.assert_allclose(found[1].detach(), probabilities, atol=CLOSE)


def test_program_agrees(tmp_path: Path) -> None:
    model = calibrate(portable_model(pool="mean"), "platt", detector=True)
    path = model.export(tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    for slices in (1, 7, 40):
        images = intensities((2, slices, *model.preprocess.image_shape))
        logits, probabilities = reference(model, images)
        found = program(torch.from_numpy(images))
        np.testing.assert_allclose(found[0].detach(), logits, atol=1e-5)
        np.testing.assert_allclose(found[1].detach(), probabilities, atol=CLOSE)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = next(content for name, content in members.items() if name.endswith("extra/medimg.json"))
    assert json.loads(manifest)["classes"] == ["a", "b"]
    # neither a pickle, nor a path of this machine
    assert not any(content[:2] == b"\x80\x02" or content[:2] == b"PK" for content in members.values())
    assert not any(b"site-packages" in content for content in members.values())


def test_training_is_not_touched(tmp_path: Path) -> None:
    model = portable_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export(tmp_path / "model.pt2")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_adapters_are_merged() -> None:
    def make() -> nn.Module:
        layers = (nn.Flatten(), nn.Linear(3 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 4))
        return nn.Sequential(nn.AdaptiveAvgPool2d(8), *layers)

    medimg.register_backbone("linear", make, size=32)
    model = TransferClassifier(
        "linear", classes=("a", "b"), weights=None, preprocess=portable_model().preprocess
    )
    add_adapters(model, 2, 0)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter)
    model.eval()
    own = export_module._copy_to_cpu(model)
    assert has_adapters(model)
    assert not has_adapters(own)
    images = intensities((3, 3, 32, 32))
    found = PortableNetwork(own)(torch.from_numpy(images))
    np.testing.assert_allclose(found[0].detach(), reference(model, images)[0], atol=1e-5)


class _TracedOtherwise(nn.Module):
    """A network that an exporter sees differently."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 if torch.compiler.is_exporting() else x


class _Branching(nn.Module):
    """A network that depends on its values in a way that can't be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def _with_layer(layer: nn.Module) -> TransferClassifier:
    def make() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), layer, nn.Flatten(), nn.Linear(12, 4))

    medimg.register_backbone("odd", make, size=32)
    model = TransferClassifier(
        "odd", classes=("a", "b"), weights=None, preprocess=portable_model().preprocess
    )
    nn.init.ones_(model.head.weight[0])
    return model.eval()


class _OwnOperator(nn.Module):
    """A network with an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.special.bessel_j0(x)
        return found


class _FixedBatch(nn.Module):
    """A network that does something else with a single image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x


@pytest.mark.parametrize(
    ("layer", "suffix", "message"),
    [
        (_TracedOtherwise(), "pt2", r"logits differ by up to 0\.\d+; expected at most 0\.0001"),
        (_FixedBatch(), "onnx", r"logits differ by up to 0\.\d+; expected at most 0\.0001"),
        (_FixedBatch(), "pt2", r"logits differ by up to 0\.\d+; expected at most 0\.0001"),
        (_Branching(), "onnx", r"can't be exported to \.onnx: .*data-dependent expression"),
        (_Branching(), "pt2", r"can't be exported to \.pt2: .*data-dependent expression"),
        (_OwnOperator(), "onnx", "No ONNX function found for .*bessel_j0"),
    ],
)
def test_what_predicts_otherwise_is_not_written(
    layer: nn.Module, suffix: str, message: str, tmp_path: Path
) -> None:
    model = _with_layer(layer)
    before = tmp_path / f"model.{suffix}"
    before.write_text("former")
    with pytest.raises(CheckpointError, match=message):
        model.export(before)
    assert before.read_text() == "former"
    assert list(tmp_path.iterdir()) == [before]


def test_own_images_are_compared(tmp_path: Path) -> None:
    model = portable_model()
    volume = medimg.Volume.from_array(intensities((4, 40, 40)) * 1000)
    model.export(tmp_path / "model.pt2", check=[volume, volume])
    assert json.loads((tmp_path / "model.json").read_text())["parity"]["images"] == 8
    with pytest.raises(medimg.errors.ReadError):
        model.export(tmp_path / "other.pt2", check=tmp_path / "missing.dcm")
    with pytest.raises(TrainingError, match="check= has no images"):
        model.export(tmp_path / "other.pt2", check=[])
    assert not (tmp_path / "other.pt2").exists()


def test_bad_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = portable_model()
    with pytest.raises(CheckpointError, match=r"must end with \.onnx or \.pt2"):
        model.export(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="path must be a path"):
        model.export(3)  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(CheckpointError, match="tolerance must be"):
        model.export(tmp_path / "model.onnx", tolerance=0)
    with pytest.raises(CheckpointError, match=r"parameters of torch\.float16"):
        portable_model().half().export(tmp_path / "model.onnx")
    calibrated = calibrate(portable_model(), "temperature")
    with torch.no_grad():
        calibrated.head.weight.add_(1)
    with pytest.raises(TrainingError, match="after calibration"):
        calibrated.export(tmp_path / "model.onnx")
    monkeypatch.setattr(export_module, "MOST_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"export it to \.pt2"):
        model.export(tmp_path / "model.onnx")

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(export_module, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"medimg\[export\]"):
        model.export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pool", ["none", "attention"])
def test_the_check_notices_wrong_numbers(pool: str, tmp_path: Path) -> None:
    model = portable_model(pool=pool, classes=("a", "b", "c"))
    with torch.no_grad():
        model.head.weight.mul_(0.2)  # probabilities that are neither 0 nor 1
        if model.attention is not None:
            nn.init.normal_(model.attention.score.weight)
    # without a detector, whose scores are 1 for any image that is unlike those of the training
    calibrate(model, "vector")
    content = onnx.load(model.export(tmp_path / "model.onnx"))
    own = export_module._copy_to_cpu(model)
    images = list_check_images(own, None)
    weights = [one for one in content.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    noticed = 0
    path = tmp_path / "changed.onnx"
    for weight in weights:
        before = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(before * np.float32(1.5), weight.name))
        path.write_bytes(content.SerializeToString())
        seal_file(path)
        weight.CopyFrom(onnx.numpy_helper.from_array(before, weight.name))
        try:
            check_parity(own, OnnxClassifier(path), images, 1e-4)
            print("unnoticed:", weight.name, before.shape)
        except CheckpointError:
            noticed += 1
    # the bias of attention's last layer is the same for all slices
    assert noticed == len(weights) - (pool == "attention")
    assert noticed >= 8


def test_a_wrong_number_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = torch.onnx.export

    def export_wrongly(*args: Any, **options: Any) -> Any:
        program: Any = exporter(*args, **options)
        tensor = max(program.model.graph.initializers.values(), key=lambda one: one.const_value.size)
        tensor.const_value = onnx_ir.tensor(tensor.const_value.numpy() * np.float32(1.03))
        return program

    monkeypatch.setattr(torch.onnx, "export", export_wrongly)
    with pytest.raises(CheckpointError, match="does not predict what the model does: logits differ"):
        portable_model().export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_that_could_not_be_used_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = torch.onnx.export

    def export_fixed(*args: Any, **options: Any) -> Any:
        return exporter(*args, **(options | {"dynamic_shapes": None}))

    monkeypatch.setattr(torch.onnx, "export", export_fixed)
    with pytest.raises(CheckpointError, match=r"^portable: model\.onnx has the inputs .* expected images of"):
        portable_model().export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_description_is_the_same_twice(tmp_path: Path) -> None:
    model = calibrate(portable_model(pool="mean"), "platt", detector=True)
    path = model.export(tmp_path / "model.onnx")
    beside = json.loads((tmp_path / "model.json").read_text())
    assert beside.pop("file") == "model.onnx"
    assert beside.pop("file_sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert beside.pop("parity")["images"] == 7
    assert json.loads(read_metadata(path.read_bytes())["medimg"]) == beside
    read = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert json.loads(read["medimg"]) == beside


@pytest.mark.slow
@pytest.mark.skipif(not SLOW, reason="all networks: set MEDIMG_SLOW=1")
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_families_agree(name: str, suffix: str, tmp_path: Path) -> None:
    model = network(name)
    # with those of the check: networks explode on images that are unlike those of their statistics
    images = np.concatenate([blurred(33, model.preprocess.image_shape), *list_check_images(model, None)])
    assert strengthen(model, images, deviation=1.0) > 0.05
    path = model.export(tmp_path / f"model.{suffix}")
    program = torch.export.load(path).module() if suffix == "pt2" else None
    largest = np.abs(reference(model, images)[0]).max()
    assert largest > 1.5
    for count in (1, 7, 40):
        logits, probabilities = reference(model, images[:count])
        if program is None:
            found = run(path, images[:count])
        else:
            results = program(torch.from_numpy(images[:count]))
            found = dict(zip(("logits", "probabilities"), results, strict=True))
        # some differ by as much from themselves, in batches of 1 and of 40
        np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4 * largest)
        np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-4)
