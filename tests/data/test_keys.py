"""Caches written before are still read: keys, entries and features are bit-for-bit those of version 0.1.0."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medimg.data.cache import keys
from medimg.data.cache.image_cache import read_entry
from medimg.data.cache.keys import Address, find_address, hash_files
from medimg.features._cache import FeatureCache
from medimg.io.series import Policies

WRITTEN = Path(__file__).parent / "written_before"
ADDRESS = Address("0123456789abcdef" * 4, bytes(range(32)))
RECIPE: Any = SimpleNamespace(fingerprint="058bea8746492cd1", hw=(16, 16), image_shape=(3, 16, 16))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    content = {
        "small": bytes(range(256)) * 8,
        "large": bytes(range(251)) * 2000,
        "archive": b"PK" + bytes(range(100)),
    }
    for name, held in content.items():
        (tmp_path / name).write_bytes(held)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    return {name: tmp_path / name for name in content}


def fake(*files: Path, file_format: str = "DICOM", uid: str = "1.2.3") -> Any:
    return SimpleNamespace(
        format=file_format,
        uid=uid,
        files=tuple(map(str, files)),
        shape=(1, len(files), 4, 5),
        affine=np.diag([1.0, 2.0, 3.0, 1.0]),
        reader=None,
    )


def test_keys_of_images(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "__version__", "0.1.0")
    small, large = files["small"], files["large"]
    plain: dict[str, Any] = {"dtype": "float16", "compare": "samples"}
    found = [
        find_address(RECIPE, fake(small, large), Policies(), **plain),
        find_address(RECIPE, fake(small), Policies(), dtype="uint8", compare="samples"),
        find_address(RECIPE, fake(large), Policies(on_missing="warn"), dtype="float16", compare="bytes"),
        find_address(RECIPE, fake(small, file_format="NRRD"), Policies(), **plain),
    ]
    assert [(address.key, address.secret.hex()) for address in found if address] == [
        (
            "46d5477f34ce5750979b546a562548db186ba9d12616f5c0b3dcf0fdd52a6593",
            "8a78148f289cfe5830bc83c75f1648fb1f84a19742de41f76df3025c506a0153",
        ),
        (
            "ab0507df9b5c0429c57c3b7c76bc3c6fd09fda0635c770cdfda6062f741d5b6e",
            "5f885e0e1bd0857a11259d4f0a649820a467b7b7668aa948a1f7b7f26d38349e",
        ),
        (
            "620f7793de7c9c049d234105c4d221f33061a0069412d9575ffd1eb7a540413a",
            "8b4117ff7eaec6d822cd8c42a4e0cf4bdb57cb30c467541f8be890c9430b8fc8",
        ),
        (
            "c57e67f885e72bf8dd03401f06bdc9ebbb7e367f15673bc761c1d1f27adfc79b",
            "08169d4019ca39fd961edf53d960227e70346cc825311c96a10966268a46e98d",
        ),
    ]


def test_digests_of_files(files: dict[str, Path]) -> None:
    archive = files["archive"]
    whole = (
        "a54e70601d1b1b6d1d0bcc557fbd7b308cf9a13bdd6f37124b4a3668116b39a5"
        "50793b602442c683f0e48ef3cb650d78d609fcf9f24555bbb01ee3a63199571e"
    )
    members = fake(archive / "x" / "1.dcm", archive / "x" / "2.dcm")
    assert hash_files(members, "bytes") == [whole + "46ac0a60e5b6a000", whole + "e569b07159ad174d"]
    assert hash_files(fake(files["large"]), "blocks") == [
        "211a10348a6049b54597f03827bfd2e5e3eb0d2a75aff795d0993b76fd78e27fe3b0c44298fc1c14"
    ]


def test_an_entry_of_images() -> None:
    found = read_entry(WRITTEN / "entry.safetensors", ADDRESS, RECIPE, "uint8")
    expected = torch.arange(2 * 16 * 16).remainder(251).to(torch.uint8).reshape(2, 1, 16, 16)
    assert torch.equal(found.take(), expected)
    assert (found.slices, found.sop_instance_uids) == ((3, 7), ("1.2.3.4", "1.2.3.5"))


def test_features(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "feed" * 16, 4)
    shutil.copy(WRITTEN / "1a94f0f41efc060fc1042b3bd7e85517.features", tmp_path)
    assert cache.path.exists()
    assert cache.key(ADDRESS, 0).hex() == "1377889bdcaf08a932bcc99c6df98b9f5fcad150b357b26315b171af8c44f579"
    found = cache.load_series(ADDRESS, 2)
    assert found is not None
    assert found.rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (found.slices, found.sop_instance_uids) == ((3, 7), ("1.2.3.4", "1.2.3.5"))
