"""TD3's loss module of TorchRL, whose actor descends a learned objective."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metagenrl_pl.integrations.actor import Critic, actor_loss, find_objective
from metagenrl_pl.integrations.windows import WindowBatch
from metagenrl_pl.objectives import Objective

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.objectives import TD3Loss
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"TorchRL is missing ({error}); pip install 'metagenrl-pl[torchrl]'") from error


class LearnedTD3Loss(TD3Loss):
    """`torchrl.objectives.TD3Loss` with another `loss_actor`; critics, targets, keys and updaters are as there.

    Batches are windows, [B, T]: T consecutive steps of one episode in each row, as `SliceSampler(num_slices=B, strict_length=True)` draws
    them and `reshape(B, T)` puts them. Clip the norm of the actor's gradient, as meta-training did (`meta_trained_with`).

    Args:
        actor_network, qvalue_network: as in TD3Loss. The actor reads one key.
        objective: the name of a pretrained one (`list_pretrained`), a `.safetensors` file, a run folder, or an objective.
        td3_kwargs: arguments of TD3Loss. `reduction` has to be "mean".

    Raises:
        ValueError: if there is no such objective, the actor reads several keys, or the loss is not reduced to its mean.
    """

    def __init__(
        self, actor_network: Any, qvalue_network: Any, objective: Objective | Path | str = "light", **td3_kwargs: Any
    ) -> None:
        super().__init__(actor_network, qvalue_network, **td3_kwargs)
        if self.reduction != "mean":
            raise ValueError(f"reduction={self.reduction!r}: valid is 'mean'")
        if len(actor_network.in_keys) != 1:
            raise ValueError(f"the actor reads {list(actor_network.in_keys)}; valid is one key")
        self.objective = copy.deepcopy(find_objective(objective)).requires_grad_(False)
        # On the CPU, where `actor_loss` looks at them: it would wait for a GPU at each call.
        self._bounds = [torch.as_tensor(bound, device="cpu") for bound in (self.min_action, self.max_action)]

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's loss of the policy's actions in these windows, a scalar, and the values that TD3Loss reports.

        Raises:
            ValueError: if the batch is not of windows.
        """
        windows = self._windows(tensordict)
        critics = [self._critic(index) for index in range(self.num_qvalue_nets)]
        loss = actor_loss(self.objective, self._policy, critics, windows, *self._bounds)
        with torch.no_grad():
            states = windows.states[:, :-1].flatten(0, 1)
            values = torch.stack([critic(states, self._policy(states)) for critic in critics])
        return loss, {"state_action_value_actor": values.view(len(critics), *tensordict.batch_size)}

    def _windows(self, tensordict: TensorDictBase) -> WindowBatch:
        if tensordict.ndim != 2:
            raise ValueError(f"the batch has the shape {tuple(tensordict.batch_size)}; valid are windows, [B, T]")
        (key,), keys = self.actor_network.in_keys, self.tensor_keys
        done = tensordict["next", keys.done].squeeze(-1)
        if done[:, :-1].any():
            raise ValueError(
                "an episode ends within a window; valid are slices of one episode, as of SliceSampler(strict_length=True)"
            )
        observation, last = tensordict[key], tensordict["next", key][:, -1:]
        reward = tensordict["next", keys.reward].squeeze(-1)
        terminated = tensordict["next", keys.terminated].squeeze(-1).to(reward.dtype)
        return WindowBatch(
            torch.cat([observation, last], 1), tensordict[keys.action], reward, terminated, torch.ones_like(reward)
        )

    def _policy(self, states: Tensor) -> Tensor:
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            return self.actor_network(TensorDict({self.actor_network.in_keys[0]: states}, states.shape[:1]))[
                self.tensor_keys.action
            ]

    def _critic(self, index: int) -> Critic:
        def value(states: Tensor, action: Tensor) -> Tensor:
            inputs = {self.actor_network.in_keys[0]: states, self.tensor_keys.action: action}
            # TD3Loss keeps the parameters of all critics stacked; here they are constants.
            with self.qvalue_network_params[index].detach().to_module(self.qvalue_network, preserve_module_state=False):
                return self.qvalue_network(TensorDict(inputs, states.shape[:1]))[self.tensor_keys.state_action_value].squeeze(-1)

        return value
