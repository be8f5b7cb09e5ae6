"""Objectives on the Hub, whose API is replaced by a local folder."""

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from metagenrl_pl.objectives import CriticObjective, LearnedMixture, ParametricObjective


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`metagenrl_pl.integrations.hub` over an API that keeps repositories in a folder, `hub.folder`."""

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    def download(repo_id: str, filename: str, *, revision: str | None, token: str | None) -> str:
        if not (tmp_path / repo_id).is_dir():
            raise FileNotFoundError(f"404:\n{repo_id}")
        return str(tmp_path / repo_id / filename)

    library: Any = ModuleType("huggingface_hub")
    library.HfApi, library.hf_hub_download = Api, download
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.delitem(sys.modules, "metagenrl_pl.integrations.hub", raising=False)
    module: Any = importlib.import_module("metagenrl_pl.integrations.hub")
    module.folder = tmp_path
    yield module
    sys.modules.pop("metagenrl_pl.integrations.hub")


def test_an_objective_comes_back_as_it_was_pushed(hub: Any) -> None:
    mixture = ParametricObjective.pretrained("mixture")
    assert hub.push_to_hub(mixture, "me/mixture", private=True) == "hub/me/mixture/commit/1"
    back = hub.from_hub("me/mixture")
    assert isinstance(back, LearnedMixture) and back.card == mixture.card and repr(back) == repr(mixture)
    torch.testing.assert_close(back.state_dict(), mixture.state_dict(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in back.parameters())


def test_who_may_see_it_and_which_revision_reach_the_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    library: Any = hub.huggingface_hub
    create, download = library.HfApi.create_repo, library.hf_hub_download
    monkeypatch.setattr(library.HfApi, "__init__", lambda self, token=None: asked.append(token))
    monkeypatch.setattr(library.HfApi, "create_repo", lambda *a, **more: (asked.append(more), create(*a, **more))[1])
    monkeypatch.setattr(library, "hf_hub_download", lambda *a, **more: (asked.append(more), download(*a, **more))[1])
    hub.push_to_hub(ParametricObjective.pretrained("light"), "me/light", private=True, token="t")
    hub.from_hub("me/light", revision="v1", token="u")
    assert asked == ["t", {"private": True, "exist_ok": True}, {"revision": "v1", "token": "u"}]


def test_its_page_has_metadata_use_and_scores(hub: Any) -> None:
    hub.push_to_hub(ParametricObjective.pretrained("light"), "me/light")
    _, front, page = (hub.folder / "me/light/README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "metagenrl-pl"
    results = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in metadata["model-index"][0]["results"]}
    assert results["Hopper-v5"] == 281.8
    assert page.startswith("# light\n") and 'from_hub("me/light")' in page
    assert "| Hopper-v5 | unseen | 281.8 | 1.18 |" in page and "| Pendulum-v1 | training | -151.0 | 1.0 |" in page
    assert "| Walker2d-v5 | validation | " in page  # it was chosen there


def test_an_objective_without_scores_has_a_page(hub: Any) -> None:
    page = hub.model_card(LearnedMixture(hidden_units=2), "me/new")
    assert "It has not been scored." in page and "model-index" not in page
    objective = LearnedMixture(hidden_units=2)
    objective.card = {"scores": {"Hopper-v5": {"return": 3.0, "normalised": None}}}  # where DDPG/TD3 is not above random actions
    assert "| Hopper-v5 | unseen | 3.0 | - |" in hub.model_card(objective, "me/new")
    objective.card["earlier"] = [{"training_environments": ["Hopper-v5"]}]
    assert "| Hopper-v5 | training | 3.0 | - |" in hub.model_card(objective, "me/new")


def test_failures_are_one_line(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^me/none: no objective.safetensors could be downloaded \(404: me/none\)$"):
        hub.from_hub("me/none")

    def refuse(*_: object, **__: object) -> None:
        raise Refusal("401\nUnauthorized")

    class Refusal(Exception):  # of some HTTP library
        pass

    monkeypatch.setattr(sys.modules["huggingface_hub"].HfApi, "create_repo", refuse)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^me/light: cannot be uploaded \(401 Unauthorized\)$"):
        hub.push_to_hub(ParametricObjective.pretrained("light"), "me/light")
    with pytest.raises(ValueError, match=r"^objective=CriticObjective\(\): valid is one with weights"):
        hub.push_to_hub(CriticObjective(), "me/critic")


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "metagenrl_pl.integrations.hub", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'metagenrl-pl\[hub\]'"):
        importlib.import_module("metagenrl_pl.integrations.hub")
