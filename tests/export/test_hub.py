"""Models on the hub: what is uploaded, what is read again, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import medimg
from medimg.errors import CheckpointError, WeightsUnavailableError
from tests.export.hub_server import HubServer
from tests.models.small_network import small_classifier, small_network  # noqa: F401  # a fixture

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
# of huggingface_hub itself, which gives httpx a file as data=
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def push(model: medimg.TransferClassifier, **options: object) -> str:
    return model.push_to_hub("lab/chest", token="right", **options)  # type: ignore[arg-type]  # of any kind


def same(one: medimg.TransferClassifier, other: medimg.TransferClassifier) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_is_read_as_it_was_pushed(hub: HubServer) -> None:
    model = small_classifier()
    url = push(model, license="apache-2.0")
    commit = url.rpartition("/")[2]
    assert set(hub.hub.commits[commit]) == {"model.safetensors", "README.md"}
    asked_for = hub.hub.repositories["lab/chest"]
    assert asked_for.get("private") or asked_for.get("visibility") == "private"
    assert same(medimg.load("hf:lab/chest"), model)
    asked = len(hub.hub.requests)
    assert same(medimg.load("hf:lab/chest"), model)
    assert len(hub.hub.requests) == asked, "the second time, it is in the cache"


def test_the_card_states_the_call_that_reads_this_file(hub: HubServer) -> None:
    model = small_classifier()
    files = hub.hub.commits[push(model).rpartition("/")[2]]
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    card = files["README.md"].decode()
    assert f'medimg.load("hf:lab/chest", sha256="{digest}")' in card
    assert card.startswith("---\nlibrary_name: ")
    assert same(medimg.load("hf:lab/chest", sha256=digest.upper()), model)


def test_a_file_with_another_hash_is_refused(hub: HubServer, tmp_path: Path) -> None:
    push(small_classifier())
    with pytest.raises(CheckpointError, match="not the expected one"):
        medimg.load("hf:lab/chest", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="64 hexadecimal digits"):
        medimg.load("hf:lab/chest", sha256="abc")
    saved = small_classifier().save(tmp_path / "m.safetensors")
    assert medimg.load(saved, sha256=hashlib.sha256(saved.read_bytes()).hexdigest())


def test_a_commit_always_gives_its_model(hub: HubServer) -> None:
    first, second = small_classifier(), small_classifier()
    with torch.no_grad():
        second.head.weight += 1
    commit = push(first).rpartition("/")[2]
    assert push(second).rpartition("/")[2] != commit
    assert same(medimg.load(f"hf:lab/chest@{commit}"), first)
    assert same(medimg.load("hf:lab/chest"), second)


def test_an_ensemble_is_pushed_too(hub: HubServer) -> None:
    members = [small_classifier(), small_classifier()]
    push(medimg.Ensemble(members))
    loaded = medimg.load("hf:lab/chest")
    assert isinstance(loaded, medimg.Ensemble)
    assert len(loaded.members) == 2


def test_classes_can_not_add_to_the_card(hub: HubServer) -> None:
    model = small_classifier(classes=["a](http://x) <b>", "---\nlicense: x"])
    card = hub.hub.commits[push(model).rpartition("/")[2]]["README.md"].decode()
    assert "<b>" not in card
    assert "\nlicense: x" not in card
    assert card.count("\n---\n") == 1


@pytest.mark.parametrize("name", ["chest", "a/b/c", "../x", "a/..", "lab/chest@", "", "https://x/y", "a b/c"])
def test_names_of_no_repository(hub: HubServer, name: str) -> None:
    with pytest.raises(CheckpointError, match="expected owner/name"):
        small_classifier().push_to_hub(name, token="right")
    with pytest.raises(CheckpointError, match="expected owner/name"):
        medimg.load(f"hf:{name}")
    assert not hub.hub.requests


def test_a_revision_is_not_a_part_of_the_name(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match="revision="):
        small_classifier().push_to_hub("lab/chest@main", token="right")


def test_without_the_right_to_write(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match=r"HTTP 401.*token"):
        small_classifier().push_to_hub("lab/chest", token="stolen-token")
    with pytest.raises(CheckpointError) as found:
        small_classifier().push_to_hub("lab/chest", token="stolen-token")
    assert "stolen" not in str(found.value)


@pytest.mark.parametrize("token", ["stolen\n", "stolen token", "stolenł", "", b"stolen", 5])
def test_a_token_that_is_none_is_not_quoted(hub: HubServer, token: object) -> None:
    with pytest.raises(CheckpointError, match="copy it from the hub again") as found:
        small_classifier().push_to_hub("lab/chest", token=token)  # type: ignore[arg-type]  # wrong on purpose
    assert found.value.__cause__ is found.value.__context__ is None
    assert not hub.hub.requests


def test_a_report_that_is_none(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match=r"medimg\.evaluate returned"):
        push(small_classifier(), report="report.html")
    assert not hub.hub.requests


def test_a_repository_that_is_not_there(hub: HubServer) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"model of lab/none .* hf auth login"):
        medimg.load("hf:lab/none")


def test_a_repository_of_other_files(hub: HubServer) -> None:
    commit = push(small_classifier()).rpartition("/")[2]
    files = hub.hub.commits[commit]
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    asked = len(hub.hub.requests)
    with pytest.raises(WeightsUnavailableError, match=r"lab/chest has no model\.safetensors"):
        medimg.load(f"hf:lab/chest@{commit}")
    assert not any("pytorch_model.bin" in str(request) for request in hub.hub.requests[asked:])


def test_a_file_that_is_no_model(hub: HubServer) -> None:
    commit = push(small_classifier()).rpartition("/")[2]
    hub.hub.commits[commit]["model.safetensors"] = np.arange(100).tobytes()
    with pytest.raises(CheckpointError):
        medimg.load(f"hf:lab/chest@{commit}")
