"""Datasets of labeled images, for torch."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, overload

import numpy as np
import torch
from torch.utils.data import Dataset

from medimg._public import set_module
from medimg._validation import (
    check_choice,
    check_item_unit,
    check_path,
    check_seed,
    check_text,
    check_whole_number,
)
from medimg.data import _labels
from medimg.data._concatenation import find_common_cache, join_items, list_parts
from medimg.data._image_store import ImageStore
from medimg.data._label_arrays import label_arrays
from medimg.data._npz import read_npz
from medimg.data.acquisition_tags import read_missing_elements
from medimg.data.cache.image_cache import as_cache, make_cache_folder
from medimg.data.cache.images import decode_intensity, normalize_images
from medimg.data.cache.keys import ItemKeys
from medimg.data.class_names import list_names, sort_classes, warn_of_similar_classes
from medimg.data.image_loader import ImageLoader
from medimg.data.items import (
    ItemFacts,
    Task,
    Unit,
    check_index,
    check_indices,
    choose_several,
    encode_labels,
    list_items,
    make_policies,
    warn_of_unknown_patients,
)
from medimg.data.patients import UNKNOWN, patient_key
from medimg.errors import DatasetError, MedimgWarning
from medimg.executors.executor_map import check_executor
from medimg.io.files.object_storage import is_remote_url
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    import numpy.typing as npt
    import pandas as pd
    from matplotlib.figure import Figure

    from medimg.core.progress import Progress
    from medimg.core.read_report import Skipped
    from medimg.core.volume import Volume
    from medimg.data._concatenation import SamePatients
    from medimg.data._labels import LabeledSeries, PatientRule
    from medimg.data.cache.image_cache import ImageCache
    from medimg.data.identifiers import FilePatients
    from medimg.data.items import Item
    from medimg.data.prepared.shard_stream import ShardStream

__all__ = ["ImageDataset"]

_MEMORY: Final = 2 * 2**30
_MANY: Final = 20  # classes


@set_module("medimg")
class ImageDataset(ItemFacts, Dataset[tuple[torch.Tensor, "int | torch.Tensor"]]):
    """
    Images with labels and patients, read and preprocessed on demand.

    Use :meth:`from_folder`, :meth:`from_csv`, :meth:`from_arrays` or :meth:`from_npz` to make one. Images are
    kept in memory once they are rendered, up to `memory` bytes, or in a cache on disk. Preprocessing is the
    same as in prediction, bit-for-bit but for rounding in a cache.

    Parameters
    ----------
    labeled : sequence of LabeledSeries
        Series with their labels and patients.
    classes : sequence of str
        Names of the classes; the label of an item is an index into them.
    preprocess : Preprocess, optional
        Preprocessing; ``Preprocess()`` by default.
    unit : {"image", "series"}
        Unit of an item: one image (C, H, W), such as a slice, with its series' label ("slice" is accepted,
        too), or a bag of all images (N, C, H, W). With preprocessing in 3-D an item is a series, as a volume
        (C, D, H, W), whatever is given.
    task : {"multiclass", "multilabel"}
        Whether a label is a class index (int) or a (K,) float32 tensor of 0 and 1.
    skipped : sequence of Skipped
        Files that were found and skipped.
    memory : int
        Bytes of images to keep in memory; 2 GiB by default. Cached images do not count.
    cache : str, Path or ImageCache, optional
        Cache of rendered images, so that a second epoch, or another run, does not read the files; see
        :class:`ImageCache` for its precision.
    reading : mapping, optional
        Policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.

    Raises
    ------
    DatasetError
        If there is no item, or a label is not one of the classes.
    """

    def __init__(
        self,
        labeled: Sequence[LabeledSeries],
        *,
        classes: Sequence[str],
        preprocess: Preprocess | None = None,
        unit: Unit = "image",
        task: Task = "multiclass",
        skipped: Sequence[Skipped] = (),
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
    ) -> None:
        unit = check_item_unit(unit)
        check_choice("task", task, get_args(Task), error=DatasetError)
        if not labeled:
            raise DatasetError("a dataset needs at least one image")
        self.classes = list_names(classes)
        self.preprocess = preprocess or Preprocess()
        self.unit: Unit = "series" if self.preprocess.dims == 3 else unit
        self.task: Task = task
        self.skipped = tuple(skipped)
        self._labeled = tuple(labeled)
        self.cache = as_cache(cache)
        self._policies = make_policies(reading)
        self._targets = encode_labels(labeled, self.classes, task)
        self._items = list_items(labeled, self.preprocess, unit)
        loader = ImageLoader(self.preprocess, self._policies, self.cache)
        self._read_elements = read_missing_elements(item.series for item in labeled)
        self._store = ImageStore(loader, [item.series for item in labeled], memory)
        warn_of_unknown_patients(labeled)
        warn_of_similar_classes(self.classes)

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        preprocess: Preprocess | None = None,
        *,
        label: Literal["folder"] | None = "folder",
        unit: Unit = "image",
        patient: PatientRule = None,
        file_patients: FilePatients = "check",
        classes: Sequence[str] | None = None,
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
        progress: Progress = "auto",
    ) -> ImageDataset:
        r"""
        Make a dataset of a folder with one subfolder for each class, or of images without labels.

        Parameters
        ----------
        root : str or Path
            Folder, or its URL in object storage, with a subfolder for each class; series may be at any depth
            below. Results that medimg has written are skipped.
        preprocess : Preprocess, optional
            Preprocessing.
        label : {"folder"} or None
            Whether subfolders are classes; None: all images below `root`, without labels, as for
            :mod:`medimg.adapt` and :func:`medimg.domain_shift`.
        unit : {"image", "series"}
            Unit of an item.
        patient : str or callable, optional
            Patient by path, if the files have no Patient ID: a regular expression, such as
            ``r"(person\d+)"``, searched in the path below `root`, or a function of the path (of a URL
            without its scheme). Identifiers are
            compared without regard to spelling: 3, "003" and "3 " are one patient, and a placeholder such as
            "ANONYMOUS" is none.
        file_patients : {"check", "ignore"}
            Whether these patients and the files' own Patient ID (0010,0020) must define the same groups.
        classes : sequence of str, optional
            Order of the classes; by default natural order ("2" before "10").
        memory : int
            Bytes of images to keep in memory.
        cache : str, Path or ImageCache, optional
            Cache of rendered images.
        reading : mapping, optional
            Policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

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
        check_choice("label", label, ("folder", None), error=DatasetError)
        collect = _labels.list_unlabeled if label is None else _labels.label_folders
        labeled, skipped = collect(root, patient=patient, file_patients=file_patients, progress=progress)
        return cls(
            labeled,
            classes=_list_classes(labeled) if classes is None else classes,
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
        label: str | Sequence[str] | None = "label",
        patient: str | None = None,
        file_patients: FilePatients = "check",
        domain: str | None = None,
        preprocess: Preprocess | None = None,
        root: str | Path | None = None,
        unit: Unit = "image",
        classes: Sequence[str] | None = None,
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
        reading: Mapping[str, str] | None = None,
        progress: Progress = "auto",
    ) -> ImageDataset:
        """
        Make a dataset of a table with one row for each image or series.

        Parameters
        ----------
        csv : str, Path or DataFrame
            Table, or its URL.
        path : str
            Column of files, folders with one series each, or URLs: of these in object storage, of files on
            web servers, or of series on a DICOMweb server (see :func:`medimg.dicomweb`).
        label : str, sequence of str, or None
            Column of class names; several columns of 0 and 1, or False and True, make a multilabel dataset.
            None: images without labels, as for :mod:`medimg.adapt` and :func:`medimg.domain_shift`.
        patient : str, optional
            Column of patients; by default the files' Patient ID (0010,0020). Identifiers are compared without
            regard to spelling: 3, 3.0, "003" and "3 " are one patient, and a placeholder such as "ANONYMOUS"
            is none.
        file_patients : {"check", "ignore"}
            Whether the column and the files' Patient ID must define the same groups. A Patient ID that is
            empty, a placeholder ("ANON"), or the same in all files is ignored.
        domain : str, optional
            Column of domains, such as the site or the scanner; see :mod:`medimg.adapt`.
        preprocess : Preprocess, optional
            Preprocessing.
        root : str or Path, optional
            Folder, or its URL, that paths are relative to; by default that of the table. Below a URL, paths
            can't be absolute or have "..".
        unit : {"image", "series"}
            Unit of an item.
        classes : sequence of str, optional
            Order of the classes; by default natural order ("2" before "10"). For multilabel, other names for
            the columns.
        memory : int
            Bytes of images to keep in memory.
        cache : str, Path or ImageCache, optional
            Cache of rendered images.
        reading : mapping, optional
            Policies and values of :func:`medimg.read`, such as ``{"on_missing": "warn"}``.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If a column or a file is missing, a column or a path occurs twice, a cell is empty, or a file is
            not an image.
        LeakageError
            If two patients of the table share a Patient ID, or one has two.
        """
        table = _labels.read_table(csv)
        if root is None:
            root = _labels.find_table_folder(csv)
        labeled = _labels.label_rows(
            table,
            root.rstrip("/") if is_remote_url(root) else check_path("root", root, error=DatasetError),
            path=path,
            label=label,
            patient=patient,
            file_patients=file_patients,
            domain=domain,
            progress=progress,
        )
        columns = [] if _labels.is_one_column(label) else _labels.list_label_columns(label)
        names = None if classes is None else list_names(classes)
        if columns and names is not None and len(names) != len(columns):
            raise DatasetError(f"{len(names)} classes for {len(columns)} label columns")
        return cls(
            labeled,
            classes=(columns or _list_classes(labeled)) if names is None else names,
            preprocess=preprocess,
            unit=unit,
            task="multilabel" if columns else "multiclass",
            memory=memory,
            cache=cache,
            reading=reading,
        )

    @classmethod
    def from_arrays(
        cls,
        images: npt.ArrayLike | Sequence[npt.ArrayLike | Volume],
        labels: npt.ArrayLike | None = None,
        *,
        patients: Sequence[object] | None = None,
        domains: Sequence[object] | None = None,
        classes: Sequence[str] | None = None,
        axes: str | None = None,
        color: bool | None = None,
        spacing: float | Sequence[float] | None = None,
        modality: str = "",
        units: str = "raw",
        preprocess: Preprocess | None = None,
        unit: Unit = "image",
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
    ) -> ImageDataset:
        """
        Make a dataset of arrays in memory.

        Images are identified by their content, for leakage checks, saved splits and caches. The arrays are
        not copied; if one is changed later, reading it raises an error.

        Parameters
        ----------
        images : array_like, or list of array_like or Volume
            Images of one size in one array, or a list of images of any size; tensors on the CPU are arrays
            too. The axes are found by the shape, or named by `axes`:

            ===============  ===================================================================
            (N, H, W)        grayscale images
            (N, H, W, 3)     color images; (N, H, W, 1) is grayscale
            (N, D, H, W)     volumes of more than 4 slices
            (N, 1, H, W)     grayscale images
            (N, D, H, W, 3)  color volumes; (N, D, H, W, 1) and (N, 1, D, H, W) are grayscale
            ===============  ===================================================================

            Other shapes, such as (N, 3, H, W), could be channels or slices, and are an error without `axes`.
        labels : array_like, optional
            (N,) or (N, 1): names of classes, or indices into `classes`. (N, K): 0 and 1, for each of K
            classes whether an image is of it, which makes a multilabel dataset. None: images without labels.
        patients : sequence, optional
            Patient of each image. Without it each image counts as a patient of its own, with a warning, as
            images of one patient in several subsets are a leak.
        domains : sequence, optional
            Domain of each image, such as the site or the scanner; see :mod:`medimg.adapt`.
        classes : sequence of str, optional
            Names of the classes, in order; by default the names among the labels in natural order, or
            numbers.
        axes : str, optional
            Axes of `images` by letter: N (images), C (channels), D (slices), H and W, such as "NCHW"; for a
            list those of an image with N in front.
        color : bool, optional
            Whether three channels are red, green and blue; by default they are if they are last, or of 8
            bits.
        spacing : float or sequence of float, optional
            Distance between neighbors along (D, H, W), in millimeters, of all arrays.
        modality, units : str
            Modality, and units of the values, such as "CT" and "HU", of all arrays.
        preprocess : Preprocess, optional
            Preprocessing.
        unit : {"image", "series"}
            Unit of an item: each slice, or all of an array.
        memory : int
            Bytes of rendered images to keep in memory.
        cache : str, Path or ImageCache, optional
            Cache of rendered images.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If shapes are ambiguous, lengths differ, or a label is invalid.

        Examples
        --------
        >>> images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
        >>> data = ImageDataset.from_arrays(
        ...     images, [0, 1, 0, 1, 0, 1], classes=["benign", "malignant"], patients=[1, 1, 2, 2, 3, 4]
        ... )
        >>> data
        ImageDataset(6 images from 6 series of 4 patients (benign 3, malignant 3))
        >>> image, label = data[1]
        >>> tuple(image.shape), label
        ((3, 224, 224), 1)
        """
        labeled, names, task = label_arrays(
            images,
            labels,
            patients=patients,
            domains=domains,
            classes=classes,
            axes=axes,
            color=color,
            facts={"spacing": spacing, "modality": modality, "units": units},
            name="array",
        )
        return cls(
            labeled,
            classes=names,
            preprocess=preprocess,
            unit=unit,
            task=task,
            memory=memory,
            cache=cache,
        )

    @classmethod
    def from_prepared(
        cls,
        where: str | os.PathLike[str],
        *,
        unit: Unit = "image",
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> ImageDataset:
        """
        Make a dataset of a folder that :func:`medimg.prepare` wrote.

        Labels, patients, domains, classes and the preprocessing are those of its manifest; images are mapped
        from the shards, and checked against the manifest when they are first used. Sources that could not be
        prepared are in ``skipped``.

        Parameters
        ----------
        where : str or Path
            Folder, or its URL in object storage.
        unit : {"image", "series"}
            Unit of an item.
        cache : str or Path, optional
            Folder for copies of the shards, needed for a URL: each is fetched before it is first used, and
            checked against its SHA-256. Processes can share it.
        cache_bytes : int, optional
            Largest size of these copies, at least 4 of the largest shards; those that were not used for the
            longest time are removed first. If not all have room, training goes through the shards in random
            order, and shuffles the images of some shards at a time; give all processes of a training the same
            bound. By default all copies are kept.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If there is no manifest, it is damaged, `cache` is missing, or `cache_bytes` is too small; later,
            if a shard is missing or damaged.
        MissingDependencyError
            If pyarrow is not installed (extra ``prepare``).
        """
        from medimg.data.prepared.prepared_dataset import open_prepared

        if cache_bytes is not None:
            cache_bytes = check_whole_number("cache_bytes", cache_bytes, least=1, error=DatasetError)
            if cache is None:
                raise DatasetError(
                    "cache_bytes bounds the size of a cache, and there is none; pass cache=folder"
                )
        found = open_prepared(where, None if cache is None else make_cache_folder(cache), cache_bytes)
        return cls(
            found.labeled,
            classes=found.classes,
            preprocess=found.recipe,
            unit=unit,
            task=found.task,
            skipped=found.skipped,
            reading=found.reading,
        )

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        split: str | None = "train",
        *,
        classes: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
        unit: Unit = "image",
        axes: str | None = None,
        memory: int = _MEMORY,
        cache: str | Path | ImageCache | None = None,
    ) -> ImageDataset:
        """
        Make a dataset of one split of an ``.npz`` file, as MedMNIST's are, in 2-D and 3-D.

        Parameters
        ----------
        path : str or Path
            File with the arrays ``train_images``, ``train_labels``, ``val_images`` and so on.
        split : str or None
            "train", "val", "test", or another name before ``_images``; None for arrays ``images`` and
            ``labels``.
        classes : sequence of str, optional
            Names of the classes, in the order of the indices; numbers by default, as the files have no names.
        preprocess : Preprocess, optional
            Preprocessing.
        unit : {"image", "series"}
            Unit of an item; "series" for volumes.
        axes : str, optional
            Axes of the images; see :meth:`from_arrays`.
        memory : int
            Bytes of rendered images to keep in memory.
        cache : str, Path or ImageCache, optional
            Cache of rendered images.

        Returns
        -------
        ImageDataset
            Each image counts as a patient of its own, as the files do not name patients.

        Raises
        ------
        DatasetError
            If the file can't be read, has no such split, or its arrays are invalid.

        Examples
        --------
        >>> train, val, test = (
        ...     ImageDataset.from_npz("pneumoniamnist.npz", split, classes=["normal", "pneumonia"])
        ...     for split in ("train", "val", "test")
        ... )  # doctest: +SKIP
        """
        if split is not None:
            check_text("split", split, error=DatasetError)
        images, labels, name = read_npz(check_path("path", path, error=DatasetError), split)
        labeled, names, task = label_arrays(images, labels, classes=classes, axes=axes, name=name)
        return cls(
            labeled,
            classes=names,
            preprocess=preprocess,
            unit=unit,
            task=task,
            memory=memory,
            cache=cache,
        )

    @classmethod
    def concat(
        cls,
        datasets: Sequence[ImageDataset] | Mapping[str, ImageDataset],
        *,
        domains: Sequence[str] | None = None,
        patients: SamePatients = "check",
        classes: Sequence[str] | None = None,
        memory: int | None = None,
        cache: str | Path | ImageCache | None = None,
    ) -> ImageDataset:
        """
        Join datasets, such as those of several sites, into one, whose images have the site as their domain.

        Recipe, unit, task and reading policies must be the same. Splits, leakage checks, caches and training
        take the joined dataset like any other: ``adapt.MultiSource(target, domain="column")`` takes its
        domains as sources, and ``evaluate(subgroups="site")`` scores each.

        Parameters
        ----------
        datasets : sequence of ImageDataset, or mapping of str to ImageDataset
            Datasets to join, or these by the name of their site. Their images keep their order.
        domains : sequence of str, optional
            Name of each dataset of a list, such as its site, which becomes the domain of its images. Without
            names images keep the domain that they have; datasets without domains are called "site 1",
            "site 2" and so on by their number, unless all are subsets of one dataset.
        patients : {"check", "separate", "shared"}
            Whether equal patient IDs in several datasets are one person. A Patient ID is only unique within
            the site that issued it. "check": equal IDs are an error, so that this is decided. "separate":
            each site has IDs of its own, and equal ones are different patients; IDs get the name of the site.
            "shared": an ID is the same person at all sites, and all images of a person are in one subset of a
            split. Datasets of one name, and subsets of one dataset without names, always share patients.
        classes : sequence of str, optional
            Names of the classes in order; by default those of the first dataset, which the others must have,
            too, in any order. A class may be named that some sites have no images of. For multilabel, columns
            that all datasets have; others are left out.
        memory : int, optional
            Bytes of images to keep in memory; by default as much as the datasets together.
        cache : str, Path or ImageCache, optional
            Cache of rendered images; by default the one that the datasets have.

        Returns
        -------
        ImageDataset

        Raises
        ------
        DatasetError
            If datasets differ in preprocessing, unit, task, policies, caches or classes, an image is in
            several, some have no labels, or names don't match.
        LeakageError
            If equal patient IDs occur in several datasets, and `patients` is "check".

        Examples
        --------
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
        >>> lyon = ImageDataset.from_arrays(images[:2], ["benign", "malignant"], patients=[1, 2])
        >>> bern = ImageDataset.from_arrays(images[2:], ["malignant", "benign"], patients=[1, 2])
        >>> data = ImageDataset.concat({"Lyon": lyon, "Bern": bern}, patients="separate")
        >>> data
        ImageDataset(4 images from 4 series of 4 patients (benign 2, malignant 2))
        >>> data.domains
        ('Lyon', 'Lyon', 'Bern', 'Bern')
        """
        parts, names = list_parts(datasets, domains, ImageDataset)
        joined = join_items(parts, names, patients=patients, classes=classes)
        stores = {id(part._store): part._store for part in parts}
        kept = sum(store.capacity for store in stores.values()) if memory is None else memory
        found = object.__new__(cls)
        found.__dict__.update(parts[0].__dict__)
        found.classes, found.skipped = joined.classes, joined.skipped
        found._labeled, found._items = joined.labeled, joined.items
        found.cache = find_common_cache(parts) if cache is None else as_cache(cache)
        found._targets = encode_labels(joined.labeled, joined.classes, found.task)
        found._read_elements = {k: v for part in parts for k, v in part._read_elements.items()}
        loader = ImageLoader(found.preprocess, found._policies, found.cache)
        found._store = ImageStore(loader, [item.series for item in joined.labeled], kept)
        return found

    @overload
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]: ...
    @overload
    def __getitem__(
        self, index: slice | Sequence[int] | npt.NDArray[np.integer | np.bool] | pd.Series[Any] | torch.Tensor
    ) -> ImageDataset: ...
    def __getitem__(self, index: Any) -> Any:
        """
        Return an item and its label, or a dataset of several items.

        Parameters
        ----------
        index : int, slice, or sequence of int or of bool
            Index of an item; or items that make a dataset, as in :meth:`subset`: ``dataset[:3]``,
            ``dataset[[5, 2]]``, or a mask with an entry for each item, ``dataset[dataset.labels == 1]``.

        Returns
        -------
        image : torch.Tensor
            float32, normalized: (C, H, W), or (N, C, H, W) if the unit is a series; in 3-D (C, D, H, W).
        label : int or torch.Tensor
            Class index, or (K,) float32.

        Raises
        ------
        DatasetError
            If no item is chosen, or a mask has another length.

        Examples
        --------
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
        >>> data = ImageDataset.from_arrays(images, [0, 1, 0, 1], patients=[1, 2, 3, 4])
        >>> data[-2:]
        ImageDataset(2 images from 2 series of 2 patients (0 1, 1 1))
        >>> data[data.labels == 1].patients
        ('2', '4')
        """
        several = choose_several(index, len(self))
        if several is not None:
            return self.subset(several)
        item = self._items[check_index(index)]
        images = normalize_images(self.preprocess, [self._store.take(item.source, item.image)])
        return images if item.image is None else images[0], self._get_label(item)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int | torch.Tensor]]:
        """Return several items, which is faster than one by one; torch's data loaders call this."""
        # a subclass may change items in its own `__getitem__`
        if self.unit == "series" or type(self).__getitem__ is not ImageDataset.__getitem__:
            return [self[i] for i in indices]
        items = [self._items[i] for i in indices]
        images = normalize_images(self.preprocess, [self._store.take(i.source, i.image) for i in items])
        return [(image, self._get_label(item)) for image, item in zip(images, items, strict=True)]

    def _take_stored(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int | torch.Tensor]]:
        """Return images (1 or C, *size) as they are stored, not to be written to, and their labels."""
        items = [self._items[i] for i in indices]
        return [(self._store.take(item.source, item.image)[0], self._get_label(item)) for item in items]

    def _get_label(self, item: Item) -> int | torch.Tensor:
        target = self._targets[item.source]
        return torch.from_numpy(np.array(target)) if self.task == "multilabel" else int(target)

    def planes(self, index: int) -> torch.Tensor:
        """
        Return an item before normalization.

        Returns
        -------
        torch.Tensor
            float32, 0 (black) to 1 (white): (1 or 3, H, W), or (N, 1 or 3, H, W) if the unit is a series; in
            3-D (C, D, H, W).
        """
        item = self._items[check_index(index)]
        planes = decode_intensity(self._store.take(item.source, item.image).clone())
        return planes if item.image is None else planes[0]

    def fill_cache(
        self,
        *,
        workers: int | None = None,
        executor: Executor | None = None,
        progress: Progress = "auto",
    ) -> None:
        """
        Render all images that are not in the cache yet, on all cores, rather than in the first epoch.

        Parameters
        ----------
        workers : int, optional
            Number of threads, all cores by default; or of series that an executor works on at once.
        executor : concurrent.futures.Executor, optional
            Executor whose workers render the series, in a folder that they see, too.
        progress : "auto" or bool
            Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

        Raises
        ------
        DatasetError
            If there is no cache.
        ExecutorError
            If a series takes down the workers that render it, or the executor can't run tasks.
        """
        if self.cache is None:
            raise DatasetError("this dataset has no cache; make it with cache=folder")
        sources = sorted({item.source for item in self._items})
        self._store.fill(sources, workers, progress, check_executor(executor))

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> ImageDataset:
        """
        Return a dataset of some items, with which it shares images in memory.

        Parameters
        ----------
        indices : sequence of int, or of bool
            Indices of the items, in order; or a mask with an entry for each item.

        Raises
        ------
        DatasetError
            If no item is chosen, an index is out of range, or a mask has another length.
        """
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._items = tuple(self._items[i] for i in check_indices(indices, len(self)))
        return part

    def split_by_source(self, size: int) -> list[list[int]]:
        """Return the indices of the items in parts of at least `size` images that share no series."""
        found: dict[int, list[int]] = {}
        for index, item in enumerate(self._items):
            found.setdefault(item.source, []).append(index)
        parts: list[list[int]] = [[]]
        for indices in found.values():
            if len(parts[-1]) >= (1 if self.unit == "series" else size):
                parts.append([])
            parts[-1] += indices
        return parts

    def extract(self, indices: Sequence[int]) -> ImageDataset:
        """Return a dataset of some items that has only their series: small to send to another process."""
        part = self.subset(indices)
        used = sorted({item.source for item in part._items})
        numbers = {source: number for number, source in enumerate(used)}
        part._items = tuple(replace(item, source=numbers[item.source]) for item in part._items)
        part._labeled = tuple(self._labeled[n] for n in used)
        part._targets = self._targets[used]
        part._store = self._store.select(used)
        part._read_elements, part.skipped = {}, ()
        return part

    def with_preprocess(self, preprocess: Preprocess) -> ImageDataset:
        """
        Return the same images with other preprocessing.

        Images in memory are shared if only mean and standard deviation differ.

        Parameters
        ----------
        preprocess : Preprocess
            Preprocessing.

        Raises
        ------
        DatasetError
            If this is a subset, and more than mean and standard deviation differ.
        """
        if preprocess.replace(mean=None, std=None) == self.preprocess.replace(mean=None, std=None):
            same = self.subset(range(len(self)))
            same.preprocess = preprocess
            return same
        if self._items != list_items(self._labeled, self.preprocess, self.unit):
            raise DatasetError("can't change the preprocessing of a subset; change it before splitting")
        with warnings.catch_warnings():
            # issued when this dataset was made
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

    def find_stream(self) -> ShardStream | None:
        """Return the shards of the items if they are fetched from object storage."""
        from medimg.data.prepared.shard_stream import ShardStream

        return ShardStream([self._labeled[item.source].series.reader for item in self._items]) or None

    def find_item_keys(self) -> ItemKeys:
        """Return the cache addresses of the items; the files are opened to find them."""
        return ItemKeys(self._items, self._store, self.preprocess)

    def show_batch(self, count: int = 9, *, seed: int = 0) -> Figure:
        """
        Return a figure of random items as a model gets them, but for normalization, with their classes.

        Parameters
        ----------
        count : int
            Largest number of items, up to 100; of a bag, the middle image is shown.
        seed : int
            Seed for the choice of the items.

        Returns
        -------
        matplotlib.figure.Figure
            Images titled with the names of their classes.

        Raises
        ------
        ReadError
            If a file can't be read or decoded.
        """
        from medimg.plotting.montage import plot_images

        count = check_whole_number("count", count, least=1, most=100, error=DatasetError)
        order = np.random.default_rng(check_seed(seed)).permutation(len(self))[:count].tolist()
        images = [self.planes(index).numpy() for index in order]
        return plot_images(images, [self._name_label(index) for index in order])

    def _name_label(self, index: int) -> str:
        """Return the names of an item's classes."""
        label = self.labels[index]
        if np.ndim(label):
            return ", ".join(n for n, one in zip(self.classes, label, strict=True) if one) or "none"
        return self.classes[int(label)] if 0 <= int(label) < len(self.classes) else ""

    def __repr__(self) -> str:
        return f"ImageDataset({self.summary()})"

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import facts_html, join_names

        counts = [f"{name} {count:,}" for name, count in self.class_counts().items()]
        facts = {
            "items": f"{len(self):,} {'series' if self.unit == 'series' else 'images'}",
            "series": f"{len({item.source for item in self._items}):,}",
            "patients": f"{len(set(self.patients)):,}",
            "classes": join_names(counts),
            "task": self.task,
            "image size": "×".join(map(str, self.preprocess.hw)),
            "window": self.preprocess.window,
            "files skipped": f"{len(self.skipped):,}",
        }
        return facts_html("ImageDataset", facts)


def _list_classes(labeled: Sequence[LabeledSeries]) -> list[str]:
    """
    Return the class names of labeled series in natural order.

    DatasetError if each of many classes has the images of one patient, as in a column of identifiers; its
    cells are not quoted.
    """
    patients: dict[str, set[str]] = defaultdict(set)
    for number, item in enumerate(labeled):
        if item.label is not None:
            patients[str(item.label)].add(patient_key(item.patient) or f"{UNKNOWN}{number}")
    if len(patients) >= _MANY and all(len(several) == 1 for several in patients.values()):
        raise DatasetError(
            f"the {len(labeled)} series have {len(patients)} different labels, each of one patient only, as "
            "identifiers have: check the column, or the subfolders, of labels; name classes by classes=, or "
            "pass label=None for images without labels"
        )
    return sort_classes(patients)
