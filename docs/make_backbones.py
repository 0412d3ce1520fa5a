"""
Try networks of timm and of torchvision, with random weights, and write the table to docs/backbones_table.md.

    python docs/make_backbones.py [--store rows.jsonl] [--only timm|torchvision|NAME ...] [--minutes 30]

Each network is built in a process of its own, one after another. Rows are kept in the store, so that a run
that was cut off goes on. It needs timm: pip install "medimg[test,timm]".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
PAGE = DOCS / "backbones_table.md"
CLASSES = ("plain", "patch")
IMAGES = 8
LIMIT_S = 900

#: A small network of each family (a module of timm).
FAMILIES = {
    "byobnet": "mobileone_s0",
    "byoanet": "botnet26t_256",
    "beit": "beit_base_patch16_224",
    "cait": "cait_xxs24_224",
    "coat": "coat_lite_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto",
    "crossvit": "crossvit_tiny_240",
    "cspnet": "cspresnet50",
    "davit": "davit_tiny",
    "deit": "deit3_small_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mnasnet_small",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "levit": "levit_128s",
    "mambaout": "mambaout_femto",
    "maxxvit": "coatnet_nano_rw_224",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "resmlp_12_224",
    "mobilenetv3": "lcnet_035",
    "mobilevit": "mobilevitv2_050",
    "mvitv2": "mvitv2_tiny",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_resnet26",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_48w_2s",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42b",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_cr_tiny_ns_224",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}


def list_networks() -> Iterator[str]:
    """Yield all networks of the table."""
    from medimg.models.backbones.architecture import backbone_names

    yield from (f"timm:{name}" for name in FAMILIES.values())
    yield from backbone_names()


def list_sizes(name: str) -> tuple[int, ...]:
    """Return image sizes to try, the smallest first."""
    from medimg.models.backbones.architecture import find_backbone

    default = int(find_backbone(name).default_recipe(None, None).hw[0])
    return (*(size for size in (128, 224) if size < default), default)


def build(name: str, contrast: float = 1.0, sizes: Sequence[int] = ()) -> Any:
    """Return a classifier with random weights for the first size that the network takes."""
    from medimg import Preprocess, TransferClassifier
    from medimg.errors import MedimgError
    from tests.saliency.planted import SEEN

    found: MedimgError | None = None
    for size in sizes or list_sizes(name):
        recipe = Preprocess(window=SEEN, size=size, mean=(0.0,) * 3, std=(1 / contrast,) * 3)
        torch.manual_seed(0)
        try:
            return TransferClassifier(name, classes=CLASSES, weights=None, preprocess=recipe)
        except MedimgError as error:
            found = error
    assert found is not None
    raise found


def check_stages(model: Any) -> int:
    """Return the number of stages, which together have each parameter and buffer once."""
    from medimg.models.backbones.stages import split_stages

    parts = split_stages(model.backbone)
    for held, all_of in (
        ([id(p) for part in parts for p in part.parameters()], model.backbone.parameters()),
        ([id(b) for part in parts for b in part.buffers()], model.backbone.buffers()),
    ):
        assert len(held) == len(set(held)), "a tensor is in two stages"
        assert set(held) == {id(t) for t in all_of}, "a tensor is in no stage"
    assert len(parts) >= 3, f"{len(parts)} stages"
    return len(parts)


def check_frozen(model: Any) -> None:
    """Take a step with a frozen backbone, then with its first half frozen."""
    from medimg.models.backbones.stages import split_stages
    from tests.models.networks import digests

    def take_step() -> None:
        images = torch.randn(2, *model.preprocess.image_shape, generator=torch.Generator().manual_seed(1))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
        logits = model.train()(images)
        assert logits.shape == (2, 2)
        assert bool(logits.isfinite().all()), "logits are not finite"
        nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimizer.step()

    before, head = digests(model.freeze().backbone.state_dict()), digests(model.head.state_dict())
    take_step()
    assert digests(model.backbone.state_dict()) == before, "a frozen backbone changed"
    assert digests(model.head.state_dict()) != head, "the head did not change"
    names = model.stages
    model.unfreeze().freeze(upto=names[len(names) // 2 - 1])
    take_step()
    after = digests(model.backbone.state_dict())
    owners = {
        id(t): n
        for n, part in enumerate(split_stages(model.backbone))
        for t in (*part.parameters(), *part.buffers())
    }
    # layers may share a parameter
    tensors = dict(model.backbone.named_parameters(remove_duplicate=False))
    tensors |= model.backbone.named_buffers(remove_duplicate=False)
    moved = {owners[id(tensors[key])] for key in before if after[key] != before[key]}
    assert moved == set(range(len(names) // 2, len(names))), f"changed were the stages {sorted(moved)}"


def check_saved(model: Any) -> None:
    """Save, load, and compare logits."""
    import medimg

    images = torch.randn(2, *model.preprocess.image_shape, generator=torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = medimg.load(model.save(Path(folder) / "model.safetensors"))
        assert torch.equal(model.eval()(images), loaded(images)), "logits differ after loading"


def silence(network: nn.Module, *, last: bool) -> bool:
    """Let attention add nothing, but the last if that is wanted; return whether there is any."""
    found = [
        m
        for m in network.modules()
        if "attention" in type(m).__name__.lower() or "attn" in type(m).__name__.lower()
    ]
    found = [m for m in found if any(isinstance(p, nn.Linear | nn.Conv2d) for p in m.modules())]
    for module in found if last else found[:-1]:
        layer = [p for p in module.modules() if isinstance(p, nn.Linear | nn.Conv2d)][-1]
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return bool(found)


def _as_built(network: nn.Module) -> bool:
    return True


def _plain(network: nn.Module) -> bool:
    from tests.saliency.planted import see_plainly

    see_plainly(network)
    return True


def _late(network: nn.Module) -> bool:
    return silence(network, last=False)


def _local(network: nn.Module) -> bool:
    from tests.saliency.planted import tell_brightness

    found = silence(network, last=True)
    stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if found and stem is not None and stem.bias is not None:
        tell_brightness(network)
    return found


#: How random networks are made to tell places apart, by contrast of the images; the best is taken.
PREPARATIONS: dict[str, tuple[float, Callable[[nn.Module], bool]]] = {
    "positive weights": (0.05, _plain),
    "as built": (3.0, _as_built),
    "attention in the last layer only": (3.0, _late),
    "without attention": (1.0, _local),
}


def point(name: str) -> dict[str, Any]:
    """Return how many maps have their maximum in the patch, the layer, the size, and the preparation."""
    best: dict[str, Any] = {"hits": -1}
    # the smallest size may leave too few cells to point with
    for sizes in ((), list_sizes(name)[-1:]):
        for preparation in PREPARATIONS:
            found = point_prepared(name, preparation, sizes)
            if found["hits"] > best["hits"]:
                best = found
            if best["hits"] == IMAGES:
                return best
    return best


def point_prepared(name: str, preparation: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Do the same with one preparation; no hits, -1, if it is not possible."""
    import medimg
    from tests.saliency.planted import depend_on_patch, on_patch, planted

    contrast, prepare = PREPARATIONS[preparation]
    model = build(name, contrast, sizes).eval()
    if not prepare(model.backbone):
        return {"hits": -1}
    size = model.preprocess.hw[0]
    side = 3 * size // 8
    depend_on_patch(model, size, side)
    if not bool(model.head.weight.isfinite().all()):
        return {"hits": -1}
    volume, places = planted(IMAGES, size, side)
    found = medimg.explain(model, volume, "patch", progress=False)
    hits = int(on_patch(found, places, side).sum()) if np.isfinite(found.heat).all() else 0
    return {
        "hits": hits,
        "layer": found.layer,
        "cells": list(found.cells),
        "preparation": preparation,
        "size": size,
    }


def try_network(name: str) -> dict[str, Any]:
    """Return the row of a network: "yes" or the error of each check."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"name": name}
    began = time.process_time()
    try:
        model = build(name)
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    row["parameters"] = sum(p.numel() for p in model.backbone.parameters())
    row["size"] = model.preprocess.hw[0]
    row["head"] = model.head.weight.shape[1]
    checks: dict[str, Callable[[], Any]] = {
        "stages": lambda: check_stages(model),
        "saved": lambda: check_saved(model),  # after steps, it may diverge
        "frozen": lambda: check_frozen(model),
        "heat": lambda: point(name),
    }
    for check, run in checks.items():
        try:
            row[check] = run() or "yes"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            row[check] = {"error": f"{type(error).__name__}: {str(error)[:200]} ({where})"}
    row["cpu_s"] = round(time.process_time() - began, 1)
    return row


def run_apart(name: str) -> dict[str, Any]:
    """Try a network in a process of its own."""
    context = multiprocessing.get_context("fork" if platform.system() == "Linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(name, theirs))
    process.start()
    theirs.close()
    row: dict[str, Any] = {"name": name, "error": f"no result within {LIMIT_S} s, or the process was ended"}
    if ours.poll(LIMIT_S):
        with suppress(EOFError):
            row = ours.recv()
    process.kill()
    process.join()
    return row


def _send_row(name: str, pipe: Any) -> None:
    pipe.send(try_network(name))


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    """Write the page from the rows."""
    from medimg.models.backbones.architecture import backbone_names

    timm = [r for n, r in rows.items() if n.startswith("timm:")]
    others = [r for n, r in rows.items() if not n.startswith("timm:")]
    lines = [
        "# Networks that were tried",
        "",
        f"`python docs/make_backbones.py` built each network with random weights (timm {version('timm')}, "
        f"torchvision {version('torchvision')}, torch {torch.__version__}, CPU, float32) and checked:",
        "",
        "- *stages*: together they have each parameter and buffer once;",
        "- *frozen*: one training step with a frozen backbone leaves its state dict bit-for-bit identical "
        "and changes the head; one with the first half of the stages frozen changes each stage of the second "
        "half, and no other;",
        "- *saved*: after saving and loading, logits are bit-for-bit identical;",
        f"- *heat map*: the maximum is in a patch planted into each of {IMAGES} images. Random networks do "
        "not tell places apart by themselves: the column has what was changed.",
        "",
        "Weights of timm were not available: none of these checks used pretrained ones.",
        "",
    ]
    for title, part in (("timm, one network of each family", timm), ("torchvision", others)):
        if not part:
            continue
        passed = sum(_is_passed(row) for row in part)
        known = len(FAMILIES) if part is timm else len(backbone_names())
        lines += [f"## {title}", "", f"{len(part)} of {known} were run, {passed} passed every check.", ""]
        lines += [
            "| network | million parameters | image size | embedding | stages | frozen | saved | heat map |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|", *map(_format_row, part), ""]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def _is_passed(row: dict[str, Any]) -> bool:
    heat = row.get("heat")
    return (
        isinstance(row.get("stages"), int)
        and row.get("frozen") == row.get("saved") == "yes"
        and (isinstance(heat, dict) and heat.get("hits") == IMAGES)
    )


def _format_row(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['name']} | {_plain_text(row['error'])} | | | | | | |"
    heat = row["heat"]
    shown = (
        heat.get("error")
        or f"{heat['hits']} of {IMAGES}: {heat.get('layer', 'none')}, {heat.get('preparation', 'none')}"
    )
    if heat.get("size", row["size"]) != row["size"]:
        shown += f", {heat['size']} pixels"
    cells = [
        row["name"],
        f"{row['parameters'] / 1e6:.1f}",
        row["size"],
        row["head"],
        *(row[c]["error"] if isinstance(row[c], dict) else row[c] for c in ("stages", "frozen", "saved")),
        shown,
    ]
    return f"| {' | '.join(_plain_text(str(cell)) for cell in cells)} |"


def _plain_text(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=DOCS / "_build" / "backbones.jsonl")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args(arguments)
    args.store.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    if args.store.exists():
        rows = {r["name"]: r for r in map(json.loads, args.store.read_text().splitlines())}
    end = time.monotonic() + 60 * args.minutes
    for name in list_networks():
        source = "timm" if name.startswith("timm:") else "torchvision"
        if name in rows or (args.only and not {name, source} & set(args.only)) or time.monotonic() > end:
            continue
        rows[name] = run_apart(name)
        with args.store.open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(json.dumps(rows[name]), flush=True)
    write_page({name: rows[name] for name in list_networks() if name in rows})


if __name__ == "__main__":
    main()
