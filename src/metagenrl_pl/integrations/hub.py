"""Objectives on the Hugging Face Hub: a safetensors file, its card, and a page that the Hub shows."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.objectives import ParametricObjective
from metagenrl_pl.objectives.pretrained import trained_in

try:
    import huggingface_hub
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"huggingface_hub is missing ({error}); pip install 'metagenrl-pl[hub]'", name=error.name
    ) from error

_FILE = "objective.safetensors"


def push_to_hub(objective: ParametricObjective, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload an objective. The repository is made if there is none.

    Args:
        objective: with the card that its meta-training wrote.
        repo_id: `user/name`.
        private: whether only its owner sees a new repository.
        token: of the Hub; by default the one of `hf auth login`.

    Returns:
        The address of the upload.

    Raises:
        ValueError: if the Hub refuses it or cannot be reached, or the objective has no file.
    """
    if not isinstance(objective, ParametricObjective):
        raise ValueError(f"objective={objective!r}: valid is one with weights, such as LearnedObjective.load(...)")
    with tempfile.TemporaryDirectory() as folder:
        objective.save(Path(folder) / _FILE)
        (Path(folder) / "README.md").write_text(model_card(objective, repo_id))
        try:
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload an objective of metagenrl-pl")
        except Exception as error:  # versions of the Hub's client raise those of different HTTP libraries
            raise ValueError(f"{repo_id}: cannot be uploaded ({one_line(error)})") from error
    return str(done.commit_url)


def from_hub(repo_id: str, *, revision: str | None = None, token: str | None = None) -> ParametricObjective:
    """Download an objective, frozen. A file cannot run code (see `ParametricObjective.load`).

    Args:
        repo_id: `user/name`.
        revision: a branch, tag or commit; by default the newest.
        token: of the Hub, for a private repository.

    Raises:
        ValueError: if there is no such objective, the Hub cannot be reached, or the file cannot be read.
    """
    try:
        path = huggingface_hub.hf_hub_download(repo_id, _FILE, revision=revision, token=token)
    except Exception as error:
        raise ValueError(f"{repo_id}: no {_FILE} could be downloaded ({one_line(error)})") from error
    return ParametricObjective.load(path)


def model_card(objective: ParametricObjective, repo_id: str) -> str:
    """The page of an objective on the Hub: metadata as YAML, how to use it, how it was made, its scores."""
    card, name = objective.card, repo_id.rpartition("/")[2]
    scores: Mapping[str, Mapping[str, Any]] = card.get("scores") or {}
    metadata = {
        "license": str(card.get("licence", "other")).lower(),
        "library_name": "metagenrl-pl",
        "tags": ["reinforcement-learning", "meta-learning", "learned-objective"],
        "model-index": [{"name": name, "results": [_result(environment, score) for environment, score in scores.items()]}],
    }
    if not scores:
        del metadata["model-index"]
    trained, chosen_by = trained_in(card), card.get("chosen_by") or []
    rows = []
    for environment, score in scores.items():
        kind = "training" if environment in trained else "validation" if environment in chosen_by else "unseen"
        normalised = score.get("normalised")
        rows.append(f"| {environment} | {kind} | {score['return']} | {'-' if normalised is None else normalised} |")
    table = ["| environment | | return | score |", "|---|---|---|---|", *rows] if rows else ["It has not been scored."]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),  # JSON is YAML
        "---",
        f"# {name}",
        "",
        "A meta-learned objective (MetaGenRL): a loss function that trains the actor of an off-policy actor-critic agent.",
        "",
        "```python",
        "from metagenrl_pl.integrations.hub import from_hub",
        "from metagenrl_pl.integrations.sb3 import LearnedTD3",
        "",
        f'model = LearnedTD3("MlpPolicy", "Hopper-v5", objective=from_hub("{repo_id}")).learn(40_000)',
        "```",
        "",
        f"`{objective!r}`",
        "",
        "## Scores",
        "",
        "Returns of fresh agents at the end of their training. Score: random actions 0, DDPG/TD3 1.",
        "",
        *table,
    ]
    return "\n".join(lines) + "\n"


def _result(environment: str, score: Mapping[str, Any]) -> dict[str, Any]:
    """One environment in the form that the Hub's `model-index` asks for."""
    return {
        "task": {"type": "reinforcement-learning"},
        "dataset": {"name": environment, "type": environment},
        "metrics": [{"type": "mean_reward", "value": score["return"], "name": "mean return of fresh agents"}],
    }
