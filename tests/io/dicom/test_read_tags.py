"""The attributes that a fast reading takes are all that values depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag

from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.image_pixel import parse_frame_count, parse_frame_format
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._single_frame_reader import list_value_tags
from medimg.io.dicom.values.modality_lut import parse_modality_transform
from medimg.io.dicom.values.real_world import apply_real_world_scale
from medimg.io.series import ValueKind
from tests.dicom_files import make_instance
from tests.io.dicom.kinds import of_each_kind
from tests.sampling import SLOW

KINDS: tuple[ValueKind, ...] = get_args(ValueKind)
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})


class Recording(Dataset):
    """A data set that remembers what it was asked for; items of its sequences don't."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        object.__setattr__(self, "asked", set())

    def _asks(self, key: Any) -> None:
        if "asked" in self.__dict__:
            self.__dict__["asked"].add(int(Tag(key)))

    def __contains__(self, name: Any) -> bool:
        self._asks(name)
        return super().__contains__(name)

    def __getitem__(self, key: Any) -> Any:
        self._asks(key)
        return super().__getitem__(key)

    def get_item(self, key: Any, *, keep_deferred: bool = False) -> Any:
        self._asks(key)
        return super().get_item(key, keep_deferred=keep_deferred)

    def get(self, key: Any, default: Any = None) -> Any:
        self._asks(key)
        return super().get(key, default)


def asked_of(dataset: Dataset, kind: ValueKind) -> set[int]:
    """Return the tags that are asked for when the values of a file are made sense of."""
    recording = Recording(dataset)
    with quiet_pydicom():
        try:
            form = parse_frame_format(recording)
            parse_frame_count(recording)
            for dtype in {form.dtype, np.dtype("i2"), np.dtype("f4"), np.dtype("f8")}:
                meaning = parse_modality_transform(recording, form, dtype, is_rgb=False)
                apply_real_world_scale(recording, meaning, kind)
        except MedimgError:
            pass
        # damaged attributes raise anything when they are used
        except Exception:
            pass
    found: set[int] = recording.__dict__["asked"]
    return found


def unknown(dataset: Dataset, kind: ValueKind) -> set[str]:
    return {str(Tag(tag)) for tag in asked_of(dataset, kind) - list_value_tags(kind) - PIXELS}


def changed(**attributes: Any) -> Callable[[], Dataset]:
    return lambda: make_instance(np.zeros((4, 4), np.uint16), **attributes)


def private(group: int, creator: str, element: int, form: str, value: Any, **attributes: Any) -> Dataset:
    ds = make_instance(np.zeros((4, 4), np.uint16), **attributes)
    ds.private_block(group, creator, create=True).add_new(element, form, value)
    return ds


MADE: dict[str, Callable[[], Dataset]] = {
    "CT": changed(),
    "palette": changed(PhotometricInterpretation="PALETTE COLOR"),
    "dose": changed(Modality="RTDOSE", DoseGridScaling="0.5", DoseUnits="GY"),
    "PET": changed(Modality="PT", Units="BQML", CorrectedImage=["ATTN", "DECY"], DecayCorrection="START"),
    "counts": lambda: private(
        0x7053, "Philips PET Private Group", 0x00, "DS", "1.5", Modality="PT", Units="CNTS",
        CorrectedImage=["ATTN"], DecayCorrection="NONE",
    ),
    "Philips": lambda: private(0x2005, "Philips MR Imaging DD 001", 0x0E, "FL", 2.0, Modality="MR"),
    "colors": lambda: make_instance(np.zeros((4, 4, 3), np.uint8), PhotometricInterpretation="YBR_FULL"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(MADE))
def test_made_files(name: str, kind: ValueKind) -> None:
    assert not unknown(MADE[name](), kind)


def files(root: Path) -> Iterator[Path]:
    bundled = Path(pydicom.__file__).parent / "data" / "test_files"
    for folder in (root / "dicom_misc", root / "malformed", bundled):
        yield from sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_real_files(real_data: Path) -> None:
    missing: dict[str, str] = {}
    count = 0
    for path in of_each_kind(files(real_data)):
        try:
            dataset = open_dataset(path)
        except MedimgError:
            continue
        count += 1
        for kind in KINDS:
            missing.update(dict.fromkeys(unknown(dataset, kind), path.name))
    assert not missing
    assert count > (200 if SLOW else 100)


def test_what_is_left_out_is_noticed() -> None:
    """The test tests: a tag that is not among those is found."""
    ds = MADE["CT"]()
    assert asked_of(ds, "auto") - (list_value_tags("auto") - {0x00281053})
    assert 0x00281053 in asked_of(ds, "auto")
    assert 0x00101030 in asked_of(MADE["PET"](), "suv")
    assert 0x2005100E in asked_of(MADE["Philips"](), "auto")
