"""A notebook from scans to a report: what each cell shows, without ``%matplotlib``."""

from __future__ import annotations

import importlib.util
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.notebook import Cell, execute

#: The steps of a study, and objects and figures on the way.
CELLS = {
    "scan": "import medimg\n"
    "table = medimg.phantom.write_ct_dataset('scans', patients=8, slices=6, size=64, seed=1)\n"
    "index = medimg.scan('scans')\n"
    "index",
    "table": "index.to_pandas().drop(columns=['patient_id']).head(3)",
    "series": "index[0]",
    "read": "volume = index[0].read()\nvolume",
    "plot": "volume.plot(window='lung')",
    "montage": "index[0].plot(most=4).axes[0]",
    "recipe": "recipe = medimg.Preprocess(window='lung', size=32)\nrecipe",
    "tensor": "tensor = recipe(index[0])\ntensor.shape",
    "data": "data = medimg.ImageDataset.from_csv(\n"
    "    table, path='path', label='label', patient='patient_id', preprocess=recipe)\n"
    "train, val = medimg.split(data, fractions=(0.5, 0.5))\n"
    "data",
    "batch": "train.show_batch(4)",
    "train": "model = medimg.TransferClassifier(\n"
    "    'squeezenet1_1', classes=data.classes, weights=None, preprocess=recipe)\n"
    "fit = medimg.fine_tune(model, train, val, head_epochs=1, epochs=2, batch_size=8)",
    "fit": "fit",
    "history": "fit.plot()",
    "model": "model",
    "report": "report = medimg.score(val.labels, model.predict_proba(val), classes=data.classes, "
    "patients=val.patients)\nreport",
    "curves": "report.plot('confusion')",
    "explain": "medimg.explain(model, index[0], slices=[2, 3]).plot()",
    "convert": "image = medimg.to_sitk(volume)\n"
    "volume.save('scan.nii.gz')\n"
    "image.GetSize(), medimg.read(image), medimg.read('scan.nii.gz')",
    "view": "volume.view()",
}
if importlib.util.find_spec("ipyniivue") is None:
    del CELLS["view"]
IDENTIFYING = re.compile(r"PHANTOM|[Pp]atient[_ ]?[0-9]|1\.2\.826|\.dcm|2\.25\.")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    folder = tmp_path_factory.mktemp("notebook")
    executed = dict(zip(CELLS, execute(list(CELLS.values()), folder), strict=True))
    for name, cell in executed.items():
        for png in cell.pngs:
            (folder / f"{name}.png").write_bytes(png)
    return executed


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plot", "montage", "batch", "history", "curves", "explain"])
def test_plots_are_shown_as_the_result_of_a_cell(cells: dict[str, Cell], name: str) -> None:
    (png,) = cells[name].pngs
    shown = decode(png)
    assert min(shown.shape) > 100
    assert shown.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan", "series", "recipe", "data", "fit", "model", "report"])
def test_objects_are_shown_as_small_tables_without_identifiers(cells: dict[str, Cell], name: str) -> None:
    (html,) = cells[name].shown("text/html")
    assert "<table" in html
    # a report has a row for each metric
    assert 1 < html.count("<tr") < (80 if name == "report" else 30)
    assert not IDENTIFYING.search(html)


@pytest.mark.slow
def test_a_training_is_a_table_that_grew_with_a_row_per_epoch(cells: dict[str, Cell]) -> None:
    cell = cells["train"]
    (html,) = cell.shown("text/html")
    assert re.findall(r"<td[^>]*>(\d)</td><td[^>]*>(head|full)</td>", html) == [
        ("1", "head"),
        ("2", "full"),
        ("3", "full"),
    ]
    assert html.count("font-weight:bold") == 1
    assert "<progress" not in html
    assert "head phase: 1 epoch" in cell.text
    assert "val_auroc" not in cell.text, "an epoch is a row of the table, not a line too"


@pytest.mark.slow
def test_tensors_and_converted_images_have_the_size_of_the_volume(cells: dict[str, Cell]) -> None:
    assert cells["tensor"].shown("text/plain") == ["torch.Size([6, 3, 32, 32])"]
    (text,) = cells["convert"].shown("text/plain")
    assert text.startswith("((64, 64, 6),")
    assert text.count("Volume(1×6×64×64 int16, CT, HU, spacing") == 2


@pytest.mark.slow
def test_no_cell_shows_an_identifier_or_an_error(cells: dict[str, Cell]) -> None:
    for name, cell in cells.items():
        texts = [cell.text, *cell.shown("text/html")]
        texts += [] if name == "table" else cell.shown("text/plain")
        assert not any(IDENTIFYING.search(text) for text in texts if name != "table"), name


@pytest.mark.slow
def test_a_volume_is_viewed_in_a_widget(cells: dict[str, Cell]) -> None:
    if "view" not in cells:
        pytest.skip("the viewer needs ipyniivue")
    assert cells["view"].shown("application/vnd.jupyter.widget-view+json")
