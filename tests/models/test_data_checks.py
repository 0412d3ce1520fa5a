"""Every function that takes a model and data makes the same checks of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import medimg
from medimg import Preprocess, adapt
from medimg.errors import MedimgError, TrainingError
from medimg.models.data_checks import CHECKS
from tests.models.fakes import classifier
from tests.models.images import picture_data, write_pictures

RECIPE = Preprocess(size=32, window="percentile")

FUNCTIONS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "fine_tune": ("fine_tune", lambda m, d: medimg.fine_tune(m, d, progress=False)),
    "fine_tune's validation": ("fine_tune", lambda m, d: medimg.fine_tune(m, good(d), d, progress=False)),
    "fit_head": ("fit_head", medimg.fit_head),
    "lr_find": ("lr_find", medimg.lr_find),
    "cross_validate": ("cross_validate", lambda m, d: medimg.cross_validate(m, d, folds=2)),
    "calibrate": ("calibrate", medimg.calibrate),
    "calibrate's training": ("calibrate", lambda m, d: medimg.calibrate(m, good(d), train=d)),
    "evaluate": ("evaluate", medimg.evaluate),
    "compare_models": ("compare_models", lambda m, d: medimg.compare_models(m, m, d)),
    "predict_proba": ("predict_proba", lambda m, d: classifier(preprocess=RECIPE).predict_proba(d)),
    "embed": ("embed", medimg.embed),
    "domain_shift": ("domain_shift", lambda m, d: medimg.domain_shift(good(d), d, model=m)),
}
_KNOWN: dict[str, Any] = {}


def good(_: object) -> Any:
    return _KNOWN["good"]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Data that fail each check."""
    root = tmp_path_factory.mktemp("pictures")
    _KNOWN["good"] = picture_data(root / "good", patients=4, each=1, preprocess=RECIPE)
    options: dict[str, Any] = {"patients": 4, "each": 1, "preprocess": RECIPE}
    table = write_pictures(root / "more", patients=4, each=1).assign(a=[0, 1, 0, 1], b=[1, 0, 1, 0])
    unlabeled = medimg.ImageDataset.from_csv(
        table, root=root / "more", patient="patient", label=None, preprocess=RECIPE
    )
    several = medimg.ImageDataset.from_csv(
        table, root=root / "more", patient="patient", label=["a", "b"], preprocess=RECIPE
    )
    data = picture_data(root / "data", **options)
    return {
        "type": [root, medimg.scan(root / "good"), [data], torch.utils.data.Subset(data, [0, 1]), None],
        "labels": [unlabeled],
        "classes": [
            picture_data(root / "order", classes=2, **options).__class__.from_csv(
                table, root=root / "more", patient="patient", preprocess=RECIPE, classes=["b", "a"]
            ),
            picture_data(root / "three", **{**options, "classes": 3}),
        ],
        "task": [several],
        "preprocessing": [data.with_preprocess(RECIPE.replace(window="auto"))],
        "unit": [picture_data(root / "series", unit="series", **options)],
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_functions_refuse_what_does_not_fit(name: str, wrong: dict[str, list[Any]]) -> None:
    row, function = FUNCTIONS[name]
    for check in sorted(CHECKS[row] - {"items"}):
        if name == "embed" and check == "type":
            # sources are also taken: a path is one, a scan and a list are several
            several = [one for one in wrong[check] if isinstance(one, torch.utils.data.Dataset | None)]
        else:
            # None is no validation data, or no training data
            several = wrong[check][: -1 if check == "type" and "'s" in name else None]
        for data in several:
            with pytest.raises(MedimgError):
                function(classifier(preprocess=RECIPE), data)
    if name != "predict_proba":
        models = ["model.safetensors", torch.nn.Linear(1, 1), *([] if name == "domain_shift" else [None])]
        for model in models:
            with pytest.raises(MedimgError):
                function(model, good(None))


def test_what_no_check_is_made_of_passes(wrong: dict[str, list[Any]]) -> None:
    model = classifier(preprocess=RECIPE)
    (unlabeled,), (several,), (series,) = wrong["labels"], wrong["task"], wrong["unit"]
    assert model.predict_proba(unlabeled).shape == (4, 2)
    assert model.predict_proba(series).shape == (4, 2)
    found = medimg.embed(model, unlabeled)
    assert (len(found), found.labels) == (4, None)
    assert len(medimg.embed(model, several)) == 4
    shift = medimg.domain_shift(good(None), unlabeled, model=model, folds=2)
    assert shift.items == (4, 4)
    with pytest.raises(MedimgError, match="unit="):
        medimg.domain_shift(good(None), series)


def test_sources_are_not_datasets(wrong: dict[str, list[Any]]) -> None:
    model = classifier(preprocess=RECIPE)
    for data in (good(None), wrong["type"][3], torch.zeros(1, 3, 32, 32)):
        for use in (model.predict, lambda source: medimg.explain(model, source)):
            with pytest.raises(MedimgError, match="files, series or volumes"):
                use(data)


def test_a_target_needs_no_labels(wrong: dict[str, list[Any]]) -> None:
    (unlabeled,) = wrong["labels"]
    model = classifier(preprocess=RECIPE)
    result = medimg.fine_tune(
        model, good(None), head_epochs=0, epochs=1, batch_size=4, adapt=adapt.CORAL(unlabeled), progress=False
    )
    assert result.best_epoch == 1
    assert model.images_seen is not None
    assert len(model.images_seen.series["target"]) == 4
    for data in wrong["type"]:
        if data is not None:
            with pytest.raises(MedimgError, match="ImageDataset"):
                adapt.CORAL(data).check(("a", "b"), good(None))


def test_the_docs_have_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.rst").read_text()
    table = page[page.index("Checks of model and data") :]
    columns = ("type", "items", "labels", "classes", "task", "preprocessing", "unit")
    for function, checks in CHECKS.items():
        row = re.search(rf"^ *``{function}``.*$", table, flags=re.MULTILINE)
        assert row is not None, function
        marks = re.findall(r" (yes|no|applied)\b", row[0])
        assert [mark == "yes" for mark in marks] == [name in checks for name in columns], function


def test_training_in_inference_mode(tmp_path: Path) -> None:
    data = picture_data(tmp_path, patients=4, each=1, preprocess=RECIPE)
    with torch.inference_mode():
        [data[n] for n in range(4)]
        model = classifier(preprocess=RECIPE)
        medimg.fine_tune(model, data, head_epochs=1, epochs=1, batch_size=4, progress=False)
        medimg.fit_head(model, data, C=1.0, method="sgd")
        again = medimg.load(model.save(tmp_path / "model.safetensors"))
    assert not any(parameter.is_inference() for parameter in again.parameters())


def test_a_compiled_model_is_named() -> None:
    compiled: Any = torch.compile(classifier(preprocess=RECIPE))
    for use in (medimg.evaluate, medimg.fit_head, medimg.embed, medimg.calibrate):
        with pytest.raises(MedimgError, match="wrapped by torch"):
            use(compiled, good(None))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_model_is_named(wrong: dict[str, list[Any]], tmp_path: Path) -> None:
    model = classifier(preprocess=RECIPE)
    quantized = copy.deepcopy(model)
    quantized.head = torch.ao.nn.quantized.dynamic.Linear(8, 2)  # type: ignore[assignment]  # no linear layer
    uses: tuple[Callable[[Any], object], ...] = (
        lambda one: one.predict_proba(good(None)),
        lambda one: one.predict([]),
        lambda one: one(torch.zeros(1, 3, *RECIPE.hw)),
        lambda one: one.save(tmp_path / "model.safetensors"),
        lambda one: medimg.fit_head(one, good(None)),
        lambda one: medimg.Ensemble([one, model]),
    )
    for use in uses:
        with pytest.raises(TrainingError, match=r"quantized layers \(head"):
            use(quantized)


def test_tables_and_loaders_are_no_sources(wrong: dict[str, list[Any]]) -> None:
    model = classifier(preprocess=RECIPE)
    uses: tuple[Callable[[Any], object], ...] = (
        model.predict,
        lambda source: medimg.explain(model, source),
        lambda s: medimg.embed(model, s),
    )
    for use in uses:
        with pytest.raises(MedimgError, match=r"found a DataFrame: pass its column of paths"):
            use(pd.DataFrame({"path": ["a.png"]}))
        with pytest.raises(MedimgError, match="found a dataset"):
            use(torch.utils.data.DataLoader(good(None)))
