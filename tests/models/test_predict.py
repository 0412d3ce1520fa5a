from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import medimg
from medimg import ImageDataset, Preprocess
from medimg.core import geometry
from medimg.errors import MedimgWarning, PreprocessError, ReadError, TrainingError
from tests.dicom_files import make_instance, write
from tests.models.fakes import Images, classifier, images

RECIPE = Preprocess(size=32, window="percentile")


def volume(slices: int, seed: int = 0) -> medimg.Volume:
    values = np.random.default_rng(seed).normal(size=(1, slices, 48, 48)).astype(np.float32)
    return medimg.Volume(values, geometry.image_affine((2.0, 0.5, 0.5)))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for n in range(3):
            pixels = rng.integers(0, 256, (40, 30 + n), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"p{n}_{name}.png")
    return root


@pytest.mark.usefixtures("narrow")
def test_training_evaluation_and_prediction_see_the_same(photographs: Path, tmp_path: Path) -> None:
    dataset = ImageDataset.from_folder(photographs, RECIPE, patient=r"(p\d+_\w)")
    model = classifier("resnet18", preprocess=RECIPE)
    medimg.fine_tune(model, dataset, head_epochs=1, epochs=1, batch_size=4, progress=False)
    loaded = medimg.load(model.save(tmp_path / "model.safetensors"))
    for index, source in enumerate(dataset.sources):
        assert torch.equal(loaded.preprocess(source)[0], dataset[index][0])
    table = loaded.predict(dataset.sources, unit="image")
    assert list(table.columns) == [
        "source", "series_uid", "sop_instance_uid", "slice", "predicted", "p_a", "p_b", "weight",
        "unlike",
    ]  # fmt: skip
    assert table["source"].tolist() == list(dataset.sources)
    assert np.array_equal(table[["p_a", "p_b"]].to_numpy(), model.predict_proba(dataset))
    assert table["predicted"].tolist() == ["ab"[n] for n in model.predict_proba(dataset).argmax(axis=1)]


def test_batches_reach_across_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(preprocess=RECIPE)
    sizes = []
    model.backbone.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    sources = [volume(3, seed=0), volume(1, seed=1), volume(4, seed=2)]
    table = model.predict(sources, unit="image", batch_size=3)
    assert sizes == [3, 3, 2]
    assert table["source"].tolist() == ["volume 0"] * 3 + ["volume 1"] + ["volume 2"] * 4
    alone = model.predict(sources[2], unit="image")
    np.testing.assert_allclose(table["p_a"][4:], alone["p_a"], rtol=1e-5)
    assert sorted(alone["slice"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("pool", ["none", "mean", "max", "attention"])
def test_one_row_per_series(pool: str) -> None:
    model = classifier(preprocess=RECIPE, pool=pool)
    table = model.predict([volume(5), volume(2, seed=1)], batch_size=2)
    assert list(table.columns) == ["source", "series_uid", "predicted", "p_a", "p_b"]
    planes = RECIPE(volume(5))
    with torch.no_grad():
        model.eval()
        if pool == "none":
            expected = model(planes).double().softmax(dim=1).mean(dim=0)
        else:
            expected = model(planes[None]).double().softmax(dim=1)[0]
    np.testing.assert_allclose(table.loc[0, ["p_a", "p_b"]].to_numpy(float), expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("pool", ["none", "max"])
def test_bags_of_a_data_set(pool: str) -> None:
    bags = Images(np.array([0, 1, 0]), unit="series", lengths=(3, 1, 5))
    model = classifier(pool=pool)
    proba = model.predict_proba(bags, batch_size=2)
    model.eval()
    with torch.no_grad():
        for row, bag in zip(proba, bags.images, strict=True):
            logits = model(bag) if pool == "none" else model(bag[None])
            np.testing.assert_allclose(row, logits.double().softmax(dim=1).mean(dim=0).numpy(), rtol=1e-4)


@pytest.mark.parametrize("pool", ["none", "mean", "max", "attention"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_weights_of_slices_in_their_series(pool: str, batch_size: int) -> None:
    model = classifier(preprocess=RECIPE, pool=pool)
    sources = [volume(5), volume(1, seed=1), volume(4, seed=2)]
    table = model.predict(sources, unit="image", batch_size=batch_size)
    assert list(table.columns)[-3:] == ["p_a", "p_b", "weight"]
    assert table["source"].tolist() == ["volume 0"] * 5 + ["volume 1"] + ["volume 2"] * 4
    for name, source in zip(("volume 0", "volume 1", "volume 2"), sources, strict=True):
        rows = table[table["source"] == name]
        assert rows["weight"].sum() == pytest.approx(1)
        with torch.no_grad():
            embeddings = model.eval().embed(RECIPE(source))
        weights = torch.full((len(rows),), 1 / len(rows))
        if model.attention is not None:
            weights = model.attention.weights(embeddings[None])[0].detach()
            assert len(rows) == 1 or weights.std() > 0
        elif pool == "max":
            highest = embeddings.amax(dim=0)
            # squeezenet's features end in ReLU: slices share those that are 0 in all
            shares = (embeddings == highest).double()
            weights = (shares / shares.sum(dim=0)).mean(dim=1)
        np.testing.assert_allclose(rows["weight"], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_each_slice_is_scored_as_a_bag_of_its_own(pool: str) -> None:
    model = classifier(preprocess=RECIPE, pool=pool)
    source = volume(4)
    table = model.predict(source, unit="image")
    bags = RECIPE(source)[:, None]
    with torch.no_grad():
        expected = model.eval()(bags).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(table[["p_a", "p_b"]], expected, rtol=1e-4)
    if pool == "mean":
        # the head is affine: the series' logits are the mean of the slices'
        with torch.no_grad():
            logits = model(bags[:, 0][None])
            torch.testing.assert_close(logits[0], model(bags).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_a_long_series_passes_in_parts() -> None:
    model = classifier(preprocess=RECIPE, pool="attention")
    sizes = []
    model.backbone.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    long = medimg.Volume(
        np.random.default_rng(0).normal(size=(1, 75, 8, 8)), geometry.image_affine((2, 1, 1))
    )
    table = model.predict(long, unit="image", batch_size=32)
    assert sizes == [32, 32, 11]
    assert table["weight"].sum() == pytest.approx(1)
    sizes.clear()
    model.predict(long, batch_size=32)
    assert sizes == [32, 32, 11]


@pytest.mark.parametrize("unit", ["series", "image"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_errors_are_collected(tmp_path: Path, unit: Literal["series", "image"], batch_size: int) -> None:
    (tmp_path / "none.png").write_bytes(b"no picture")
    model = classifier(preprocess=RECIPE, pool="mean")
    bad = [tmp_path / "none.png", tmp_path / "absent.dcm"]
    good = [volume(3), volume(2, seed=1)]
    table = model.predict(
        [bad[0], good[0], bad[1], good[1], bad[0]], unit=unit, batch_size=batch_size, on_error="collect"
    )
    counts = [1, 3, 1, 2, 1] if unit == "image" else [1] * 5
    names = [os.fspath(bad[0]), "volume 1", os.fspath(bad[1]), "volume 3", os.fspath(bad[0])]
    assert table["source"].tolist() == [name for name, n in zip(names, counts, strict=True) for _ in range(n)]
    failed = table["error"].notna()
    assert table.loc[failed, "source"].tolist() == names[::2]
    assert table.loc[failed, ["predicted", "p_a", "p_b"]].isna().all(axis=None)
    assert "NotAnImageError" in table["error"].iloc[0]
    assert table.loc[~failed, ["p_a", "p_b", "predicted"]].notna().all(axis=None)
    alone = model.predict(good, unit=unit, batch_size=batch_size)
    assert "error" not in alone
    np.testing.assert_allclose(table.loc[~failed, "p_a"], alone["p_a"], rtol=1e-5)
    if unit == "image":
        assert table["slice"].dtype == pd.Int64Dtype()
        assert table.loc[failed, ["slice", "weight"]].isna().all(axis=None)
        assert sorted(table.loc[~failed, "slice"]) == [0, 0, 1, 1, 2]


def test_collected_errors_say_nothing_of_a_patient(tmp_path: Path) -> None:
    sources = [tmp_path / f"{n}.dcm" for n in range(3)]
    pixels = np.zeros((16, 16), dtype=np.int16)
    write(make_instance(pixels, Rows=4000), sources[0])
    write(make_instance(pixels, PixelData=None), sources[1])
    write(make_instance(pixels), sources[2])
    sources[2].write_bytes(sources[2].read_bytes()[:-100])
    table = classifier(preprocess=RECIPE).predict(sources, on_error="collect")
    assert table["error"].notna().all()
    assert "sentinel" not in table.to_csv().lower()


def test_only_bad_sources(tmp_path: Path) -> None:
    sources: Any = [tmp_path / "a.dcm", 3]
    table = classifier().predict(sources, unit="image", on_error="collect")
    assert table["error"].notna().all()
    assert len(table) == 2
    assert list(classifier().predict([], on_error="collect").columns)[-1] == "error"


def test_other_errors_are_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(preprocess=RECIPE)

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Preprocess, "render", fails)
    with pytest.raises(MemoryError):
        model.predict(volume(1), on_error="collect")


def test_labels_are_joined() -> None:
    model = classifier(preprocess=RECIPE, task="multilabel", classes=("a", "b", "c"))
    with torch.no_grad():
        model.head.weight.zero_()
        assert model.head.bias is not None
        model.head.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    table = model.predict(volume(1))
    assert table["predicted"].tolist() == ["a;c"]
    assert table["p_a"][0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_predicting_leaves_the_mode_alone() -> None:
    for mode in (True, False):
        model = classifier(preprocess=RECIPE).train(mode)
        model.predict(volume(1))
        assert model.training is mode
        model.predict_proba(images(2, preprocess=RECIPE))
        assert model.training is mode


def test_no_source_no_row() -> None:
    assert len(classifier().predict([])) == 0


def test_unsound_calls() -> None:
    model = classifier()
    with pytest.raises(TrainingError, match="unit must be"):
        model.predict(volume(1), unit="patient")  # type: ignore[arg-type]  # refused
    with pytest.raises(TrainingError, match="on_error"):
        model.predict(volume(1), on_error="ignore")  # type: ignore[arg-type]  # refused
    for wrong in (0, 2.5, "a", None, True):
        with pytest.raises(TrainingError, match="batch_size"):
            model.predict(volume(1), batch_size=wrong)  # type: ignore[arg-type]  # refused
        with pytest.raises(TrainingError, match="batch_size"):
            model.predict_proba(images(2), batch_size=wrong)  # type: ignore[arg-type]  # refused
    for use in (model.predict_proba, lambda data, **options: medimg.calibrate(model, data, **options)):
        with pytest.raises(TrainingError, match="workers"):
            use(images(20), workers="a")  # type: ignore[arg-type]  # refused
    with pytest.raises(TrainingError, match="found a list"):
        model.predict_proba([1, 2])  # type: ignore[arg-type]  # refused
    with pytest.raises(PreprocessError, match="with_preprocess"):
        model.predict_proba(images(2, preprocess=Preprocess(size=64, window="lung")))


def test_unreadable_source_says_which(tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(b"no picture")
    with pytest.raises(ReadError) as caught:
        classifier().predict([volume(1), tmp_path / "none.png"])
    assert any("source 1" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pool", ["none", "attention"])
def test_models_of_other_precision(dtype: torch.dtype, pool: str) -> None:
    expected = classifier(pool=pool, preprocess=RECIPE).predict(volume(3))
    found = classifier(pool=pool, preprocess=RECIPE).to(dtype).predict(volume(3))
    assert found["p_a"][0] == pytest.approx(expected["p_a"][0], abs=0.02)


def test_nothing_is_decided_by_what_is_no_number() -> None:
    model = classifier(preprocess=RECIPE)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    data = images(20, preprocess=RECIPE)
    for use in (
        lambda: model.predict(volume(1)),
        lambda: model.predict_proba(data),
        lambda: medimg.calibrate(model, data),
    ):
        with pytest.raises(TrainingError, match=r"logits of .* are not finite"):
            use()
    assert model.calibration is None


@pytest.mark.parametrize("unit", ["series", "image"])
def test_a_folder_of_several_series_has_a_row_for_each(
    photographs: Path, tmp_path: Path, unit: Literal["series", "image"]
) -> None:
    model = classifier(preprocess=RECIPE)
    found = model.predict(photographs, unit=unit)
    index = medimg.scan(photographs)
    expected = model.predict(index, unit=unit)
    assert len(found) == 6
    pd.testing.assert_frame_equal(found, expected)
    # one series keeps the name it was given, and other sources stand beside folders
    one = photographs / "a" / "p0_a.png"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.png").write_bytes(one.read_bytes())
    table = model.predict([tmp_path / "one", photographs / "b", volume(1)], unit=unit)
    assert table["source"].tolist() == [
        str(tmp_path / "one"), *(str(photographs / "b" / f"p{n}_b.png") for n in range(3)), "volume 2"
    ]  # fmt: skip


def test_a_damaged_series_of_a_folder_is_its_own_row(photographs: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes((photographs / "a" / "p0_a.png").read_bytes())
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "notes.txt").write_text("no image")
    table = classifier(preprocess=RECIPE).predict(tmp_path, on_error="collect")
    assert table["source"].tolist() == [str(tmp_path / f"{name}.png") for name in "acb"]
    assert table["error"].isna().tolist() == [True, True, False]
    with pytest.warns(MedimgWarning, match=r"1 unreadable file\(s\)"):
        assert len(classifier(preprocess=RECIPE).predict(tmp_path)) == 2
