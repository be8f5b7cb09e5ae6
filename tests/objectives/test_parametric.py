"""Objectives with parameters: called alone as a user does, and kept in files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives_inputs import FIGURE_5, LENGTH, NUM_STEPS, NUM_WINDOWS, action_gradient_of, loss_of, random_inputs, small
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives import LearnedObjective, ObjectiveInputs, list_pretrained
from metagenrl_pl.objectives.pretrained import Pretrained, pretrained_path


def test_alone_it_takes_what_an_environment_gives() -> None:
    """Ends as booleans, and no values where they are not looked at."""
    batch = [torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.arange(6.0).view(2, 3)]
    ended = torch.tensor([[0, 0, 1], [0, 0, 0]])
    value = torch.arange(8.0).view(2, 4)
    objective = small()
    assert torch.equal(
        objective(*batch, value, ended.bool(), ended.bool().logical_not()), objective(*batch, value, ended * 1.0, 1.0 - ended)
    )
    assert small(use_value=False)(*batch, None, ended.bool()).shape == (2, 3)
    with pytest.raises(ValueError, match="value=None: this objective needs it"):
        objective(*batch, None, ended)
    with pytest.raises(ValueError, match=r"value: expected \(2, 4\) beside actions of \(2, 3, 1\), got \(2, 3\)"):
        objective(*batch, value[:, 1:], ended)


def test_alone_an_objective_asks_for_the_critic_gradient_that_it_looks_at() -> None:
    objective = small(use_critic_gradient=True)
    batch = [torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3)]
    with pytest.raises(ValueError, match="critic_gradient=None: this objective needs it"):
        objective(*batch)
    assert objective(*batch, critic_gradient=torch.ones(2, 3, 1)).shape == (2, 3)


def test_an_objective_and_its_inputs_are_of_one_dtype() -> None:
    batch = [torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3)]
    with pytest.raises(ValueError, match="policy_action is torch.float32; valid is torch.float64, as the objective's weights"):
        small()(*(x.float() for x in batch))


def test_forward_is_the_stacked_loss_of_one_agent() -> None:
    objective, stacked = small(), random_inputs()
    gradient = action_gradient_of(objective, stacked)[0]
    names = ("policy_action", "replay_action", "reward", "value", "terminated", "valid")
    own = {name: getattr(stacked, name)[0].clone().requires_grad_() for name in names}
    loss = objective(**own)
    torch.testing.assert_close(loss, loss_of(objective, stacked)[0])
    loss.sum().backward()
    torch.testing.assert_close(own["policy_action"].grad, gradient)
    assert all(own[name].grad is None for name in names if name != "policy_action")
    assert all(p.grad is None for p in objective.parameters())


def test_forward_is_computed_without_autocast() -> None:
    torch.set_default_dtype(torch.float32)  # autocast leaves float64 alone
    objective, stacked = small(), random_inputs()
    own = {
        name: getattr(stacked, name)[0].float() for name in ("policy_action", "replay_action", "reward", "value", "terminated")
    }
    with torch.autocast("cpu", torch.bfloat16):
        rounded = objective(**own)
    assert torch.equal(rounded, objective(**own))


def test_forward_takes_all_steps_as_valid_by_default() -> None:
    objective, stacked = small(), random_inputs(torch.full_like(LENGTH, NUM_STEPS))
    own = {name: getattr(stacked, name)[0] for name in ("policy_action", "replay_action", "reward", "value", "terminated")}
    assert torch.equal(objective(**own), objective(**own, valid=torch.ones(NUM_WINDOWS, NUM_STEPS)))
    assert not torch.equal(objective(**own), objective(**own, valid=random_inputs().valid[0]))


@pytest.mark.parametrize(
    "options", [*FIGURE_5[:1], *FIGURE_5[-1:], {"hidden_units": 6, "context_units": 2, "layer_norm_eps": 0.1}], ids=str
)
def test_save_and_load(options: dict[str, Any], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    saved, path = small(**options, seed=5), tmp_path / "objective.safetensors"
    saved.save(path, {"environments": ["A-v1"], "env_steps": 7})
    loaded = LearnedObjective.load(path)
    assert loaded.architecture == saved.architecture
    assert loaded.card == {"environments": ["A-v1"], "env_steps": 7}
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in saved.named_parameters())
    inputs = ObjectiveInputs(*(None if x is None else x.float() for x in random_inputs()))  # type: ignore[arg-type]
    assert torch.equal(loss_of(loaded, inputs), loss_of(saved, inputs))
    assert not torch.equal(loss_of(small(**options), inputs), loss_of(saved, inputs))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["objective.json", "objective.safetensors"]
    card = json.loads((tmp_path / "objective.json").read_text())
    assert card["architecture"] == saved.architecture and card["env_steps"] == 7


class Louder(LearnedObjective):
    """An objective of a user's own, with an option and a loss of its own."""

    def __init__(self, loudness: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.architecture["loudness"] = loudness

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return self.architecture["loudness"] * super().loss(parameters, inputs)


def test_a_subclass_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    objective, inputs = Louder(3.0, hidden_units=8, context_units=3), random_inputs()
    objective.save(tmp_path / "louder.safetensors")
    loaded = LearnedObjective.load(tmp_path / "louder.safetensors")
    assert type(loaded) is Louder and "class" not in loaded.card
    assert torch.equal(loss_of(loaded, inputs), loss_of(objective, inputs))
    fresh = type(loaded)(**loaded.architecture, seed=1)
    assert fresh.architecture == objective.architecture
    loaded.save(tmp_path / "again.safetensors")
    assert isinstance(Louder.load(tmp_path / "again.safetensors"), Louder)


def test_an_objective_that_diverged_is_not_loaded(tmp_path: Path) -> None:
    objective = LearnedObjective(hidden_units=8, context_units=3)
    next(iter(objective.parameters())).data.view(-1)[0] = float("nan")
    objective.save(tmp_path / "nan.safetensors")
    with pytest.raises(
        ValueError, match=r"nan.safetensors: .* has numbers that are not finite; valid is an objective whose meta-train"
    ):
        LearnedObjective.load(tmp_path / "nan.safetensors")


def test_a_class_that_is_not_wanted_or_not_there_is_named(tmp_path: Path) -> None:
    small().save(tmp_path / "plain.safetensors")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"is of the class .*\.LearnedObjective; valid is Louder or a subclass"):
        Louder.load(tmp_path / "plain.safetensors")

    Louder(hidden_units=8).save(tmp_path / "gone.safetensors", {"class": "this.Gone"})
    told = r"is of the class this\.Gone; valid is a class that has been imported, as by objective\._target_=this\.Gone\.load if"
    with pytest.raises(ValueError, match=told):
        LearnedObjective.load(tmp_path / "gone.safetensors")
    Louder(hidden_units=8).save(tmp_path / "evil.safetensors", {"class": "this;rm.Gone"})
    with pytest.raises(ValueError, match=r"is of the class this;rm\.Gone; valid is a class that has been imported$"):
        LearnedObjective.load(tmp_path / "evil.safetensors")
    assert "this" not in sys.modules  # a file makes nothing be imported


def test_the_card_is_kept_when_saved_again(tmp_path: Path) -> None:
    small().save(tmp_path / "a.safetensors", {"env_steps": 7, "seed": 1})
    LearnedObjective.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors", {"seed": 2})
    assert LearnedObjective.load(tmp_path / "b.safetensors").card == {"env_steps": 7, "seed": 2}


def broken_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.safetensors"
    small().save(whole)
    content = whole.read_bytes()
    tensors = {name: p.detach() for name, p in small().named_parameters()}
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    card = json.loads(metadata["card"])
    newer = json.dumps({**card, "architecture": {**card["architecture"], "use_magic": True}})
    paths = {
        name: folder / f"{name}.safetensors"
        for name in ("missing", "truncated", "empty", "text", "foreign", "other", "newer", "bare")
    }
    paths["truncated"].write_bytes(content[: len(content) // 2])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("not an objective\n" * 10)
    save_file({"weight": torch.ones(2)}, paths["foreign"], metadata={"format": "pt"})
    save_file({"weight": torch.ones(2)}, paths["other"], metadata=metadata)
    save_file(tensors, paths["newer"], metadata={"card": newer})
    save_file(tensors, paths["bare"])
    return paths | {"folder": folder}


def test_refuses_files_that_are_no_objective(tmp_path: Path) -> None:
    for kind, path in broken_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            LearnedObjective.load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: "), kind
        assert "\n" not in message, kind


@pytest.mark.parametrize("card", sorted(Path(pretrained_path("light")).parent.glob("*.json")), ids=lambda path: path.stem)
def test_pretrained_objectives_have_cards_and_give_finite_gradients(card: Path) -> None:
    objective = LearnedObjective.pretrained(card.stem)
    told = {"training_environments", "env_steps", "num_agents", "window_length", "seed", "commit", "licence", "scores", "made_by"}
    assert told <= objective.card.keys()
    assert not any(p.requires_grad for p in objective.parameters())
    action = torch.linspace(-1, 1, 60).view(3, 10, 2).requires_grad_()
    reward, value = torch.linspace(0, 1, 30).view(3, 10), torch.linspace(0, 1, 33).view(3, 11)
    loss = objective(action, -action, reward, value, torch.zeros(3, 10), critic_gradient=torch.ones(3, 10, 2))
    (gradient,) = torch.autograd.grad(loss.sum(), action)
    assert gradient.isfinite().all() and gradient.any()
    assert f"`{card.stem}`" in (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", ["heavy", "../pretrained/light", ""])
def test_refuses_a_pretrained_objective_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^there is no pretrained objective {name!r}; .*valid: .*light"):
        LearnedObjective.pretrained(name)


def test_pretrained_objectives_are_listed_and_tell_how_they_were_made() -> None:
    names = {one.name: one for one in list_pretrained()}
    assert set(names) == {"falling", "light", "mixture"}
    assert names["light"].training_environments == ("InvertedPendulum-v5", "Pendulum-v1", "Reacher-v5")
    assert names["light"].scores["Hopper-v5"] == 1.18
    assert str(names["light"]).startswith("light: meta-trained on InvertedPendulum-v5, ") and "Hopper-v5 1.18" in str(
        names["light"]
    )
    unseen, _, choice = str(names["light"]).partition("; in the validation environments by which it was chosen: ")
    assert "Walker2d" not in unseen and choice == "InvertedDoublePendulum-v5 1.44, Walker2d-v5 1.87"
    light = LearnedObjective.pretrained()
    assert repr(light) == (
        "LearnedObjective(15,529 parameters, meta-trained on InvertedPendulum-v5, Pendulum-v1, Reacher-v5, 24,000 env steps of each of "
        "6 agents, 16 windows of 10 steps)"
    )


def test_a_card_may_lack_scores() -> None:
    """DDPG/TD3 may be below random actions, and an objective need not have been tested in all validation environments."""
    shown = str(Pretrained("mine", ("A",), {"B": None, "C": 0.5}, ("C", "D")))
    assert shown.endswith("unseen environments: B -; in the validation environments by which it was chosen: C 0.50, D -")


def test_another_one_has_the_same_options_and_other_parameters() -> None:
    objective = LearnedObjective(hidden_units=4, use_time=False, seed=1)
    again, other = objective.fresh(1), objective.fresh(2)
    assert again.architecture == other.architecture == objective.architecture
    for each, is_same in ((again, True), (other, False)):
        assert is_same == all(torch.equal(a, b) for a, b in zip(objective.parameters(), each.parameters(), strict=True))


class Seedless(LearnedObjective):
    """Its constructor takes no seed, and no other option than one."""

    def __init__(self, hidden_units: int = 4) -> None:
        super().__init__(hidden_units=hidden_units)


class Buffered(LearnedObjective):
    """Its files would lack its buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(hidden_units=4, seed=seed)
        self.architecture = {}
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("constant", torch.ones(()), persistent=False)


def test_buffers_that_files_do_not_keep_are_told() -> None:
    with pytest.raises(ValueError, match=r"^files keep no buffers, and it has scale; valid is register_buffer"):
        Buffered().fresh(1)


def test_an_objective_that_cannot_be_made_again_is_told() -> None:
    with pytest.raises(ValueError, match=r"^it cannot be made again \(.*unexpected keyword argument.*; valid is a constructor"):
        Seedless().fresh(1)
