"""Labeled images as a torch data set."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from medimg.data import _labels
from medimg.data._image_store import ImageStore
from medimg.data.acquisition_tags import read_missing_elements
from medimg.data.cache.image_cache import as_cache
from medimg.data.cache.images import decode_intensity, normalize_images
from medimg.data.cache.keys import ItemKeys
from medimg.data.image_loader import ImageLoader
from medimg.data.items import (
    ItemFacts,
    Task,
    Unit,
    all_items,
    checked_policies,
    chosen_indices,
    encoded,
    warn_of_unknown_patients,
)
from medimg.errors import DatasetError, MedimgWarning
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import pandas as pd

    from medimg.core.read_report import Skipped
    from medimg.data._labels import LabeledSeries, PatientRule
    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.identifiers import FilePatients
    from medimg.data.items import Item
    from medimg.io.series import Policies

__all__ = ["ImageDataset", "find_item_keys"]

_MEMORY: Final = 2 * 2**30


class ImageDataset(ItemFacts, Dataset[tuple[torch.Tensor, "int | torch.Tensor"]]):
    """
    Images with labels and patients, read and preprocessed on demand.

    Make one with :meth:`from_folder` or :meth:`from_csv`. Pictures are kept in memory as they are made, up
    to `memory` bytes, or in a cache on disk; they pass through the same recipe as those that a trained model
    predicts on: bit by bit, but for what a cache rounds.

    Parameters
    ----------
    labeled : sequence of LabeledSeries
        The series with their labels and patients.
    classes : sequence of str
        Names of the classes; the label of an item is an index into them.
    preprocess : Preprocess, optional
        The recipe; the default one by default.
    unit : {"slice", "series"}
        Whether an item is one picture (3, H, W), with its series' label, or a bag of all (N, 3, H, W).
    task : {"multiclass", "multilabel"}
        Whether a label is the index of a class (int) or a (K,) float32 tensor of 0 and 1.
    skipped : sequence of Skipped
        Files that were found and left out.
    memory : int
        Bytes of pictures to keep in memory; 2 GiB by default. What is in a cache does not count.
    cache : str, Path or ImageCache, optional
        A folder where pictures are kept, so that a second epoch, or another run, never opens a scan; see
        :class:`ImageCache` for how exactly.
    reading : mapping, optional
        How to read: policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.

    Raises
    ------
    DatasetError
        If there is no item, or a label is none of the classes.
    """

    def __init__(
        self,
        labeled: Sequence[LabeledSeries],
        *,
        classes: Sequence[str],
        preprocess: Preprocess | None = None,
        unit: Unit = "slice",
        task: Task = "multiclass",
        skipped: Sequence[Skipped] = (),
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
    ) -> None:
        if unit not in get_args(Unit):
            raise DatasetError(f'unit is "slice" or "series"; found {unit!r}')
        if task not in get_args(Task):
            raise DatasetError(f'task is "multiclass" or "multilabel"; found {task!r}')
        if not labeled:
            raise DatasetError("a data set needs at least one image")
        self.classes = tuple(str(c) for c in classes)
        self.preprocess = preprocess or Preprocess()
        self.unit: Unit = unit
        self.task: Task = task
        self.skipped = tuple(skipped)
        self._labeled = tuple(labeled)
        self.cache = as_cache(cache)
        self._policies = checked_policies(reading)
        self._targets = encoded(labeled, self.classes, task)
        self._items = all_items(labeled, self.preprocess, unit)
        loader = ImageLoader(self.preprocess, self._policies, self.cache)
        self._read_elements = read_missing_elements(item.series for item in labeled)
        self._store = ImageStore(loader, [item.series for item in labeled], memory)
        warn_of_unknown_patients(labeled)

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        preprocess: Preprocess | None = None,
        *,
        unit: Unit = "slice",
        patient: PatientRule = None,
        file_patients: FilePatients = "check",
        classes: Sequence[str] | None = None,
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
        progress: bool | None = None,
    ) -> ImageDataset:
        r"""
        Make a data set of a folder with one subfolder for each class.

        Parameters
        ----------
        root : str or Path
            The folder; below a class's subfolder, series may lie as deep as they like.
        preprocess : Preprocess, optional
            The recipe.
        unit : {"slice", "series"}
            What an item is.
        patient : str or callable, optional
            How to tell the patient from a path, where the files don't: a regular expression, such as
            ``r"(person\d+)"``, searched in the path below `root`, or a function of the path.
        file_patients : {"check", "ignore"}
            Whether such patients and the files' own Patient ID (0010,0020) have to agree on who is who.
        classes : sequence of str, optional
            The order of the classes; alphabetic by default.
        memory : int
            Bytes of pictures to keep in memory.
        cache : str, Path or ImageCache, optional
            A folder where pictures are kept, so that they are made only once.
        reading : mapping, optional
            How to read: policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.
        progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If a class has no image, or a pattern does not match.
        LeakageError
            If two patients share a Patient ID, or one has two.
        """
        labeled, skipped = _labels.from_folder(
            root, patient=patient, file_patients=file_patients, progress=progress
        )
        return cls(
            labeled,
            classes=classes or sorted({str(item.label) for item in labeled}),
            preprocess=preprocess,
            unit=unit,
            skipped=skipped,
            memory=memory,
            cache=cache,
            reading=reading,
        )

    @classmethod
    def from_csv(
        cls,
        csv: str | Path | pd.DataFrame,
        *,
        path: str = "path",
        label: str | Sequence[str] = "label",
        patient: str | None = None,
        file_patients: FilePatients = "check",
        domain: str | None = None,
        preprocess: Preprocess | None = None,
        root: str | Path | None = None,
        unit: Unit = "slice",
        classes: Sequence[str] | None = None,
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
        progress: bool | None = None,
    ) -> ImageDataset:
        """
        Make a data set of a table with one row for each image or series.

        Parameters
        ----------
        csv : str, Path or DataFrame
            The table.
        path : str
            Its column of files, or folders with one series each.
        label : str or sequence of str
            Its column of class names; several columns of 0 and 1 make a multilabel data set.
        patient : str, optional
            Its column of patients; by default the files' Patient ID (0010,0020).
        file_patients : {"check", "ignore"}
            Whether the column and the files' Patient ID have to agree on who is who. A Patient ID that is
            empty, a word for nobody ("ANON"), or the same in all files says nothing, and is left alone.
        domain : str, optional
            Its column of domains, such as the site or the scanner; see :mod:`medimg.adapt`.
        preprocess : Preprocess, optional
            The recipe.
        root : str or Path, optional
            What paths are relative to; by default the folder of the table.
        unit : {"slice", "series"}
            What an item is.
        classes : sequence of str, optional
            The order of the classes; alphabetic by default, numeric where all are whole numbers. For
            multilabel, other names for the columns.
        memory : int
            Bytes of pictures to keep in memory.
        cache : str, Path or ImageCache, optional
            A folder where pictures are kept, so that they are made only once.
        reading : mapping, optional
            How to read: policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.
        progress : bool, optional
            Whether to show a progress bar.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If a column or a file is missing, a path stands twice, a cell is empty, or a file is no image.
        LeakageError
            If two patients of the table share a Patient ID, or one has two.
        """
        table = _labels.read_table(csv)
        if root is None:
            root = Path(csv).parent if isinstance(csv, str | Path) else Path()
        labeled = _labels.from_table(
            table,
            Path(root),
            path=path,
            label=label,
            patient=patient,
            file_patients=file_patients,
            domain=domain,
            progress=progress,
        )
        several = not isinstance(label, str)
        if several and classes is not None and len(classes) != len(label):
            raise DatasetError(f"{len(classes)} classes for {len(label)} label columns")
        names = label if several else _labels.class_order({str(item.label) for item in labeled})
        return cls(
            labeled,
            classes=classes or names,
            preprocess=preprocess,
            unit=unit,
            task="multilabel" if several else "multiclass",
            memory=memory,
            cache=cache,
            reading=reading,
        )

    @property
    def policies(self) -> Policies:
        """Policies and values that series are read with."""
        return self._policies

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """
        Return an item and its label.

        Returns
        -------
        image : torch.Tensor
            float32, normalized: (3, H, W), or (N, 3, H, W) where the unit is a series.
        label : int or torch.Tensor
            Index of the class, or (K,) float32.
        """
        item = self._items[index]
        images = normalize_images(self.preprocess, [self._store.take(item.source, item.picture)])
        return images if item.picture is None else images[0], self._label(item)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int | torch.Tensor]]:
        """Return several items, which is faster than one by one; torch's loaders look for this."""
        if self.unit == "series":
            return [self[i] for i in indices]
        items = [self._items[i] for i in indices]
        images = normalize_images(self.preprocess, [self._store.take(i.source, i.picture) for i in items])
        return [(image, self._label(item)) for image, item in zip(images, items, strict=True)]

    def _label(self, item: Item) -> int | torch.Tensor:
        target = self._targets[item.source]
        return torch.from_numpy(np.array(target)) if self.task == "multilabel" else int(target)

    def planes(self, index: int) -> torch.Tensor:
        """
        Return an item before normalization.

        Returns
        -------
        torch.Tensor
            float32, 0 (black) to 1 (white): (1 or 3, H, W), or (N, 1 or 3, H, W) where the unit is a series.
        """
        item = self._items[index]
        planes = decode_intensity(self._store.take(item.source, item.picture).clone())
        return planes if item.picture is None else planes[0]

    def fill_cache(self, *, workers: int | None = None, progress: bool | None = None) -> None:
        """
        Make all pictures that the cache does not hold yet, on all cores; else the first epoch makes them.

        Parameters
        ----------
        workers : int, optional
            Threads.
        progress : bool, optional
            Whether to show a progress bar.

        Raises
        ------
        DatasetError
            If there is no cache.
        """
        if self.cache is None:
            raise DatasetError("this data set has no cache; make it with cache=folder")
        self._store.fill(sorted({item.source for item in self._items}), workers, progress)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> ImageDataset:
        """
        Return a data set of some items; pictures in memory are shared.

        Parameters
        ----------
        indices : sequence of int, or of bool
            Which items, in which order; or a mask with an entry for each item.

        Raises
        ------
        DatasetError
            If no item is chosen, an index is out of range, or a mask has another length.
        """
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._items = tuple(self._items[i] for i in chosen_indices(indices, len(self)))
        return part

    def with_preprocess(self, preprocess: Preprocess) -> ImageDataset:
        """
        Return the same images with another recipe; images in memory are shared if only mean and std differ.

        Parameters
        ----------
        preprocess : Preprocess
            The recipe.

        Raises
        ------
        DatasetError
            If this is a part of a data set, and more than mean and standard deviation are others.
        """
        if preprocess.replace(mean=self.preprocess.mean, std=self.preprocess.std) == self.preprocess:
            same = self.subset(range(len(self)))
            same.preprocess = preprocess
            return same
        if self._items != all_items(self._labeled, self.preprocess, self.unit):
            raise DatasetError("change the recipe before splitting")
        with warnings.catch_warnings():
            # said once already, when this data set was made
            warnings.simplefilter("ignore", MedimgWarning)
            return type(self)(
                self._labeled,
                classes=self.classes,
                preprocess=preprocess,
                unit=self.unit,
                task=self.task,
                skipped=self.skipped,
                memory=self._store.capacity,
                cache=self.cache,
                reading=asdict(self._policies),
            )

    def __repr__(self) -> str:
        return f"ImageDataset({self.summary()})"


def find_item_keys(dataset: ImageDataset) -> ItemKeys:
    """Find the addresses by which a cache recognizes the items of a dataset; its files are opened."""
    return ItemKeys(dataset._items, dataset._store, dataset.preprocess)
