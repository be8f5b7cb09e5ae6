"""TorchRL's TD3 with a learned objective. It needs the extra `torchrl`, which a late step of .ci/run installs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metagenrl_pl.integrations.actor import actor_loss
from metagenrl_pl.integrations.windows import WindowBatch
from metagenrl_pl.objectives import LearnedObjective

pytest.importorskip("torchrl")
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.modules import ValueOperator
from torchrl.objectives import TD3Loss

from metagenrl_pl.integrations.torchrl import LearnedTD3Loss

NUM_OBSERVATIONS, NUM_ACTIONS, B, T = 3, 2, 16, 10
LOW, HIGH = torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 3.0])


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS)

    def forward(self, states: Tensor) -> Tensor:
        return (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * torch.tanh(self.layer(states))


class Value(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(NUM_OBSERVATIONS + NUM_ACTIONS, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, states: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([states, action], -1))


def modules() -> tuple[Policy, TensorDictModule, ValueOperator]:
    torch.manual_seed(0)
    policy = Policy()
    return policy, TensorDictModule(policy, ["observation"], ["action"]), ValueOperator(Value(), ["observation", "action"])


def steps(num_episodes: int = 15, length: int = 11) -> TensorDict:
    """Episodes one after another; every second one terminates, the others end by a time limit."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(num_episodes, length + 1, NUM_OBSERVATIONS, generator=generator)
    done = torch.zeros(num_episodes, length, 1, dtype=torch.bool)
    done[:, -1] = True
    terminated = done.clone()
    terminated[::2] = False
    action = LOW + (HIGH - LOW) * torch.rand(num_episodes, length, NUM_ACTIONS, generator=generator)
    following = {"observation": states[:, 1:], "done": done, "terminated": terminated, "truncated": done & ~terminated}
    following["reward"] = torch.randn(num_episodes, length, 1, generator=generator)
    episode = torch.arange(num_episodes)[:, None].expand(-1, length)
    content: dict[str, Any] = {"observation": states[:, :-1], "action": action, "next": following, "episode": episode}
    return TensorDict(content, [num_episodes, length]).flatten()


def drawn_windows() -> TensorDict:
    sampler = SliceSampler(num_slices=B, traj_key="episode", strict_length=True)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(1000), sampler=sampler, batch_size=B * T)
    buffer.extend(steps())
    return buffer.sample().reshape(B, T)


def test_the_actor_descends_the_objective_and_the_critics_learn_as_in_td3() -> None:
    policy, actor, critic = modules()
    windows, objective, bounds = drawn_windows(), LearnedObjective.pretrained("light"), (LOW, HIGH)
    loss = LearnedTD3Loss(actor, critic, objective, bounds=bounds)
    plain = TD3Loss(*copy.deepcopy((actor, critic)), bounds=bounds)
    plain.load_state_dict({name: p for name, p in loss.state_dict().items() if not name.startswith("objective.")})
    assert windows["next", "terminated"].any() and windows["next", "truncated"].any()

    torch.manual_seed(2)
    out = loss(windows.clone())
    torch.manual_seed(2)
    expected = plain(windows.clone())
    torch.testing.assert_close(out["loss_qvalue"], expected["loss_qvalue"])
    torch.testing.assert_close(out["state_action_value_actor"], expected["state_action_value_actor"])

    out["loss_actor"].backward()
    assert all(p.grad is None for p in loss.qvalue_network_params.values(True, True)) and not any(
        p.requires_grad for p in loss.objective.parameters()
    )
    gradient = loss.actor_network_params["module", "layer", "weight"].grad

    values = []
    for index in range(2):
        values.append(Value())
        values[-1].load_state_dict(
            {name: loss.qvalue_network_params["module", *name.split(".")][index].detach() for name in values[-1].state_dict()}
        )
    batch = WindowBatch(
        torch.cat([windows["observation"], windows["next", "observation"][:, -1:]], 1),
        windows["action"],
        windows["next", "reward"].squeeze(-1),
        windows["next", "terminated"].squeeze(-1).float(),
        torch.ones(B, T),
    )
    policy = copy.deepcopy(Policy())
    policy.load_state_dict({name: loss.actor_network_params["module", *name.split(".")].detach() for name in policy.state_dict()})
    own = actor_loss(objective, policy, values, batch, LOW, HIGH)
    own.backward()
    torch.testing.assert_close(out["loss_actor"], own)
    assert policy.layer.weight.grad is not None and policy.layer.weight.grad.abs().max() > 0
    torch.testing.assert_close(gradient, policy.layer.weight.grad)


@pytest.mark.parametrize(
    ("batch", "message"),
    [(lambda: steps(), r"has the shape \(165,\); valid are windows"), (lambda: steps().reshape(5, 33), "ends within a window")],
)
def test_batches_that_are_no_windows_are_refused(batch: Any, message: str) -> None:
    _, actor, critic = modules()
    with pytest.raises(ValueError, match=message):
        LearnedTD3Loss(actor, critic, bounds=(LOW, HIGH))(batch())


def test_another_reduction_is_refused() -> None:
    _, actor, critic = modules()
    with pytest.raises(ValueError, match="reduction='sum': valid is 'mean'"):
        LearnedTD3Loss(actor, critic, bounds=(LOW, HIGH), reduction="sum")
