"""
Make the figures of the documentation from synthetic studies.

    python docs/make_pictures.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import medimg
from medimg.core.display import render
from medimg.core.window import Window

IMAGES = Path(__file__).parent / "images"


def save_row(name: str, panels: list[tuple[str, np.ndarray]]) -> None:
    figure = Figure(figsize=(3 * len(panels), 3.4), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else None)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=96, pil_kwargs={"optimize": True})


def tensor_image(volume: medimg.Volume, recipe: medimg.Preprocess, index: int) -> np.ndarray:
    plane = recipe.render(volume).planes[index, 0]
    return np.rint(plane.numpy() * 255).astype(np.uint8)


def ct(folder: Path) -> None:
    phantom = medimg.phantom.chest_ct(3, label="ground_glass", scanner="aurora-16", slices=12)
    identity = medimg.phantom.Identity.derive("documentation", 1)
    medimg.phantom.write_ct_series(phantom, folder, identity)
    volume = medimg.read(folder)
    index = int(np.argmax(phantom.lesion_mm2))
    full_range = Window.from_range(float(volume.array.min()), float(volume.array.max()))
    lung = medimg.Preprocess(window="lung")
    save_row(
        "ct_steps.png",
        [
            ("full range of HU", render(volume, index=index, window=full_range)),
            ("lung, 1500/−600", render(volume, index=index, window="lung")),
            ("soft tissue, 400/40", render(volume, index=index, window="soft_tissue")),
            ("tensor (lung)", tensor_image(volume, lung, index)),
        ],
    )


def xray(folder: Path) -> None:
    scanner = next(s for s in medimg.phantom.XRAY_SCANNERS if s.photometric == "MONOCHROME1")
    phantom = medimg.phantom.chest_xray(5, label="consolidation", scanner=scanner)
    identity = medimg.phantom.Identity.derive("documentation", 2)
    volume = medimg.read(medimg.phantom.write_xray_image(phantom, folder, identity))
    stored = volume.array[0, 0]
    declared = volume.voi[0][0].apply(stored) if volume.voi else stored / stored.max()
    save_row(
        "xray_steps.png",
        [
            ("stored values (MONOCHROME1)", stored.astype(float)),
            ("declared window", np.rint(declared * 255).astype(np.uint8)),
            ("inverted for display", render(volume)),
            ("tensor", tensor_image(volume, medimg.Preprocess(), 0)),
        ],
    )


def main() -> None:
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        ct(Path(folder, "ct"))
        xray(Path(folder, "xray"))


if __name__ == "__main__":
    main()
