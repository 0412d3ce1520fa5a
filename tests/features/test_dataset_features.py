"""Embeddings of a data set: each computed once, kept on disk, and never stale."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import medimg
from medimg import ImageCache, ImageDataset, Preprocess, TransferClassifier
from medimg.errors import MedimgWarning, PreprocessError, TrainingError
from medimg.features import dataset_features
from medimg.features.dataset_features import Features, item_features
from medimg.features.extractor import feature_extractor, rebatch
from medimg.models.digest import network_digest
from medimg.models.input_checks import Pool
from tests.models.fakes import classifier, images, state
from tests.models.images import TINY, picture_data, pixels, stacks, write_pictures
from tests.models.small_network import small_classifier


def plain(model: TransferClassifier, items: Any) -> Tensor:
    """One picture after the other, by the network as it is."""
    backbone = model.backbone.eval()
    rows = []
    with torch.no_grad():
        for n in range(len(items)):
            image = items[n][0]
            rows.append(backbone(image if image.ndim == 4 else image[None]))
    return torch.cat(rows)


@pytest.fixture
def model() -> TransferClassifier:
    return small_classifier(preprocess=TINY)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    return picture_data(tmp_path / "pictures", patients=4)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Counting:
    """How many pictures pass through a network."""

    def __init__(self, model: TransferClassifier) -> None:
        self.count = 0
        model.backbone.register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.count += len(inputs[0])

    def of(self, work: Any) -> int:
        before = self.count
        work()
        return self.count - before


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18", "vit_b_32"])
def test_rows_are_those_of_one_picture_after_the_other(backbone: str) -> None:
    recipe = Preprocess(size=64)
    model, items = classifier(backbone, preprocess=recipe), images(5, preprocess=recipe)
    found = item_features(model, items, batch_size=2)
    assert torch.allclose(found.embeddings, plain(model, items), rtol=1e-4, atol=1e-5)
    assert found.embeddings.dtype == torch.float32
    assert found.offsets.tolist() == [0, 1, 2, 3, 4, 5]


def test_bags_of_unequal_lengths() -> None:
    lengths = (3, 1, 5, 2)
    items = images(4, unit="series", lengths=lengths)
    model = small_classifier(pool="mean")
    found = item_features(model, items, batch_size=4)
    assert torch.allclose(found.embeddings, plain(model, items), rtol=1e-4, atol=1e-5)
    assert found.offsets.diff().tolist() == list(lengths)
    pools: tuple[Pool, ...] = ("mean", "max")
    for pool in pools:
        model.pool = pool
        expected = torch.cat([model.embed(items[n][0][None]) for n in range(4)])
        assert torch.allclose(found.pooled(pool), expected, rtol=1e-4, atol=1e-5)


def test_it_can_be_trained_on_and_leaves_the_model_as_it_was() -> None:
    model = small_classifier("resnet18").freeze("layer1").train()
    modes = [module.training for module in model.modules()]
    strides = [p.stride() for p in model.parameters()]
    before = state(model)
    found = item_features(model, images(4))
    assert [module.training for module in model.modules()] == modes
    assert [p.stride() for p in model.parameters()] == strides
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    loss = nn.Linear(found.embeddings.shape[1], 2)(found.embeddings).sum()
    loss.backward()  # tensors of inference mode could not


def test_autocast_and_random_state_are_left_alone(model: TransferClassifier, data: ImageDataset) -> None:
    expected = item_features(model, data)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = item_features(model, data)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(torch.get_rng_state(), before)


def failing_after_a_look(model: TransferClassifier) -> None:
    with feature_extractor(model):
        assert not model.backbone.training
        raise RuntimeError


def test_modes_are_set_back_after_an_error(model: TransferClassifier) -> None:
    model.train()
    with pytest.raises(RuntimeError):
        failing_after_a_look(model)
    assert model.backbone.training


def test_even_pieces() -> None:
    parts = [torch.arange(n, n + k) for n, k in ((0, 3), (3, 1), (4, 0), (4, 6), (10, 2))]
    pieces = list(rebatch(parts, 4))
    assert [len(piece) for piece in pieces] == [4, 4, 4]
    assert torch.cat(pieces).tolist() == list(range(12))
    whole = torch.ones(4, 2)
    assert next(rebatch([whole], 4)).data_ptr() == whole.data_ptr()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_second_time_no_picture_passes(
    model: TransferClassifier, data: ImageDataset, cache: Path, workers: int
) -> None:
    expected = plain(model, data)
    passed = Counting(model)
    first = item_features(model, data, cache=cache, batch_size=3, workers=workers)
    assert passed.count == len(data)
    again = item_features(model, data, cache=cache)
    assert passed.count == len(data)
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.allclose(first.embeddings, expected, rtol=1e-4, atol=1e-5)


def test_parts_and_orders_of_a_data_set_share_rows(
    model: TransferClassifier, data: ImageDataset, cache: Path
) -> None:
    passed = Counting(model)
    item_features(model, data.subset([5, 1]), cache=cache)
    everything = item_features(model, data, cache=cache)
    assert passed.count == len(data)
    shuffled = item_features(model, data.subset([3, 0, 3, 7]), cache=cache)
    assert passed.count == len(data)
    assert torch.equal(shuffled.embeddings, everything.embeddings[[3, 0, 3, 7]])


def test_slices_and_series_share_rows(tmp_path: Path, cache: Path) -> None:
    stacks(tmp_path / "all" / "a", 2)
    stacks(tmp_path / "all" / "b", 1)
    model = small_classifier(preprocess=TINY, pool="mean")
    passed = Counting(model)
    slices = item_features(model, ImageDataset.from_folder(tmp_path / "all", TINY), cache=cache)
    bags = item_features(model, ImageDataset.from_folder(tmp_path / "all", TINY, unit="series"), cache=cache)
    assert passed.count == len(slices.embeddings) == 9
    assert torch.equal(slices.embeddings, bags.embeddings)
    assert bags.offsets.tolist() == [0, 3, 6, 9]


def changed_weight(model: TransferClassifier) -> None:
    with torch.no_grad():
        next(model.backbone.parameters())[0] += 1e-3


def changed_statistics(model: TransferClassifier) -> None:
    buffer = next(b for name, b in model.backbone.named_buffers() if name.endswith("running_mean"))
    buffer += 1e-3


def changed_layer(model: TransferClassifier) -> None:
    model.backbone.relu = nn.LeakyReLU()


@pytest.mark.parametrize("change", [changed_weight, changed_statistics, changed_layer])
@pytest.mark.parametrize("frozen", [True, False])
def test_another_network_has_other_rows(data: ImageDataset, cache: Path, change: Any, frozen: bool) -> None:
    model = small_classifier("resnet18", preprocess=TINY)
    if frozen:
        model.freeze()
    passed = Counting(model)
    before = item_features(model, data, cache=cache)
    change(model)
    after = item_features(model, data, cache=cache)
    assert passed.count == 2 * len(data)
    assert not torch.equal(before.embeddings, after.embeddings)


def test_the_head_does_not_matter(data: ImageDataset, cache: Path, model: TransferClassifier) -> None:
    item_features(model, data, cache=cache)
    nn.init.ones_(model.head.weight)
    assert Counting(model).of(lambda: item_features(model, data, cache=cache)) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.1, 0.2, 0.3)},
        {"size": 40},
        {"fill": 1.0},
        {"window": "percentile", "percentiles": (5.0, 80.0)},
    ],
)
def test_another_recipe_has_other_rows(data: ImageDataset, cache: Path, change: dict[str, Any]) -> None:
    before = item_features(small_classifier(preprocess=TINY), data, cache=cache)
    recipe = TINY.replace(**change)
    other, model = data.with_preprocess(recipe), small_classifier(preprocess=recipe)
    assert network_digest(model) == network_digest(small_classifier(preprocess=TINY))
    passed = Counting(model)
    after = item_features(model, other, cache=cache)
    assert passed.count == len(data)
    assert change == {"fill": 1.0} or not torch.equal(before.embeddings, after.embeddings)


def test_another_way_of_reading_has_other_rows(
    tmp_path: Path, cache: Path, model: TransferClassifier
) -> None:
    stacks(tmp_path / "all" / "a", 1)
    stacks(tmp_path / "all" / "b", 1)
    passed = Counting(model)
    for reading in ({}, {"on_tilt": "keep"}, {"values": "rescaled"}):
        made = ImageDataset.from_folder(tmp_path / "all", TINY, reading=reading)
        assert passed.of(lambda: item_features(model, made, cache=cache)) == 6  # noqa: B023  # called at once


def test_rounded_pictures_have_rows_of_their_own(
    tmp_path: Path, cache: Path, model: TransferClassifier
) -> None:
    passed = Counting(model)
    for n, kind in enumerate((None, "float16", "uint8")):
        kept = ImageCache(tmp_path / "kept", dtype=kind) if kind else None  # type: ignore[arg-type]  # two kinds
        made = picture_data(tmp_path / "pictures", patients=2, cache=kept)
        item_features(model, made, cache=cache)
        assert passed.count == (n + 1) * len(made)


def replace_picture(root: Path) -> None:
    Image.fromarray(pixels(1, 999)).save(root / "0-0.png")


def again(data: ImageDataset, **options: Any) -> ImageDataset:
    """The same files, nothing of them in memory."""
    return ImageDataset(data._labeled, classes=data.classes, preprocess=data.preprocess, **options)


def test_a_changed_file_has_other_rows(tmp_path: Path, cache: Path, model: TransferClassifier) -> None:
    made = picture_data(tmp_path / "pictures", patients=4)
    passed = Counting(model)
    before = item_features(model, made, cache=cache)
    replace_picture(tmp_path / "pictures")
    after = item_features(model, again(made), cache=cache)
    assert passed.count == len(made) + 1
    assert not torch.equal(before.embeddings[0], after.embeddings[0])
    assert torch.equal(before.embeddings[1:], after.embeddings[1:])


def test_pictures_read_before_their_file_changed_are_not_kept(
    tmp_path: Path, cache: Path, model: TransferClassifier
) -> None:
    root = tmp_path / "pictures"
    made = picture_data(root, patients=4)
    old = made[0][0]
    replace_picture(root)
    assert torch.equal(made[0][0], old), "kept in memory"
    stale = item_features(model, made, cache=cache)
    new = again(made)
    fresh = item_features(model, new, cache=cache)
    assert torch.allclose(fresh.embeddings, plain(model, new), rtol=1e-4, atol=1e-5)
    assert not torch.equal(stale.embeddings[0], fresh.embeddings[0])


def test_pictures_of_a_cache_whose_file_changed_are_not_kept(
    tmp_path: Path, cache: Path, model: TransferClassifier
) -> None:
    root, pictures = tmp_path / "pictures", tmp_path / "kept"
    made = picture_data(root, patients=4, cache=pictures)
    made.fill_cache(progress=False)
    replace_picture(root)
    item_features(model, made, cache=cache)
    new = again(made, cache=pictures)
    fresh = item_features(model, new, cache=cache)
    assert torch.allclose(fresh.embeddings, plain(model, new), rtol=1e-4, atol=1e-5)


def test_a_moved_folder_is_known_again(tmp_path: Path, cache: Path, model: TransferClassifier) -> None:
    for name in "ab":
        write_pictures(tmp_path / "before" / name, patients=2)
    passed = Counting(model)
    item_features(model, ImageDataset.from_folder(tmp_path / "before", TINY, patient="(.)"), cache=cache)
    before = passed.count
    (tmp_path / "before").rename(tmp_path / "after")
    item_features(model, ImageDataset.from_folder(tmp_path / "after", TINY, patient="(.)"), cache=cache)
    assert passed.count == before


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.features"))


def test_names_are_digests_and_nothing_of_a_patient_is_kept(
    tmp_path: Path, cache: Path, model: TransferClassifier
) -> None:
    paths = stacks(tmp_path / "SENTINEL", 2)
    medimg.embed(model, paths, cache=cache)
    (path,) = files(cache)
    assert set(path.stem) <= set("0123456789abcdef")
    assert [p.name for p in cache.iterdir()] == [path.name]
    held = path.read_bytes()
    assert b"SENTINEL" not in held
    assert b"1.2.0" not in held
    assert b"1.2.826" not in held


def damage_rows(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE features SET data = zeroblob(length(data))")


def damage_pages(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[200 : len(held) // 2] = bytes(len(held) // 2 - 200)
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        (damage_rows, False),
        (damage_pages, True),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), True),
        (lambda path: path.write_bytes(b"no database at all" * 100), True),
        (lambda path: path.write_bytes(b""), False),
    ],
)
def test_what_is_damaged_is_made_anew(
    model: TransferClassifier, data: ImageDataset, cache: Path, damage: Any, warned: bool
) -> None:
    expected = item_features(model, data, cache=cache).embeddings
    (path,) = files(cache)
    damage(path)
    if warned:
        with pytest.warns(MedimgWarning, match="rebuilt"):
            found = item_features(model, data, cache=cache).embeddings
    else:
        found = item_features(model, data, cache=cache).embeddings
    assert torch.equal(found, expected)
    assert Counting(model).of(lambda: item_features(model, data, cache=cache)) == 0


def test_rows_of_another_picture_are_not_taken(
    model: TransferClassifier, data: ImageDataset, cache: Path
) -> None:
    expected = item_features(model, data, cache=cache).embeddings
    (path,) = files(cache)
    with closing(sqlite3.connect(path)) as database, database:
        keys = [key for (key,) in database.execute("SELECT key FROM features ORDER BY rowid")]
        database.execute("UPDATE features SET key = ? WHERE key = ?", (b"aside", keys[0]))
        database.execute("UPDATE features SET key = ? WHERE key = ?", (keys[0], keys[1]))
        database.execute("UPDATE features SET key = ? WHERE key = ?", (keys[1], b"aside"))
    assert torch.equal(item_features(model, data, cache=cache).embeddings, expected)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cant_be_written(model: TransferClassifier, data: ImageDataset, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.warns(MedimgWarning, match="can't be cached"):
        item_features(model, data, cache=cache)


def test_a_file_in_the_way_is_worked_around(
    model: TransferClassifier, data: ImageDataset, cache: Path
) -> None:
    item_features(model, data, cache=cache)
    (path,) = files(cache)
    path.unlink()
    path.mkdir()
    with pytest.warns(MedimgWarning, match="can't be cached"):
        found = item_features(model, data, cache=cache)
    assert len(found.embeddings) == len(data)


def test_several_writers_at_once(model: TransferClassifier, data: ImageDataset, cache: Path) -> None:
    expected = item_features(model, data).embeddings
    found: list[Tensor] = []

    def work(own: TransferClassifier) -> None:
        found.append(item_features(own, data, cache=cache, batch_size=1).embeddings)

    models = [small_classifier(preprocess=TINY) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(own,)) for own in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.allclose(rows, expected, rtol=1e-4, atol=1e-5) for rows in found)
    assert Counting(model).of(lambda: item_features(model, data, cache=cache)) == 0


def test_what_was_computed_before_an_interrupt_is_kept(
    model: TransferClassifier, data: ImageDataset, cache: Path
) -> None:
    passed = Counting(model)

    def interrupt(_: nn.Module, __: object, ___: object) -> None:
        if passed.count >= 4:
            raise KeyboardInterrupt

    hook = model.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        item_features(model, data, cache=cache, batch_size=2)
    hook.remove()
    assert passed.of(lambda: item_features(model, data, cache=cache)) == len(data) - 2


def test_items_without_files_are_computed_each_time(cache: Path) -> None:
    model = classifier()
    passed = Counting(model)
    for _ in range(2):
        item_features(model, images(4), cache=cache)
    assert passed.count == 8


def test_unsound_requests(model: TransferClassifier, data: ImageDataset) -> None:
    with pytest.raises(PreprocessError, match="with_preprocess"):
        item_features(classifier(), data)
    with pytest.raises(PreprocessError, match="batch_size"):
        item_features(model, data, batch_size=0)
    with pytest.raises(PreprocessError, match="batch_size"):
        item_features(model, data, batch_size=2.5)  # type: ignore[arg-type]  # refused
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        item_features(model, data)


def test_rows_of_items_and_their_pools() -> None:
    rows = Features(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 3]))
    assert np.allclose(rows.pooled("mean"), [[0, 1], [3, 4]])
    assert np.allclose(rows.pooled("max"), [[0, 1], [4, 5]])


def test_only_as_many_pictures_are_read_as_are_missing(
    model: TransferClassifier, data: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item_features(model, data.subset(range(6)), cache=cache)
    read: list[int] = []
    before = dataset_features._Groups.__getitem__

    def noted(groups: Any, number: int) -> Tensor:
        read.extend(groups.groups[number])
        return before(groups, number)

    monkeypatch.setattr(dataset_features._Groups, "__getitem__", noted)
    item_features(model, data, cache=cache)
    assert sorted(read) == [6, 7]
