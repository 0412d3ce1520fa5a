"""
Export one network of each family to ONNX, compare both, and write the results to docs/export.rst.

python docs/make_export.py [network ...]

It needs: pip install "medimg[export,timm]". Weights are random and no network is downloaded; without timm,
its rows stay as they are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import medimg
from medimg.errors import MedimgError

PAGE = Path(__file__).parent / "export.rst"
START = ".. table of docs/make_export.py\n"
END = ".. end of the table\n"
#: The smallest network of each family, and the size of its images.
NETWORKS = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vit_b_16": 64,
    "timm:vit_small_patch16_224": 224,
    "timm:convnextv2_atto": 64,
    "timm:tf_efficientnetv2_b0": 64,
    "timm:resnet18d": 64,
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:eva02_tiny_patch14_224": 224,
    "timm:vit_small_patch16_dinov3": 224,
    "timm:maxvit_rmlp_pico_rw_256": 256,
    "timm:coatnet_0_rw_224": 224,
}


def try_network(name: str, size: int) -> list[str]:
    """Return a row of the table: name, largest difference of a logit, size of the file; or why it fails."""
    recipe = medimg.Preprocess(size=size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            model = medimg.TransferClassifier(
                name, classes=["a", "b"], weights=None, preprocess=recipe, pool="attention"
            )
            model.export(path)
        except MedimgError as error:
            return [f"``{name}``", "no", f"{type(error).__name__}: {str(error)[:160]}".replace("\n", " ")]
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        difference = facts["parity"]["differences"]["logits"]
        return [f"``{name}``", f"{difference:.1g}", f"{path.stat().st_size / 1e6:.1f} MB"]


def read_rows(text: str) -> dict[str, list[str]]:
    """Return the rows of a table as it is in the page, by name."""
    rows: dict[str, list[str]] = {}
    cells: list[str] = []
    for line in text.splitlines():
        if line.startswith("   * - "):
            cells = [line.removeprefix("   * - ")]
            rows[cells[0].strip("`")] = cells
        elif line.startswith("     - "):
            cells.append(line.removeprefix("     - "))
    return rows


def format_table(rows: dict[str, list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [["Network", "Largest difference of a logit", "File"], *rows.values()]:
        lines += [f"   {'* -' if n == 0 else '  -'} {cell}" for n, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    table, _, tail = rest.partition(END)
    rows = {name: row for name, row in read_rows(table).items() if name in NETWORKS}
    for name in sys.argv[1:] or NETWORKS:
        if ":" in name and find_spec(name.partition(":")[0]) is None:
            continue
        rows[name] = try_network(name, NETWORKS[name])
        print(*rows[name], flush=True)
        ordered = {one: rows[one] for one in NETWORKS if one in rows}
        PAGE.write_text(f"{head}{START}\n{format_table(ordered)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
