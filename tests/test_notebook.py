"""A notebook from scans to a report: what each cell shows, without ``%matplotlib``."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.notebook import Cell, execute

CELLS = [
    "import medimg\n"
    "table = medimg.phantom.write_ct_dataset('scans', patients=8, slices=6, size=64, seed=1)\n"
    "index = medimg.scan('scans')\n"
    "index",
    "index.to_pandas().drop(columns=['patient_id']).head(3)",
    "index[0]",
    "volume = index[0].read()\nvolume",
    "volume.plot(window='lung')",
    "index[0].plot(most=4).axes[0]",
    "recipe = medimg.Preprocess(window='lung', size=32)\nrecipe",
    "data = medimg.ImageDataset.from_csv(\n"
    "    table, path='path', label='label', patient='patient_id', preprocess=recipe)\n"
    "train, val = medimg.split(data, fractions=(0.5, 0.5))\n"
    "data",
    "train.show_batch(4)",
    "model = medimg.TransferClassifier(\n"
    "    'squeezenet1_1', classes=data.classes, weights=None, preprocess=recipe)\n"
    "fit = medimg.fine_tune(model, train, val, head_epochs=1, epochs=2, batch_size=8)",
    "fit",
    "fit.plot()",
    "model",
    "report = medimg.score(val.labels, model.predict_proba(val), classes=data.classes, "
    "patients=val.patients)\nreport",
    "report.plot('confusion')",
    "medimg.explain(model, index[0], slices=[2, 3]).plot()",
]
IDENTIFYING = re.compile(r"PHANTOM|[Pp]atient[_ ]?[0-9]|1\.2\.826|\.dcm|2\.25\.")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    folder = tmp_path_factory.mktemp("notebook")
    executed = execute(CELLS, folder)
    for number, cell in enumerate(executed):
        for png in cell.pngs:
            (folder / f"{number:02d}.png").write_bytes(png)
    return {cell.source.splitlines()[-1]: cell for cell in executed}


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [source.splitlines()[-1] for source in CELLS if ".plot(" in source or "show_batch" in source]
)
def test_plots_are_shown_as_the_result_of_a_cell(cells: dict[str, Cell], source: str) -> None:
    (png,) = cells[source].pngs
    shown = decode(png)
    assert min(shown.shape) > 100
    assert shown.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("source", ["index", "index[0]", "recipe", "data", "fit", "model", "report"])
def test_objects_are_shown_as_small_tables_without_identifiers(cells: dict[str, Cell], source: str) -> None:
    (html,) = cells[source].shown("text/html")
    assert "<table" in html
    # a report has a row for each metric
    assert 1 < html.count("<tr") < (80 if source == "report" else 30)
    assert not IDENTIFYING.search(html)


@pytest.mark.slow
def test_a_training_is_a_table_that_grew_with_a_row_per_epoch(cells: dict[str, Cell]) -> None:
    (cell,) = (cell for cell in cells.values() if "fine_tune" in cell.source)
    (html,) = cell.shown("text/html")
    assert re.findall(r"<td>(\d)</td><td>(head|full)</td>", html) == [
        ("1", "head"),
        ("2", "full"),
        ("3", "full"),
    ]
    assert html.count("font-weight:bold") == 1
    assert "<progress" not in html
    assert "head phase: 1 epoch" in cell.text
    assert "val_auroc" not in cell.text, "an epoch is a row of the table, not a line too"


@pytest.mark.slow
def test_a_volume_is_viewed_in_a_widget(tmp_path: Path) -> None:
    if importlib.util.find_spec("ipyniivue") is None:
        pytest.skip("the viewer needs ipyniivue")
    cells = execute(
        [
            "import medimg, numpy as np\n"
            "volume = medimg.Volume(np.arange(24.0).reshape(1, 2, 3, 4), np.eye(4))\n"
            "volume.view()"
        ],
        tmp_path,
    )
    assert cells[0].shown("application/vnd.jupyter.widget-view+json")
