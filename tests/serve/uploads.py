"""What clients of the service send, and the model that answers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import torch

from medimg import Preprocess, TransferClassifier
from tests.dicom_files import make_instance


def make_model(**fields: Any) -> TransferClassifier:
    """A classifier of random weights, the same in each process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        settings: dict[str, Any] = {
            "classes": ["normal", "nodule"],
            "preprocess": Preprocess(size=32),
        } | fields
        return TransferClassifier("squeezenet1_1", weights=None, **settings).eval()


def dicom(n: int = 0, *, size: tuple[int, int] = (24, 20), **attributes: Any) -> bytes:
    """Slice n of a CT."""
    pixels = np.random.default_rng(n).integers(0, 2000, size).astype(np.uint16)
    position = [-10.0, -20.0, 2.0 * n]
    ds = make_instance(
        pixels, **{"ImagePositionPatient": position, "SOPInstanceUID": f"1.2.3.4.{n}"} | attributes
    )
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def stack(slices: int = 5) -> bytes:
    """A zip of a CT."""
    return zipped({f"ct/{n}.dcm": dicom(n) for n in range(slices)})
