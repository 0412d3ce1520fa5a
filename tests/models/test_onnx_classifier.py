"""Exported models that are run without torch: the table of the model itself, and hostile files."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import medimg
from medimg import OnnxClassifier, TransferClassifier
from medimg.errors import (
    CheckpointError,
    ExecutorError,
    MedimgError,
    MedimgWarning,
    PreprocessError,
    TrainingError,
)
from medimg.models.backbones import registry
from medimg.models.portable.onnx_file import read_metadata, seal_file
from medimg.models.training_distribution import TrainingDistribution
from medimg.phantom import Identity, chest_ct, write_ct_series
from tests.models.portable_models import MODELS, calibrate, intensities, portable_model, register

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

_WITHOUT_TORCH = """
import json
import sys

# torch, and what the user guide says is not needed
BLOCKED = {"torch", "torchvision", "monai", "pytorch_lightning", "sklearn", "SimpleITK", "matplotlib"}
BLOCKED |= {"onnx", "safetensors", "jinja2", "threadpoolctl"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import medimg

folder, source = sys.argv[1:]
for name in json.loads(sys.stdin.read()):
    model = medimg.OnnxClassifier(f"{folder}/{name}.onnx")
    for unit in ("series", "image"):
        table = model.predict(source, unit=unit, provenance=True)
        table.to_json(f"{folder}/{name}.{unit}.json", orient="split", double_precision=15)
    print(model.predict_proba(source).shape)
assert "torch" not in sys.modules
"""


class Exported:
    """A model, the file that it was exported to, and a series."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_OWN", {})
            register()
            model = portable_model(pool="attention", classes=("a", "b", "c"))
        self.model: TransferClassifier = calibrate(model, "vector", detector=True)
        self.path = self.model.export(folder / "model.onnx")
        self.series = folder / "series"
        self.series.mkdir()
        write_ct_series(chest_ct(3, slices=7, size=64), self.series, Identity.derive("exported", 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
@pytest.mark.parametrize("kind", ["processes", "threads"])
@pytest.mark.parametrize("unit", ["series", "image"])
def test_by_an_executor(exported: Exported, kind: str, unit: Any) -> None:
    model = OnnxClassifier(exported.path)
    sources = [exported.series, "nowhere", medimg.read(exported.series)]
    pool: Executor = ThreadPoolExecutor(2)
    if kind == "processes":
        pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    with pool as executor:
        found = model.predict(
            sources, unit=unit, on_error="collect", provenance=True, executor=executor, progress=False
        )
        with pytest.raises(MedimgError, match="nowhere") as raised:
            model.predict(sources, executor=executor)
        proba = model.predict_proba(exported.series, executor=executor)
    expected = model.predict(sources, unit=unit, on_error="collect", provenance=True)
    assert_same(found, expected)
    assert "source 1, counted from 0" in raised.value.__notes__[0]
    assert np.allclose(proba, model.predict_proba(exported.series))


def test_workers_get_the_file_that_was_loaded(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copyfile(exported.path, path)
    model = OnnxClassifier(path)
    seal = path.read_bytes()
    path.write_bytes(seal + b"\0")
    with ThreadPoolExecutor(1) as executor, pytest.raises(CheckpointError):
        model.predict(exported.series, executor=executor)
    path.unlink()
    with ThreadPoolExecutor(1) as executor, pytest.raises(CheckpointError):
        model.predict(exported.series, executor=executor)
    with pytest.raises(ExecutorError, match="concurrent"):
        model.predict(exported.series, executor=3)  # type: ignore[arg-type]  # what is refused


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert list(found.columns) == list(expected.columns)
    for name in expected.columns:
        if expected[name].dtype == np.float64:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4 if name == "ood" else 2e-6)
        else:
            assert found[name].tolist() == expected[name].tolist(), name


def predict(model: Any, *args: Any, **options: Any) -> tuple[pd.DataFrame, list[str]]:
    """A table, and the warnings."""
    with warnings.catch_warnings(record=True, action="always", category=MedimgWarning) as caught:
        table = model.predict(*args, **options)
    return table, [str(one.message) for one in caught]


def test_tables_are_those_of_the_models_without_torch(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    register()
    models = {name: make() for name, make in MODELS.items()}
    models["max, labels"].training_ranges = TrainingDistribution(1, modalities=("MR",))
    for name, model in models.items():
        model.export(tmp_path / f"{name}.onnx")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITHOUT_TORCH, str(tmp_path), str(exported.series)],
        input=json.dumps(list(models)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"(1, {len(model.classes)})" for model in models.values()]
    columns = set()
    for name, model in models.items():
        here = OnnxClassifier(tmp_path / f"{name}.onnx")
        for unit in ("series", "image"):
            expected, warned = predict(model, exported.series, unit=unit, provenance=True)
            assert len(expected) == (1 if unit == "series" else 7)
            read = pd.read_json(tmp_path / f"{name}.{unit}.json", orient="split", precise_float=True)
            assert_same(read, expected)
            found, also_warned = predict(here, exported.series, unit=unit, provenance=True)
            assert_same(found, expected)
            assert also_warned == warned
            assert found.attrs == expected.attrs
            columns |= set(expected.columns)
    assert columns >= {"predicted", "flagged", "set", "ood", "unlike", "weight", "model", "recipe"}


def test_facts(exported: Exported) -> None:
    model, found = exported.model, OnnxClassifier(exported.path, threads=1)
    assert (found.classes, found.task, found.pool) == (model.classes, model.task, model.pool)
    assert found.preprocess == model.preprocess
    assert found.providers == ("CPUExecutionProvider",)
    assert found.calibration is not None
    assert model.calibration is not None
    assert found.calibration.points == model.calibration.points
    table, own = found.predict(exported.series), model.predict(exported.series)
    assert table.attrs == own.attrs
    assert_same(table, own)
    assert "classes=('a', 'b', 'c')" in repr(found)
    np.testing.assert_allclose(
        found.predict_proba([exported.series] * 2),
        own[["p_a", "p_b", "p_c"]].to_numpy().repeat(2, 0),
        atol=2e-6,
    )


def test_sources_that_fail(exported: Exported, tmp_path: Path) -> None:
    model = OnnxClassifier(exported.path)
    table = model.predict([tmp_path / "missing", exported.series], on_error="collect")
    assert "Error: " in table["error"][0]
    assert pd.isna(table["error"][1])
    with pytest.raises(MedimgError):
        model.predict(tmp_path / "missing")
    with pytest.raises(TrainingError, match="unit"):
        model.predict(exported.series, unit="patient")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TrainingError, match="takes image files"):
        model.predict(intensities((3, 32, 32)))


def test_the_example(exported: Exported, tmp_path: Path) -> None:
    example = Path(medimg.__file__).parents[1] / "examples" / "onnx_prediction.py"
    if not example.is_file():
        pytest.skip("the examples are not installed")
    (tmp_path / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM")
    arguments = [str(exported.path), str(exported.series), str(tmp_path / "damaged.dcm")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(example), *arguments, "--output", str(tmp_path / "table.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = exported.model.predict(exported.series)
    assert done.returncode == 1
    assert f"{exported.series}: {expected['predicted'][0]} (a {expected['p_a'][0]:.3f}, b " in done.stdout
    assert f"{tmp_path / 'damaged.dcm'}: " in done.stdout
    assert "1 series in " in done.stdout
    table = pd.read_csv(tmp_path / "table.csv")
    np.testing.assert_allclose(table["p_a"][0], expected["p_a"][0], atol=2e-6)


def test_arrays(exported: Exported) -> None:
    model = OnnxClassifier(exported.path)
    assert set(model(intensities((2, 5, 3, 32, 32)))) == {"logits", "probabilities", "ood", "weights"}
    for shape in ((5, 3, 32, 32), (1, 5, 3, 32, 33), (1, 0, 3, 32, 32), (1, 5, 1, 32, 32)):
        with pytest.raises(PreprocessError, match=r"\(bags, slices, 3, 32, 32\); found"):
            model(np.zeros(shape, np.float32))
    with pytest.raises(TrainingError, match="not finite"):
        model(np.full((1, 2, 3, 32, 32), np.nan, np.float32))


def test_providers(exported: Exported) -> None:
    assert OnnxClassifier(exported.path, providers=[("CPUExecutionProvider", {})]).providers
    with pytest.raises(TrainingError, match="a provider must be"):
        OnnxClassifier(exported.path, providers=["CudaExecutionProvider"])
    several: tuple[Any, ...] = ("CPUExecutionProvider", [], 3)
    for wrong in several:
        with pytest.raises(TrainingError, match="providers must be a list"):
            OnnxClassifier(exported.path, providers=wrong)
    with pytest.raises(TrainingError, match="threads"):
        OnnxClassifier(exported.path, threads=0)


def test_a_provider_that_does_not_start(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    # as where it is built in, and its libraries are missing
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),
        pytest.raises(TrainingError, match="can't start CUDAExecutionProvider"),
    ):
        OnnxClassifier(exported.path, providers=there)


def _change_metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        facts = json.loads(model.metadata_props[0].value)
        found = change(facts)
        model.metadata_props[0].value = json.dumps(facts) if found is None else found

    return apply


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return _change_metadata(lambda facts: facts.__setitem__(name, value))


def _set_recipe(name: str, value: Any) -> Callable[[Any], None]:
    return _change_metadata(lambda facts: facts["preprocess"].__setitem__(name, value))


def _move_weights(model: Any) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _move_nested_weights(model: Any) -> None:
    tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    inner = onnx.GraphProto(name="inner")
    inner.initializer.append(tensor)
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="body", type=5, g=inner))


def _nest(model: Any) -> None:
    graph = onnx.GraphProto(name="last")
    for _ in range(12):
        outer = onnx.GraphProto(name="outer")
        node = outer.node.add(op_type="If")
        node.attribute.append(onnx.AttributeProto(name="then_branch", type=5, g=graph))
        graph = outer
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="body", type=5, g=graph))


MANIPULATED = {
    "no metadata": (
        lambda model: model.ClearField("metadata_props"),
        "does not say that it is a model of medimg",
    ),
    "no JSON": (_change_metadata(lambda _: "{"), "is not JSON"),
    "deep JSON": (_change_metadata(lambda _: "[" * 100_000), "is not JSON"),
    "a list": (_change_metadata(lambda _: "[]"), "has no schema"),
    "newer": (_set("schema", 99), "newer medimg"),
    "without a field": (_change_metadata(lambda facts: facts.pop("classes") and None), "missing classes"),
    "other classes": (_set("classes", ["a", "b"]), "calibration"),
    "no classes": (_set("classes", [1, 2]), "classes must be"),
    "other task": (_set("task", "regression"), "task must be"),
    "other pool": (_set("pool", "none"), "expected images of shape"),
    "other recipe": (_set_recipe("window", "lung"), "fingerprint"),
    "unsound recipe": (_set_recipe("size", -1), "unsound"),
    "no recipe": (_set("preprocess", 3), "preprocess must be"),
    "outputs": (_set("outputs", ["logits", "probabilities", "secrets"]), "outputs must be"),
    "calibration": (_set("calibration", {"unit": "series"}), "missing"),
    "weights elsewhere": (_move_weights, "weights are in other files"),
    "weights of a branch elsewhere": (_move_nested_weights, "weights are in other files"),
    "deep graphs": (_nest, "nested deeper"),
    "another operator": (
        lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOperator"),
        "ONNX Runtime can't load",
    ),
}


@pytest.mark.parametrize("name", MANIPULATED)
def test_manipulated_files(name: str, exported: Exported, tmp_path: Path) -> None:
    change, message = MANIPULATED[name]
    model = onnx.load(exported.path)
    change(model)
    path = tmp_path / "model.onnx"
    # by somebody who knows how files are sealed
    write_sealed(path, model.SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        OnnxClassifier(path)


def write_sealed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    seal_file(path)


@pytest.mark.parametrize("what", ["threshold", "weights", "seal", "end"])
def test_changed_files_are_noticed(what: str, exported: Exported, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    changed = {
        "threshold": content.replace(b'"threshold": 0.4', b'"threshold": 0.9'),
        "weights": flip_weight(exported.path),
        "seal": content[:-1] + (b"1" if content[-1:] == b"0" else b"0"),
        "end": content + b"\x72\x02\x0a\x00",  # an empty entry of the metadata
    }[what]
    assert changed != content
    path = tmp_path / "model.onnx"
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="is not the one that it states"):
        OnnxClassifier(path)
    # they are models nevertheless
    onnx.checker.check_model(onnx.load(path))


def flip_weight(path: Path) -> bytes:
    """Return the content of a file with one bit of a weight changed."""
    content = bytearray(path.read_bytes())
    tensor = max(onnx.load(path).graph.initializer, key=lambda one: len(one.raw_data)).raw_data
    content[content.index(tensor) + 3] ^= 1
    return bytes(content)


@pytest.mark.parametrize("high", [1, 7])
def test_numbers_of_fields_that_other_parsers_cut(high: int, exported: Exported) -> None:
    content = exported.path.read_bytes()
    assert read_metadata(content + varint(14 << 3 | 2) + b"\0")
    # 32 bits are left of it: a tensor's data in another file could be hidden like this
    with pytest.raises(CheckpointError, match="damaged"):
        read_metadata(content + varint(high << 32 | 14 << 3 | 2) + b"\0")


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_damaged_files(exported: Exported, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    path = tmp_path / "model.onnx"
    generator = np.random.default_rng(0)
    damaged = [
        b"",
        b"\x80\x04",
        b"PK\x03\x04",
        generator.bytes(3000),
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\xff" * 200,
    ]
    damaged += [content[:n] for n in (1, 10, 1000, len(content) // 2, len(content) - 1)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            OnnxClassifier(path)
    with pytest.raises(CheckpointError, match="it is a folder"):
        OnnxClassifier(tmp_path)
    with pytest.raises(FileNotFoundError, match="can't be opened"):
        OnnxClassifier(tmp_path / "missing.onnx")


def test_random_damage_is_no_other_error(
    exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = exported.path.read_bytes()
    path = tmp_path / "model.onnx"
    images = intensities((1, 3, *exported.model.preprocess.image_shape))
    generator = np.random.default_rng(1)
    refused = 0
    for n in range(300):
        write_sealed(path, damage(content, n % 4, generator))
        try:
            OnnxClassifier(path, threads=1)(images)
        except MedimgError:
            refused += 1
    assert 100 < refused < 300
    # ONNX Runtime says nothing that is not in the error
    assert capfd.readouterr() == ("", "")


def damage(content: bytes, how: int, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    first, last = sorted(int(n) for n in generator.integers(0, len(content), 2))
    if how == 0:
        del changed[first:]
    elif how == 1:
        for position in generator.integers(0, len(content), 5):
            changed[position] = generator.integers(256)
    elif how == 2:
        changed[first] ^= 1 << int(generator.integers(8))
    else:
        changed[last:last] = changed[first : first + 100]
    return bytes(changed)


def test_the_file_beside(exported: Exported, tmp_path: Path) -> None:
    path, beside = tmp_path / "model.onnx", tmp_path / "model.json"
    write_sealed(path, flip_weight(exported.path))
    beside.write_bytes(exported.path.with_suffix(".json").read_bytes())
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        OnnxClassifier(path)
    # of another file, or of something else
    for other in (json.dumps({"file": "other.onnx", "file_sha256": "0"}), "{", "[1]"):
        beside.write_text(other)
        OnnxClassifier(path)


def test_a_missing_runtime(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    from medimg.models.portable import onnx_session

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(onnx_session, "import_module", missing)
    with pytest.raises(medimg.errors.MissingDependencyError, match=r"medimg\[export\]"):
        OnnxClassifier(exported.path)
