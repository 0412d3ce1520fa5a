"""Orders by shard: each item once, few shards at a time, for any number of processes."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import medimg
from medimg import ImageCache, ImageDataset
from medimg.data.dataloader import EpochSampler, Share
from medimg.data.prepared.reader import PreparedReader
from medimg.data.prepared.shard_cache import ShardCache
from medimg.data.prepared.shard_stream import ShardStream
from medimg.data.prepared.source_table import PreparedImages
from medimg.errors import MedimgWarning
from medimg.io.files.storage_folder import StorageFolder
from tests.data.prepared.conftest import RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.storage import Storage

_SHARD = 10240


def make_stream(groups: list[int], most: int | None, folder: Path = Path("cache")) -> ShardStream:
    """Return the stream of items in shards by number; -1 for items without one."""
    sizes = {f"{n}": _SHARD for n in groups}
    cache = ShardCache(StorageFolder("memory://nowhere"), folder, most, sizes)
    images: dict[str, Any] = dict.fromkeys(("offset", "size"), 0)
    images |= dict.fromkeys(("shape", "crc32", "slices", "sop_instance_uids"), ())
    return ShardStream(
        [
            None
            if n < 0
            else PreparedReader(
                PreparedImages(**images, shard=str(n), dtype="uint8", digest=""), cache, RECIPE, ""
            )
            for n in groups
        ]
    )


many_groups = st.lists(st.integers(-1, 12), min_size=1, max_size=60).filter(lambda all_: max(all_) >= 0)


@given(groups=many_groups, window=st.integers(1, 4), seed=st.integers(0, 5), balanced=st.booleans())
def test_each_item_once_and_few_shards_at_a_time(
    groups: list[int], window: int, seed: int, balanced: bool
) -> None:
    stream = make_stream(groups, 4 * _SHARD * window)
    odds = torch.rand(len(groups)) if balanced else None
    plain = list(EpochSampler(len(groups), seed, odds=odds))
    order = list(EpochSampler(len(groups), seed, odds=odds, stream=stream))
    assert sorted(order) == sorted(plain)
    assert order == list(EpochSampler(len(groups), seed, odds=odds, stream=stream))
    if len(set(groups)) <= 4 * window:
        assert stream.window is None
        assert order == plain
        return
    assert stream.window == window
    turns = [groups[n] for n in order if groups[n] >= 0]
    starts = {group: turns.index(group) for group in turns}
    ends = {group: len(turns) - turns[::-1].index(group) for group in turns}
    for position in range(len(turns)):
        assert sum(starts[g] <= position < ends[g] for g in starts) <= window


@given(groups=many_groups, world=st.integers(1, 4))
def test_processes_share_one_order(groups: list[int], world: int) -> None:
    stream = make_stream(groups, 4 * _SHARD)
    whole = list(EpochSampler(len(groups), 3, stream=stream))
    shares = [
        list(EpochSampler(len(groups), 3, stream=stream, share=Share(rank, world))) for rank in range(world)
    ]
    together = [item for step in zip(*shares, strict=True) for item in step]
    assert together == whole[: len(together)]
    sampler = EpochSampler(len(groups), 3, stream=stream, offset=2)
    later = EpochSampler(len(groups), 3, stream=stream)
    later.set_epoch(2)
    assert list(sampler) == list(later)


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait for threads that fetch shards, which may be at work when whoever needs them has ended."""
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it does not become so")


def test_shards_are_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(ShardCache, "fetch", lambda self, shard: fetched.append(shard))

    def has_fetched(wanted: list[str]) -> bool:
        return sorted(fetched) == wanted

    groups = [n // 5 for n in range(100)]
    stream = make_stream(groups, 8 * _SHARD)
    assert stream.window == 2
    items = stream.follow(range(100))
    assert not fetched
    for position, item in enumerate(items):
        assert item == position
        wanted = sorted(str(n) for n in range(min(20, position // 5 + 3)))
        wait_for(partial(has_fetched, wanted))
    items = stream.follow(range(100))
    next(items)
    items.close()  # type: ignore[attr-defined]  # a generator


def fine_tune(data: ImageDataset, **options: Any) -> list[float]:
    torch.manual_seed(0)
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=RECIPE)
    options = {"head_epochs": 0, "epochs": 2, "batch_size": 4, "progress": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        result = medimg.fine_tune(model, data, **options)
    return [row["train_loss"] for row in result.history]


def test_losses_are_those_of_the_cache(dataset: ImageDataset, storage: Storage, tmp_path: Path) -> None:
    cached = ImageDataset.from_folder(tmp_path / "scans", RECIPE, cache=ImageCache(tmp_path / "cache"))
    expected = fine_tune(cached)
    medimg.prepare(dataset, None, f"{storage.url}/out", shard_bytes=1)
    remote = ImageDataset.from_prepared(f"{storage.url}/out", cache=tmp_path / "shards")
    assert fine_tune(remote) == expected
    assert fine_tune(remote, workers=2) == expected


def test_training_within_a_bound(dataset: ImageDataset, storage: Storage, tmp_path: Path) -> None:
    medimg.prepare(dataset, None, f"{storage.url}/out", shard_bytes=1, dtype="float32")
    cache = tmp_path / "shards"
    data = ImageDataset.from_prepared(f"{storage.url}/out", cache=cache, cache_bytes=4 * 30720)
    stream = data.find_stream()
    assert stream is not None
    assert stream.window == 1
    with pytest.warns(MedimgWarning, match="6 of 6 shards have images of one class"):
        losses = fine_tune(data, workers=2, balance="sampler", epochs=1)
    assert np.isfinite(losses).all()
    wait_for(lambda: sum(path.stat().st_size for path in cache.glob("*.tar")) <= 4 * 30720)
    assert dataset.find_stream() is None
    local = ImageDataset.concat([data[:9], dataset[9:]], patients="shared")
    assert len(list(EpochSampler(18, 0, stream=local.find_stream()))) == 18
