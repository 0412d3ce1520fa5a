from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import medimg
from medimg import Preprocess, TransferClassifier, Window
from medimg.errors import CheckpointError, MedimgWarning
from medimg.models import checkpoint, safetensors_file
from medimg.models import classifier as classifying
from medimg.models.backbones import _torchvision_source, registry
from medimg.models.backbones.heads import new_head
from medimg.models.digest import model_digest, tensors_sha256
from medimg.models.training_distribution import ImageFacts, TrainingDistribution
from medimg.models.training_images import TrainingImages
from tests.models.fakes import changed, classifier, images, state
from tests.sampling import sample


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier().save(tmp_path_factory.mktemp("saved") / "model.safetensors")


def rewrite(
    source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> Path:
    """Write a checkpoint anew after a change to its header or its tensors."""
    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()["medimg"])
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, target, metadata={"medimg": json.dumps(header)})
    return target


def sealed(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """What someone does who changes a file on purpose."""
    header["tensors_sha256"] = tensors_sha256(tensors)
    header["header_sha256"] = safetensors_file.header_sha256(header)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("squeezenet1_1", {}),
        (
            "resnet18",
            {"pool": "attention", "task": "multilabel", "classes": ("Knoten", "größer ≥ 5 mm", "c;d")},
        ),
        ("vit_b_32", {"preprocess": Preprocess(size=96)}),
        ("mnasnet0_5", {"preprocess": Preprocess(size=64, window=Window(-600, 1500), fill=0.1)}),
    ],
)
def test_round_trip_is_bit_identical(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    model = classifier(name, **fields)
    model(torch.randn(4, 3, *model.preprocess.hw))  # batch statistics that are not the initial ones
    path = model.train().save(tmp_path / "model.safetensors")
    rng = torch.get_rng_state()
    loaded = medimg.load(path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not changed(state(model), state(loaded))
    assert not loaded.training
    x = torch.randn(2, 3, *model.preprocess.hw)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), loaded(x))
    for field in ("classes", "task", "pool", "preprocess", "architecture", "weights_name", "weights_sha256"):
        assert getattr(loaded, field) == getattr(model, field)
    assert loaded.preprocess.fingerprint == model.preprocess.fingerprint
    assert all(p.requires_grad for p in loaded.parameters())


def test_other_dtypes_are_kept(tmp_path: Path) -> None:
    model = classifier().to(torch.bfloat16)
    loaded = TransferClassifier.load(model.save(tmp_path / "model.safetensors"))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert not changed(state(model), state(loaded))


def test_loading_needs_no_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    model.weights_name, model.weights_sha256 = "SqueezeNet1_1_Weights.IMAGENET1K_V1", "0" * 64
    path = model.save(tmp_path / "model.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    assert TransferClassifier.load(path).weights_name == "SqueezeNet1_1_Weights.IMAGENET1K_V1"


def test_header_says_what_it_was_made_with(saved: Path) -> None:
    header = checkpoint.read_header(saved)
    assert header["schema"] == checkpoint.SCHEMA == 3
    assert header["classes"] == ["a", "b"]
    assert header["versions"]["medimg"] == medimg.__version__
    assert header["versions"].keys() == {"medimg", "torch", "torchvision", "python"}


def test_saving_replaces_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = classifier().save(tmp_path / "new" / "model.safetensors")
    content = path.read_bytes()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors_file, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        classifier("resnet18").save(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_file_is_as_readable_as_any_other(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "plain").touch()
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.99])
def test_truncated(saved: Path, tmp_path: Path, share: float) -> None:
    content = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"damaged|not a safetensors"):
        medimg.load(path)


@pytest.mark.parametrize("place", [-1, -100_000, 10_000])
def test_one_flipped_bit(saved: Path, tmp_path: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|changed"):
        medimg.load(path)


def test_foreign_files(tmp_path: Path, saved: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of medimg"):
        medimg.load(tmp_path / "plain.safetensors")
    torch.save({"x": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"written by torch\.save"):
        medimg.load(tmp_path / "weights.pth")
    (tmp_path / "text").write_text("hello, this is no model at all")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        medimg.load(tmp_path / "text")
    with pytest.raises(CheckpointError, match="can't be opened"):
        medimg.load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="can't be opened"):
        medimg.load(tmp_path)


@pytest.mark.parametrize("length", [2**63, 100 * 2**20, 17 * 2**20])
def test_announced_header_is_bounded(tmp_path: Path, length: int) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 18 * 2**20)
    with pytest.raises(CheckpointError, match="announces a header of"):
        medimg.load(path)


def set_field(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        header[name] = value

    return change


def drop_tensor(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["head.bias"]


def nudge(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] += 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("classes", ["b", "a"]), "not the one that was saved"),
        (set_field("training", {"best": 1.0}), "not the one that was saved"),
        (set_field("schema", 4), "written by a newer medimg: its schema is 4"),
        (set_field("schema", "1"), "has no schema"),
        (lambda header, _: header.pop("task"), "not the one that was saved"),
        (drop_tensor, "tensors in .* are not those that were saved"),
        (nudge, "tensors in .* are not those that were saved"),
    ],
)
def test_changed_afterwards(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = rewrite(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        medimg.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("classes", "ab"), "classes must be a list of texts; found 'ab'"),
        (lambda header, _: header.pop("task"), "the header must have the fields .*; found missing task"),
        (set_field("task", "regression"), 'task must be "multiclass" or "multilabel"; found \'regression\''),
        (set_field("weights_name", 3), "weights_name must be text; found 3"),
        (set_field("training", []), "training must be null or an object; found a list"),
        (lambda header, _: header["preprocess"].update(window="lung"), "the recipe has fingerprint"),
        (lambda header, _: header["preprocess"].update(size=[]), "can't be built"),
        (lambda header, _: header["preprocess"].update(window={"x": 1}), "can't be built"),
        (
            set_field("architecture", {"name": "resnet18"}),
            "architecture must have the fields .*; found missing transform_input, image_size",
        ),
        (
            set_field("architecture", {"name": "resnet18", "transform_input": 1, "image_size": None}),
            r"architecture\.transform_input must be True or False; found 1",
        ),
        (
            set_field("architecture", {"name": "hf:\x1b[31m", "transform_input": False, "image_size": None}),
            r"architecture\.name is no name of a network; found 'hf:.*x1b",
        ),
        (
            set_field("architecture", {"name": "os.system", "transform_input": False, "image_size": None}),
            "no classification model",
        ),
        (
            set_field("architecture", {"name": "vit_b_32", "transform_input": False, "image_size": 10**9}),
            r"architecture\.image_size must be a whole number from 1 to 2048",
        ),
        (
            set_field("architecture", {"name": "resnet18", "transform_input": False, "image_size": None}),
            "tensors in .* don't fit a resnet18",
        ),
        (set_field("classes", ["a", "b", "c"]), "don't fit"),
        (set_field("pool", "median"), "pool must be"),
        (drop_tensor, "1 tensors in .* don't fit a squeezenet1_1"),
    ],
)
def test_changed_and_sealed_again(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    def both(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        change(header, tensors)
        sealed(header, tensors)

    path = rewrite(saved, tmp_path / "changed.safetensors", both)
    with pytest.raises(CheckpointError, match=message):
        medimg.load(path)


def test_sealing_alone_is_harmless(saved: Path, tmp_path: Path) -> None:
    loaded = medimg.load(rewrite(saved, tmp_path / "same.safetensors", sealed))
    assert not changed(state(loaded), state(medimg.load(saved)))


def test_source_can_be_overwritten_while_the_model_lives(tmp_path: Path) -> None:
    path = classifier().save(tmp_path / "model.safetensors")
    loaded = medimg.load(path)
    before = state(loaded)
    with path.open("rb+") as file:
        file.write(b"\0" * path.stat().st_size)
    assert not changed(before, state(loaded))


class Tiny(torch.nn.Module):
    """So few parameters that every byte of the file can be changed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=4)
        self.head = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(x).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def tiny() -> TransferClassifier:
    """Calibrated, with thresholds, statistics of embeddings and ranges: all that a file can hold."""
    name = "tiny_of_test_checkpoint"
    if name not in registry.registered_names():
        medimg.register_backbone(name, Tiny, mean=(0.5,) * 3, std=(0.5,) * 3, size=16)
    model = classifier(name, preprocess=Preprocess(size=16))
    val, train = (images(20, preprocess=model.preprocess, prefix=name) for name in ("v", "t"))
    with pytest.warns(MedimgWarning, match="no better than chance"):
        medimg.calibrate(model, val, train=train, operating_point="youden")
    facts = [ImageFacts("CT", "DICOM", "CHEST", spacing=(0.7, 0.7), rows=512, columns=512)]
    model.training_ranges = TrainingDistribution.of(facts)
    model.training_summary = {"seed": 0}
    return model


def everything(model: TransferClassifier) -> tuple[object, ...]:
    values = [value.numpy().tobytes() for value in model.state_dict().values()]
    facts = (model.calibration, model.training_ranges, model.training_summary, model.classes, model.task)
    return (*values, *facts, model.pool, model.preprocess, model.weights_name, model.weights_sha256)


def test_round_trip_of_all_that_there_is(tmp_path: Path, tiny: TransferClassifier) -> None:
    loaded = medimg.load(tiny.save(tmp_path / "model.safetensors"))
    assert everything(loaded) == everything(tiny)
    assert not any(name.startswith("outliers") for name in loaded.state_dict())


@pytest.mark.parametrize("part", range(4))
def test_any_byte_changed_is_refused_or_without_effect(
    tmp_path: Path, tiny: TransferClassifier, part: int
) -> None:
    content = tiny.save(tmp_path / "model.safetensors").read_bytes()
    expected = everything(tiny)
    path = tmp_path / "changed.safetensors"
    rng = random.Random(part)
    harmless = 0
    for place in sorted({*range(part, 16, 4), *sample(range(part, len(content), 4))}):
        # every byte in turn, by a few of the changes that it can take
        changed_bytes = bytearray(content)
        changed_bytes[place] ^= rng.choice([1, 2, 4, 8, 16, 32, 64, 128, rng.randrange(1, 256)])
        path.write_bytes(changed_bytes)
        try:
            loaded = medimg.load(path)
        except CheckpointError:
            continue
        assert everything(loaded) == expected, place
        harmless += 1
    assert harmless < 20  # blanks


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_refused_or_without_effect(
    tmp_path: Path, tiny: TransferClassifier, data: st.DataObject
) -> None:
    content = tiny.save(tmp_path / "model.safetensors").read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 64)))
    new = data.draw(st.binary(max_size=64))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content[:start] + new + content[end:])
    try:
        loaded = medimg.load(path)
    except CheckpointError:
        return
    assert everything(loaded) == everything(tiny)


def test_lengths_that_look_like_other_formats(tmp_path: Path, tiny: TransferClassifier) -> None:
    """The first bytes are a length, and may happen to be those of a pickle."""
    first = set()
    for n in range(32):
        tiny.training_summary = {"note": "x" * 8 * n}
        path = tiny.save(tmp_path / "model.safetensors")
        first.add(path.read_bytes()[0])
        medimg.load(path)
    tiny.training_summary = {"seed": 0}
    assert 0x80 in first


#: Of the recipe of `classifier()`, when recipes were saved without a revision.
REVISION_3 = "26f18b225565115a"


def old(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Make it what the first version of medimg wrote."""
    for name in ("calibration", "ranges", "model_sha256"):
        del header[name]
    del header["preprocess"]["revision"]
    header["preprocess_fingerprint"] = REVISION_3
    header["schema"] = 1
    sealed(header, tensors)


def test_files_of_schema_1_are_read(saved: Path, tmp_path: Path) -> None:
    path = rewrite(saved, tmp_path / "old.safetensors", old)
    loaded, expected = medimg.load(path), medimg.load(saved)
    assert not changed(state(loaded), state(expected))
    assert loaded.calibration is None
    assert loaded.training_ranges is None
    # images of 8 bits are windowed as they were in training
    assert loaded.preprocess == expected.preprocess.replace(revision=3)
    again = medimg.load(loaded.save(tmp_path / "again.safetensors"))
    assert again.preprocess == loaded.preprocess
    assert model_digest(again) == model_digest(loaded) != model_digest(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header["calibration"].update(temperature=[0.1]), "not the one that was saved"),
        (
            lambda header, _: header["calibration"].update(temperature=[-1.0]),
            r"calibration\.temperature\[0\] must be",
        ),
        (
            lambda header, _: header["calibration"]["points"][0].update(threshold=7.0),
            r"calibration\.points\[0\]\.threshold must be",
        ),
        (
            lambda header, _: header["ranges"].update(spacing="any"),
            r"ranges\.spacing must be null or two numbers; found 'any'",
        ),
        (lambda header, _: header.update(calibration=None), "not the one that was saved"),
        (lambda _, tensors: tensors.pop("outliers.knots"), "outliers must .* found missing knots"),
        (
            lambda _, tensors: tensors.update({"outliers.more": torch.zeros(1)}),
            "outliers must .* found unknown 'more'",
        ),
        (set_field("model_sha256", "0" * 64), "not the one that was saved"),
        (set_field("schema", 4), "written by a newer medimg: its schema is 4"),
        (set_field("schema", 10**30), "written by a newer medimg"),
    ],
)
def test_decisions_changed_and_sealed_again(
    tiny: TransferClassifier, tmp_path: Path, change: Any, message: str
) -> None:
    def both(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        change(header, tensors)
        sealed(header, tensors)

    path = rewrite(tiny.save(tmp_path / "model.safetensors"), tmp_path / "changed.safetensors", both)
    with pytest.raises(CheckpointError, match=message):
        medimg.load(path)


def test_values_as_deep_as_python_goes_are_refused(saved: Path, tmp_path: Path) -> None:
    """What can just be read can't always be hashed."""
    with safe_open(saved, framework="pt") as opened:
        text = opened.metadata()["medimg"]
    path = tmp_path / "deep.safetensors"
    for depth in range(900, 1000):
        nested = text[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
        save_file({"x": torch.zeros(1)}, path, metadata={"medimg": nested})
        with pytest.raises(CheckpointError, match=r"damaged|not the one"):
            medimg.load(path)


def test_a_path_that_no_system_has() -> None:
    with pytest.raises(CheckpointError, match="can't be opened"):
        medimg.load("a\0b")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8])
def test_numbers_that_nothing_is_computed_with_are_refused(
    saved: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.to(dtype) for name, value in tensors.items()})
        sealed(header, tensors)

    with pytest.raises(CheckpointError, match="don't fit"):
        medimg.load(rewrite(saved, tmp_path / "changed.safetensors", change))


@pytest.mark.parametrize("name", ["vit_h_14", "vgg16"])
def test_a_small_file_takes_little_memory(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither for a large network, nor for classes without number."""
    recipe = Preprocess(size=224)

    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        size = 224 if name == "vit_h_14" else None
        header["architecture"] = {"name": name, "transform_input": False, "image_size": size}
        header["preprocess"], header["preprocess_fingerprint"] = recipe.to_dict(), recipe.fingerprint
        sealed(header, tensors)

    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(_torchvision_source, "get_model", built)
    with pytest.raises(CheckpointError, match="it has 723,522 parameters"):
        medimg.load(rewrite(saved, tmp_path / "changed.safetensors", change))


def test_a_size_that_no_patches_fit_into(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchvision asserts."""
    recipe = Preprocess(size=65)

    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        header["architecture"] = {"name": "vit_b_32", "transform_input": False, "image_size": 65}
        header["preprocess"], header["preprocess_fingerprint"] = recipe.to_dict(), recipe.fingerprint
        sealed(header, tensors)

    monkeypatch.setattr(checkpoint, "_LEAST_SHARE", 0.0)
    with pytest.raises(CheckpointError, match="can't be built"):
        medimg.load(rewrite(saved, tmp_path / "changed.safetensors", change))


def test_classes_that_are_only_claimed_take_no_memory(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def noted(*args: Any, **options: Any) -> Any:
        made.append(new_head(*args, **options))
        return made[-1]

    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        header["classes"] = [f"{n:x}" for n in range(100_000)]
        sealed(header, tensors)

    monkeypatch.setattr(classifying, "new_head", noted)
    with pytest.raises(CheckpointError, match="don't fit a squeezenet1_1 with 100000 classes"):
        medimg.load(rewrite(saved, tmp_path / "changed.safetensors", change))
    assert [head.weight.is_meta for head in made] == [True]


#: What JSON can hold, and a program may choke on.
ODD = [
    None,
    True,
    -1,
    10**30,
    10**400,
    float("inf"),
    float("nan"),
    "x",
    "\ud800",
    [],
    {},
    [10**400],
    {"a": 1},
]


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if above:
        yield above
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from _places(inner, (*above, key))
        else:
            yield (*above, key)


@pytest.mark.parametrize(
    "field", ["architecture", "preprocess", "ranges", "calibration", "images_seen", "classes"]
)
def test_odd_values_anywhere(tiny: TransferClassifier, tmp_path: Path, field: str) -> None:
    """Either it is refused as a checkpoint, or all that it says can be used."""
    tiny.images_seen = TrainingImages()
    source = tiny.save(tmp_path / "model.safetensors")
    header = checkpoint.read_header(source)
    path = tmp_path / "changed.safetensors"
    for n, place in enumerate(_places(header[field], (field,))):
        for odd in sample([*ODD[n % 3 :], *ODD[: n % 3]]):

            def change(
                header: dict[str, Any], tensors: dict[str, torch.Tensor], place: Any = place, odd: Any = odd
            ) -> None:
                inner: Any = header
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = odd
                sealed(header, tensors)

            rewrite(source, path, change)
            try:
                found = medimg.load(path)
            except CheckpointError:
                continue
            assert repr(found)
            ranges = found.training_ranges or TrainingDistribution(0)
            assert [ranges.describe(kind) for kind in ("modality", "body part", "spacing", "slice distance")]
            points = found.calibration.points if found.calibration else ()
            assert all(isinstance(p.sensitivity + p.specificity, float) for p in points)
            assert all(isinstance(p.positives + p.negatives, int) for p in points)
    tiny.images_seen = None
