"""Readers that break one rule of the contract each."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import NotAnImageError, TruncatedError
from medimg.io.series import Policies, Series

SECRET = "Sentinel^Anna"
MAGIC = b"FAKEIMG1"
SHAPE = (5, 4, 6)
AFFINE = geometry.affine_from_slices([-10, -20, 5], [0.1, 0, 2.5], [1, 0, 0, 0, 1, 0], [0.7, 0.5])

Break: TypeAlias = Callable[[Series], Series]
Change: TypeAlias = Callable[[Volume], Volume]


def write_fake(path: Path) -> Path:
    """A format of its own: a magic word, D, H and W, and int16 values."""
    values = np.random.default_rng(3).integers(-1000, 1000, SHAPE).astype("<i2")
    path.write_bytes(MAGIC + np.asarray(SHAPE, "<u2").tobytes() + values.tobytes())
    return path


def sound_series(path: Path) -> Series:
    """A reader that keeps every rule."""
    shape = _sound_shape(path)

    def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
        del policies
        _sound_shape(path)
        values = np.frombuffer(path.read_bytes()[14:], "<i2").reshape(1, *shape)
        volume = Volume(
            values,
            AFFINE,
            modality="CT",
            units="HU",
            voi=((Window(40, 400),),),
            report=ReadReport(format="fake", files=(str(path),)),
        )
        return volume if slices is None else volume.take(slices)

    return Series(
        uid=str(path),
        modality="CT",
        description="",
        shape=(1, *shape),
        affine=AFFINE,
        space="patient",
        files=(str(path),),
        format="fake",
        reader=read,
        patient_id=SECRET,
    )


def _sound_shape(path: Path) -> tuple[int, int, int]:
    if not path.is_file():
        raise NotAnImageError(f"there is no file {path}")
    data = path.read_bytes()
    if data[:8] != MAGIC or len(data) < 14:
        raise NotAnImageError(f"{path} is no fake image")
    d, h, w = (int(n) for n in np.frombuffer(data[8:14], "<u2"))
    if not d * h * w or len(data) != 14 + 2 * d * h * w:
        raise TruncatedError(f"{path} has {len(data)} bytes, {14 + 2 * d * h * w} expected")
    return d, h, w


def promised(**facts: Any) -> Break:
    """Other facts in the series than in its volumes."""
    return lambda series: replace(series, **facts)


def on_whole(change: Change, **facts: Any) -> Break:
    """Another volume, of which slices are taken, and the same facts in the series."""

    def broken(series: Series) -> Series:
        def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
            volume = change(series.reader(None, policies))
            return volume if slices is None else volume.take(slices)

        return replace(series, reader=read, **facts)

    return broken


def on_each(change: Change) -> Break:
    """Another volume, whatever slices are read."""

    def broken(series: Series) -> Series:
        def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
            return change(series.reader(slices, policies))

        return replace(series, reader=read)

    return broken


def besides(act: Callable[[Series, Sequence[int] | None], object]) -> Break:
    """The right volume, and something done besides."""

    def broken(series: Series) -> Series:
        def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
            act(series, slices)
            return series.reader(slices, policies)

        return replace(series, reader=read)

    return broken


def tampered(volume: Volume, **facts: Any) -> Volume:
    """A volume with what its constructor would refuse."""
    copy = replace(volume)
    for name, value in facts.items():
        object.__setattr__(copy, name, value)
    return copy


class Duck:
    """Quacks like a volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def __getattr__(self, name: str) -> Any:
        return getattr(self._volume, name)

    def __repr__(self) -> str:
        return repr(self._volume)


class OtherArray(np.ndarray):
    pass


class Chatty(Volume):
    __slots__ = ()

    def __repr__(self) -> str:
        return "Volume\n" + repr(self.array)


class Twisted(Volume):
    __slots__ = ()

    def reorient(self, code: str) -> Volume:
        array, affine, *_ = geometry.reorient(self.array, self.affine, code)
        return Volume(array[..., ::-1], affine)


class Careless(Volume):
    __slots__ = ()

    def take(self, slices: Sequence[int]) -> Volume:
        part = Volume.take(self, slices)
        return replace(part, affine=self.affine)


def as_a(kind: type[Volume]) -> Change:
    return lambda v: kind(**{f.name: getattr(v, f.name) for f in fields(Volume)})


def _memory_mapped(volume: Volume) -> Volume:
    path = Path(str(volume.report.files[0]) + f"-{threading.get_ident()}.npy")
    if not path.exists():
        np.save(path, volume.array)
    return replace(volume, array=np.load(path, mmap_mode="r"))


def _bytes(shape: tuple[int, ...]) -> Any:
    mask = np.zeros(shape, np.uint8)
    mask.setflags(write=False)
    return mask


def _twice(volume: Volume, **facts: Any) -> Volume:
    return replace(volume, array=np.concatenate([volume.array] * 2), channels=(), **facts)


def _two(series: Series) -> Series:
    return on_whole(lambda v: tampered(_twice(v), channels=("x", "x")), shape=(2, *SHAPE))(series)


def _paint(volume: Volume) -> Volume:
    array = np.concatenate([volume.array] * 3).astype(np.uint8)
    return replace(volume, array=array, photometric="RGB", channels=("a", "b", "c"))


def _bent() -> Any:
    affine = AFFINE.copy()
    affine[3, 0] = 0.001
    return affine


def _moved(millimeters: float) -> Any:
    affine = AFFINE.copy()
    affine[0, 3] += millimeters
    return affine


def _reported(**facts: Any) -> Change:
    return lambda v: replace(v, report=replace(v.report, **facts))


def _index_error(series: Series) -> Series:
    def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
        volume = series.reader(None, policies)
        if slices is None:
            return volume
        return volume.take([range(series.shape[1])[i] for i in sorted(slices)])

    return replace(series, reader=read)


def _off_by_one(series: Series) -> Series:
    def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
        volume = series.reader(slices, policies)
        if slices is not None and list(slices) == [1, 3]:
            return replace(volume, array=np.roll(volume.array, 1, axis=1))
        return volume

    return replace(series, reader=read)


def _cached(series: Series) -> Series:
    whole = series.reader(None, Policies())

    def read(slices: Sequence[int] | None, policies: Policies) -> Volume:
        return whole if slices is None else whole.take(slices)

    return replace(series, reader=read)


def _only_in_main_thread(volume: Volume) -> Volume:
    if threading.current_thread() is threading.main_thread():
        return volume
    return replace(volume, array=volume.array + np.int16(1))


def _write_beside(series: Series, slices: Sequence[int] | None) -> None:
    with Path(series.path + ".cache").open("a") as file:
        file.write("x")


LEFT_OPEN: list[Any] = []


def _leave_open(series: Series, slices: Sequence[int] | None) -> None:
    LEFT_OPEN.append(Path(series.path).open("rb"))  # noqa: SIM115  # the mistake


BROKEN: dict[str, Break] = {
    "volume_is_a_volume": on_each(Duck),  # type: ignore[arg-type]  # that is the mistake
    "array_has_four_axes": on_each(lambda v: tampered(v, array=v.array.view(OtherArray))),
    "arrays_are_read_only": on_each(lambda v: tampered(v, array=v.array.copy())),
    "array_holds_plain_numbers": on_whole(lambda v: replace(v, array=v.array.astype(">i2"))),
    "array_is_in_memory": on_whole(_memory_mapped),
    "affine_is_sound": on_whole(lambda v: replace(v, affine=_bent()), affine=_bent()),
    "space_without_patient_has_no_directions": on_whole(lambda v: replace(v, space="image"), space="image"),
    "colors_are_red_green_blue": on_whole(_paint, shape=(3, *SHAPE)),
    "monochrome1_is_shown_inverted": on_whole(lambda v: replace(v, photometric="MONOCHROME1")),
    "channels_are_named": _two,
    "windows_fit_the_slices": on_each(lambda v: tampered(v, voi=((),))),
    "padding_has_the_shape_of_the_array": on_each(lambda v: tampered(v, padding=_bytes(v.shape))),
    "units_are_said": on_each(lambda v: replace(v, units="")),
    "modality_is_a_code": on_whole(lambda v: replace(v, modality="Ct ", units="raw"), modality="Ct "),
    "report_says_what_was_done": on_whole(_reported(sop_instance_uids=("1.2", "1.3"))),
    "picture_and_repr_can_be_shown": on_whole(as_a(Chatty)),
    "turning_keeps_each_voxel_in_place": on_whole(as_a(Twisted)),
    "taking_slices_keeps_them_in_place": on_whole(as_a(Careless)),
    "series_says_what_it_is": promised(uid=""),
    "times_fit_channels_or_frames": promised(frame_times=(0.0, 1.0)),
    "shape_is_as_promised": promised(shape=(1, 5, 4, 7)),
    "place_is_as_promised": promised(affine=_moved(1)),
    "origin_is_as_promised": promised(modality="MR"),
    "some_slices_equal_those_of_all": _off_by_one,
    "slices_out_of_order_or_range_are_refused": _index_error,
    "reading_again_gives_equal_values": _cached,
    "threads_read_the_same": on_each(_only_in_main_thread),
    "warnings_are_of_medimg_and_in_the_report": besides(
        lambda *_: warnings.warn("careful", UserWarning, stacklevel=1)
    ),
    "nothing_is_printed": besides(lambda *_: print("reading")),
    "process_is_left_as_it_was": besides(lambda *_: np.random.rand()),  # noqa: NPY002  # the mistake
    "nothing_is_written_beside_the_source": besides(_write_beside),
    "files_are_closed": besides(_leave_open),
    "nobody_is_named": on_whole(_reported(transforms=(f"read the scan of {SECRET}",))),
}


def _turned_around(volume: Volume) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (volume.shape[1] - 1)
    affine[:3, 0] *= -1
    report = volume.report
    report = replace(report, files=report.files[::-1], sop_instance_uids=report.sop_instance_uids[::-1])
    return replace(volume, array=volume.array[:, ::-1], affine=affine, report=report)


def _changed_affine(change: Callable[[Any], None]) -> Break:
    def broken(series: Series) -> Series:
        affine = series.affine.copy()
        change(affine)
        return on_whole(lambda v: replace(v, affine=affine), affine=affine)(series)

    return broken


def _shift(affine: Any) -> None:
    affine[2, 3] += 0.5


def _exchange(affine: Any) -> None:
    affine[:3, 1] *= 0.6 / 0.8
    affine[:3, 2] *= 0.8 / 0.6


def _backwards(series: Series) -> Series:
    affine = _turned_around(series.read()).affine
    return on_whole(_turned_around, affine=affine)(series)


def _rolled(volume: Volume) -> Volume:
    uids = volume.report.sop_instance_uids
    return replace(volume, report=replace(volume.report, sop_instance_uids=uids[1:] + uids[:1]))


BROKEN_DICOM: dict[str, Break] = {
    "slices_lie_where_their_files_say": _changed_affine(_shift),
    "pixels_lie_as_their_files_say": _changed_affine(_exchange),
    "slices_ascend_along_their_normal": _backwards,
    "instances_are_those_of_the_files": on_whole(_rolled),
    "values_are_rescaled_stored_values": on_whole(lambda v: replace(v, array=v.array.max() - v.array)),
}


def _by_name(path: Path) -> Series:
    return on_whole(lambda v: replace(v, array=v.array + np.int16(len(path.stem))))(sound_series(path))


def _by_neighbor(path: Path) -> Series:
    return sound_series(beside if (beside := path.with_suffix(".nii")).exists() else path)


def _by_luck(path: Path) -> Series:
    path.stat()
    return sound_series(path)


def _from_nothing(path: Path) -> Series:
    if path.exists() and not any(path.read_bytes()):
        return on_each(lambda v: v)(
            promised(reader=lambda *_: Volume(np.zeros((1, 1, 1, 1)), AFFINE))(_empty(path))
        )
    return sound_series(path)


def _empty(path: Path) -> Series:
    return Series(
        uid=str(path),
        modality="",
        description="",
        shape=(1, 1, 1, 1),
        affine=AFFINE,
        space="patient",
        files=(str(path),),
        format="fake",
        reader=lambda *_: None,  # type: ignore[arg-type]  # that is the mistake
    )


def _padded(path: Path) -> Series:
    data = path.read_bytes() if path.exists() else b""
    missing = 14 + 2 * int(np.prod(SHAPE)) - len(data)
    if data[:14] == MAGIC + np.asarray(SHAPE, "<u2").tobytes() and missing > 0:
        path.write_bytes(data + bytes(missing))
    return sound_series(path)


def _unguarded(path: Path) -> Series:
    if (
        path.exists()
        and len(data := path.read_bytes()) > 0
        and data[:6] == MAGIC[:6]
        and data[6:8] != MAGIC[6:]
    ):
        raise KeyError(data[6:8])
    return sound_series(path)


BROKEN_FORMATS: dict[str, Callable[[Path], Series]] = {
    "folder_and_stem_do_not_matter": _by_name,
    "file_beside_it_does_not_matter": _by_neighbor,
    "file_that_is_gone_is_refused": _by_luck,
    "file_without_content_is_refused": _from_nothing,
    "file_cut_short_is_refused": _padded,
    "damaged_file_is_a_volume_or_a_medimg_error": _unguarded,
}
