"""The benchmarks: what their data hold, how the table is rendered, and that every work can be done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.encaps import generate_frames

import benchmarks
import medimg
from benchmarks import checks, cli, timing
from benchmarks.competition import competition
from benchmarks.data import CODECS, FULL, SMALL, Data
from benchmarks.data.archive import series_sizes
from benchmarks.data.ct import SYNTAXES
from benchmarks.data.makers import MAKERS
from benchmarks.goals import GOALS, Goal
from benchmarks.measured import Row, Table
from benchmarks.peers import COLUMNS, COMMON, NOT_ITS_WORK, CannotError, limit, task
from benchmarks.peers.grid import Resampled
from benchmarks.peers.plain_medimg import PlainScan
from benchmarks.reference import picture, resampling_error, triangles
from benchmarks.running import Setting, measured
from benchmarks.store import load_table, store_table
from benchmarks.tables import END, START, filled, goal_rows, markdown, plain
from benchmarks.timing import evict, interleaved
from benchmarks.works import WORKS, Work

ROOT = Path(benchmarks.__file__).parent
PAGE = ROOT.parent / "docs" / "performance.md"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def data(root: Path) -> Data:
    return Data(root, SMALL)


def instances(folder: Path) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


def run_works(names: Sequence[str], setting: Setting) -> Table:
    return {row.key: row for rows in measured([WORKS[name] for name in names], setting) for row in rows}


def expected(data: Data) -> npt.NDArray[np.int16]:
    return data.stored.astype(np.int16) - np.int16(1024)


# what the data hold


def test_the_full_scale_is_what_the_titles_say() -> None:
    assert (FULL.slices, FULL.size, FULL.xrays) == (300, 512, 40)
    assert (FULL.series * FULL.per_series, FULL.layouts) == (5000, 2000)


@pytest.mark.parametrize("codec", SYNTAXES)
def test_the_ct_is_the_same_in_every_syntax(data: Data, codec: str) -> None:
    datasets = sorted(instances(data.ct(codec)), key=lambda ds: float(ds.ImagePositionPatient[2]))
    assert {str(ds.file_meta.TransferSyntaxUID) for ds in datasets} == {SYNTAXES[codec]}
    volume = medimg.read(data.ct(codec))
    assert np.array_equal(volume.array[0], expected(data))
    assert volume.spacing == pytest.approx((1.25, 0.7, 0.7))


def test_headers_are_as_long_and_as_varied_as_those_of_scanners(data: Data) -> None:
    datasets = instances(data.ct())
    assert all(108 <= len(ds) <= 118 for ds in datasets)
    for keyword in ("SOPInstanceUID", "InstanceNumber", "SliceLocation", "XRayTubeCurrent", "ContentTime"):
        assert len({len(str(ds[keyword].value)) for ds in datasets}) > 1, keyword
    assert len({ds.SOPInstanceUID for ds in datasets}) == SMALL.slices


def test_values_of_the_ct_are_of_12_bits_and_noisy(data: Data) -> None:
    assert data.stored.max() < 4096
    air = data.stored[:, :8, :8].astype(int)
    assert np.abs(np.diff(data.stored[:, 24:40, 24:40].astype(int), axis=0)).max() > 10
    assert air.min() == 0


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_files_are_smaller(data: Data, codec: str) -> None:
    sizes = [sum(p.stat().st_size for p in data.ct(c).iterdir()) for c in (codec, "native")]
    assert sizes[0] < sizes[1]


def test_xrays_mix_bits_and_photometric_interpretations(data: Data) -> None:
    datasets = instances(data.xrays())
    assert len(datasets) == SMALL.xrays
    assert {ds.PhotometricInterpretation for ds in datasets} == {"MONOCHROME1", "MONOCHROME2"}
    assert {ds.BitsStored for ds in datasets} == {12, 13, 14}
    for ds in datasets:
        assert ds.pixel_array.shape == (SMALL.xray_rows, SMALL.xray_columns)
        assert ds.pixel_array.max() < 2**ds.BitsStored
        assert float(ds.WindowWidth) > 0


def test_the_tree_holds_series_of_small_files(data: Data) -> None:
    index = medimg.scan(data.tree())
    assert [s.shape[1] for s in index] == [SMALL.per_series] * SMALL.series
    assert not index.skipped


def test_the_tree_of_layouts_has_as_many_as_promised(data: Data) -> None:
    def layouts(folder: Path) -> set[tuple[int, ...]]:
        return {tuple(int(e.tag) for e in ds if e.tag.group == 9) for ds in instances(folder)}

    assert len(layouts(data.layouts())) == SMALL.layouts
    assert len(layouts(data.tree())) == 1
    assert len(layouts(data.fewer_layouts())) == SMALL.layouts // 5


def test_the_archive_is_of_many_makers_and_is_read_whole(data: Data) -> None:
    datasets = [pydicom.dcmread(path) for path in data.archive().rglob("*") if path.is_file()]
    sizes = series_sizes(SMALL)
    assert {ds.Manufacturer for ds in datasets} == {maker.name for maker in MAKERS}
    assert {ds.Modality for ds in datasets} == {"CT", "MR", "PT", "CR"}
    assert {ds.file_meta.TransferSyntaxUID.is_implicit_VR for ds in datasets} == {True, False}
    assert any(ds.file_meta.TransferSyntaxUID.is_compressed for ds in datasets)
    assert len({tuple(ds.keys()) for ds in datasets}) > len(sizes)
    plain = [ds for ds in datasets if not ds.file_meta.TransferSyntaxUID.is_compressed]
    assert all(ds.pixel_array.shape == (16, 16) for ds in plain)
    index = medimg.scan(data.archive())
    assert not index.skipped
    assert sum(len(series.files) for series in index) == sum(size for _, size in sizes)
    assert checks.archive(data).error(index) == 0
    assert all(series.read().array.any() for series in index)


def test_nifti_files_hold_the_ct_and_lie_apart(data: Data) -> None:
    for path in (data.nifti(), data.zipped_nifti()):
        image: Any = nibabel.load(path)
        assert np.array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), expected(data))
    # a reader that takes the one for the other must not find it
    assert not data.zipped_nifti().with_suffix("").exists()


def test_data_are_written_once_and_never_half(
    root: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(data.tree().rglob("*.dcm"))
    stamp = first.stat().st_mtime_ns
    assert next(Data(root, SMALL).tree().rglob("*.dcm")).stat().st_mtime_ns == stamp

    def broken(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.data.store.write_tree", broken)
    fresh = Data(root / "other", SMALL)
    with pytest.raises(KeyboardInterrupt):
        fresh.tree()
    assert list(fresh.folder.iterdir()) == []


# references


def test_triangles_interpolate_between_neighbors() -> None:
    weights = triangles(np.array([0.0, 1.25]), 3, 1.0)
    assert np.allclose(weights, [[1.0, 0.0, 0.0], [0.0, 0.75, 0.25]])


def test_the_reference_of_pictures_is_what_a_constant_gives() -> None:
    made = picture(np.full((30, 20), 39.5), 8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(made, np.broadcast_to(((0.5 - mean) / std)[:, None, None], (3, 8, 8)))
    inverted = picture(np.full((30, 20), 1000), 8, inverted=True)
    assert np.allclose(inverted, (-mean / std)[:, None, None])


def test_errors_of_resampling_are_seen() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(size=(9, 9, 9))
    same = Resampled(before, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert resampling_error(before, same, antialias=True) == 0
    shifted = Resampled(before, (0.5, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert resampling_error(before, shifted, antialias=False) > 0.1
    halved = Resampled(before[::2, ::2, ::2], (0.0, 0.0, 0.0), (2.0, 2.0, 2.0))
    assert resampling_error(before, halved, antialias=False) == 0
    assert resampling_error(before, halved, antialias=True) > 0.1


# running


@pytest.fixture
def garbage_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where times do not matter: collecting takes longer than what is run."""
    leave: dict[str, Any] = dict.fromkeys(("collect", "freeze", "unfreeze"), int)
    monkeypatch.setattr(timing, "gc", SimpleNamespace(**leave))


@pytest.mark.usefixtures("garbage_is_left")
def test_all_take_turns_and_the_slow_sit_out() -> None:
    order: list[str] = []
    candidates = {name: partial(order.append, name) for name in "abc"}
    took = interleaved(candidates, 3, before=lambda: order.append("-"))
    assert "".join(order) == "-a-b-c-b-c-a-c-a-b"
    assert {name: len(times) for name, times in took.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(interleaved(candidates, 5, budget=0.0, least=2)["a"]) == 2


def test_evicting_keeps_files_as_they_are(data: Data) -> None:
    files = sorted(data.tree().rglob("*.dcm"))
    before = files[0].read_bytes()
    evict(files)
    assert files[0].read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MEDIMG_SLOW"), reason="takes half a minute: set MEDIMG_SLOW=1")
def test_every_work_can_be_done_with_medimg(root: Path, data: Data) -> None:
    table = run_works(list(WORKS), Setting(root, data, COMMON, 1))
    for key, work in WORKS.items():
        assert "medimg" in table[key].samples, (key, table[key].missing)
        assert "limit" in table[key].samples or work.measure == "memory", (key, table[key].missing)
    assert table["tensors.error"].samples["medimg"][0] < 1e-3
    assert table["xrays.error"].samples["medimg"][0] < 1e-3
    assert table["resample.error"].samples["medimg"][0] < 1e-2
    assert plain(table, COMMON)


@pytest.mark.usefixtures("garbage_is_left")
@pytest.mark.slow
def test_works_of_pydicom_give_what_they_should(root: Path, data: Data) -> None:
    works = ("scan", "volume", "tensors", "few", "xrays", "rle", "nifti_gz")
    columns = ("pydicom", "pydicom + torch", "pydicom + PIL", "SimpleITK", "nibabel")
    table = run_works(works, Setting(root, data, columns, 1))
    for key, who in (
        ("volume", "pydicom"),
        ("rle", "pydicom"),
        ("nifti_gz", "nibabel"),
        ("scan", "SimpleITK"),
    ):
        assert who in table[key].samples, table[key].missing
    for key in ("tensors.error", "few.error", "xrays.error"):
        assert table[key].samples["pydicom + torch"][0] < 1e-3
        assert table[key].samples["SimpleITK"][0] < 1e-3
    assert table["nifti_gz"].missing["pydicom"] == NOT_ITS_WORK


def test_what_is_not_installed_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COLUMNS, "nothing", "not_there")
    with pytest.raises(CannotError, match="not installed"):
        task("nothing", "scan")
    with pytest.raises(CannotError, match="NIfTI"):
        task("nibabel", "scan")


def test_other_values_do_not_count_as_work(root: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = expected(data) + 1
    monkeypatch.setattr("benchmarks.peers.medimg_.volume", lambda job: lambda: wrong)
    row = run_works(["volume"], Setting(root, data, ("medimg",), 1))["volume"]
    assert not row.samples
    assert "other values" in row.missing["medimg"]


def test_competing_processes_end_with_the_block() -> None:
    with competition() as processes:
        assert processes
        for number in processes:
            os.kill(number, 0)
    for number in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_the_limit_of_a_codec_sees_damage(data: Data) -> None:
    path = next(iter(sorted(data.ct("htj2k").iterdir())))
    frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    assert not limit._sees_damage(imagecodecs.htj2k_decode, frame)
    decode = limit._best_decoder(limit._DECODERS[SYNTAXES["htj2k"]], frame)
    assert decode is imagecodecs.jpeg2k_decode


def test_a_scan_without_the_compiled_core_finds_the_same(data: Data) -> None:
    scan = PlainScan(data.tree())
    assert scan() == scan() == [SMALL.per_series] * SMALL.series


def test_series_that_are_missing_do_not_count_as_a_scan(
    root: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"1.2.3": [0] * SMALL.per_series}
    monkeypatch.setattr("benchmarks.peers.medimg_.scan", lambda job: lambda: short)
    row = run_works(["scan"], Setting(root, data, ("medimg",), 1))["scan"]
    assert "other values" in row.missing["medimg"]


# the table


@pytest.fixture
def table() -> Table:
    scan = Row("scan", "scan 5,000 files", "ms", {"limit": [10.0, 12.0, 11.0], "medimg": [22.0]})
    scan.samples["pydicom"] = [440.0]
    scan.missing["nibabel"] = "reads NIfTI"
    return {"scan": scan, "tensors.error": Row("tensors.error", "error", "", {"medimg": [2e-4]})}


def test_cells_are_medians_and_ratios(table: Table) -> None:
    columns = ("limit", "medimg", "pydicom", "nibabel")
    text = plain(table, columns)
    assert "11 (0.5×)" in text
    assert "440 (20×)" in text
    assert "nibabel: scan: reads NIfTI" in text
    page = markdown(table, columns, {"date": "2024-01-17"})
    assert "| scan 5,000 files | ms | 11 (0.5×) | 22 | 440 (20×) | - |" in page
    assert "- date: 2024-01-17" in page


def test_goals_are_met_missed_or_not_measured(table: Table) -> None:
    rows = {row[0]: row[1:] for row in goal_rows(table)}
    assert rows["scan: medimg relative to the limit"] == ["≤ 1.5", "2", "missed"]
    assert rows["tensors.error: largest error of medimg"][-1] == "missed"
    assert "volume: medimg relative to the limit" not in rows
    goal = Goal("", ("scan", "pydicom"), ("scan", "medimg"), "≥", 20)
    assert goal.met(table) is True
    assert Goal("", ("scan", "pydicom"), ("scan", "medimg"), "≥", 20.1).met(table) is False
    assert Goal("", ("few", "pydicom"), None, "≥", 20).met(table) is None


def test_goals_name_rows_and_columns_that_exist() -> None:
    for goal in GOALS:
        for row, column in filter(None, (goal.over, goal.under)):
            assert row.removesuffix(".error") in WORKS
            assert column in COLUMNS


def test_the_page_is_filled_between_its_markers() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    assert filled(page, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    for broken in ("nothing", page + START):
        with pytest.raises(ValueError, match="each once"):
            filled(broken, "new")
    assert "new" in filled(PAGE.read_text(encoding="utf-8"), "new")


def test_a_run_prints_its_table(root: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(
        ["--works", "scan", "--peers", "pydicom", "--repeats", "1", "--scale", "small", "--data", str(root)]
    )
    printed = capsys.readouterr().out
    assert "scan 5,000 files" in printed
    assert "SimpleITK" not in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--works", "nothing"],
        ["--peers", "nobody"],
        ["--repeats", "0"],
        ["--write", "--works", "scan"],
        ["--resume"],
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(options)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Where pages and results are written to, and the works that were run; each run takes 1 ms more."""
    page, results = tmp_path / "performance.md", tmp_path / "results" / "table.json"
    page.write_text(f"{START}\n{END}\n")
    ran: list[str] = []

    def run(works: list[Work], setting: Setting) -> Iterator[list[Row]]:
        for work in works:
            ran.append(work.key)
            yield [Row(work.key, work.title, "ms", {"medimg": [float(len(ran))]}, {"limit": "none"})]

    monkeypatch.setattr(cli, "_PAGE", page)
    monkeypatch.setattr(cli, "_RESULTS", results)
    monkeypatch.setattr(cli, "measured", run)
    return SimpleNamespace(page=page, results=results, ran=ran, run=run)


def test_a_run_that_was_cut_off_goes_on(written: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written.run
    monkeypatch.setattr(cli, "measured", lambda works, setting: islice(run(works, setting), 3))
    cli.main(["--write"])
    rows = json.loads(written.results.read_text())["rows"]
    assert list(rows) == list(WORKS)[:3] == written.ran
    assert WORKS[written.ran[0]].title in written.page.read_text()
    monkeypatch.setattr(cli, "measured", run)
    cli.main(["--write", "--resume"])
    assert written.ran == list(WORKS)
    rows = json.loads(written.results.read_text())["rows"]
    assert {key: row["samples"]["medimg"] for key, row in rows.items()} == {
        key: [number + 1] for number, key in enumerate(WORKS)
    }
    assert all(row["missing"] == {"limit": "none"} for row in rows.values())


def test_one_row_is_measured_again(written: SimpleNamespace) -> None:
    cli.main(["--write"])
    cli.main(["--write", "--resume", "--works", "few"])
    stored = json.loads(written.results.read_text())["rows"]
    assert list(stored) == list(WORKS)
    assert stored["few"]["samples"]["medimg"] == [len(WORKS) + 1]
    assert stored["scan"]["samples"]["medimg"] == [1]


def test_rows_of_other_versions_are_not_kept(written: SimpleNamespace) -> None:
    cli.main(["--write"])
    stored = json.loads(written.results.read_text())
    stored["made_with"]["versions"] = "medimg 0.0.1"
    written.results.write_text(json.dumps(stored))
    cli.main(["--write", "--resume", "--works", "few"])
    assert list(json.loads(written.results.read_text())["rows"]) == ["few"]


def test_stored_rows_are_read_as_they_were(table: Table, tmp_path: Path) -> None:
    environment = {"date": "2024-01-17 to 2024-01-18", "versions": "medimg 0.1.0"}
    store_table(tmp_path / "table.json", table, environment)
    found, days = load_table(tmp_path / "table.json", {**environment, "date": "2024-02-01"})
    assert found == table
    assert days == ["2024-01-17", "2024-01-18"]
    assert load_table(tmp_path / "none.json", environment) == ({}, [])


def test_modules_stay_small() -> None:
    assert not {p.name for p in ROOT.rglob("*.py") if len(p.read_text().splitlines()) > 400}
