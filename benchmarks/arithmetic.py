"""What the updates have to compute, in closed form: the floor of their time.

Arithmetic is that of the matrix products which the mathematics needs, each once, 2 operations a multiply-add: forward passes, derivatives
in a layer's inputs and in its weights, and forward-mode tangents. The meta-gradient is that of the factored path
(`metagenrl_pl.learning.meta_update`), whose second order lives in the objective alone.

Memory traffic is that of float32 activations: every product reads its two factors and writes its result once; between two products one
fused kernel (activation, norm, gates or their derivative) reads each of its inputs and writes its result once. Optimizers, moving
averages, losses and sampling are left out; they are small beside it, in operations and in bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from torch.utils.flop_counter import FlopCounterMode

from clock import CRITIC, META, POLICY
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.objectives import LearnedObjective, Objective
from workloads import updates


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes moved."""

    flop: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flop + other.flop, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> "Work":
        return Work(times * self.flop, times * self.bytes)


def total(works: Iterable[Work]) -> Work:
    """All of it."""
    return reduce(Work.__add__, works, Work())


def product(rows: int, num_in: int, num_out: int) -> Work:
    """[rows, in] x [in, out]; nothing if there are no entries."""
    if not rows * num_in * num_out:
        return Work()
    return Work(2 * rows * num_in * num_out, 4 * (rows * num_in + num_in * num_out + rows * num_out))


@dataclass(frozen=True)
class Layer:
    """A linear layer and the fused kernel behind it, for one network.

    Args:
        rows, num_in, num_out: of the product.
        num_path: inputs that carry a derivative; the others are constants.
    """

    rows: int
    num_in: int
    num_out: int
    num_path: int

    def _kernel(self, num_inputs: int) -> Work:
        return Work(0, 4 * self.rows * self.num_out * (num_inputs + 1))

    @property
    def forward(self) -> Work:
        """The outputs."""
        return product(self.rows, self.num_in, self.num_out) + self._kernel(1)

    @property
    def adjoint(self) -> Work:
        """Derivatives in the inputs that carry one; the kernel reads what was saved and what comes in."""
        return product(self.rows, self.num_out, self.num_path) + self._kernel(2)

    @property
    def tangent(self) -> Work:
        """Derivatives of the outputs along those of the inputs."""
        return product(self.rows, self.num_path, self.num_out) + self._kernel(2)

    @property
    def weights(self) -> Work:
        """Derivatives in the weights."""
        return product(self.num_in, self.rows, self.num_out)

    @property
    def mixed_weights(self) -> Work:
        """The second term of the weights' derivatives where inputs have tangents."""
        return product(self.num_path, self.rows, self.num_out)


class Network:
    """Layers one after another: the work of all of them."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.forward = total(layer.forward for layer in layers)
        self.adjoint = total(layer.adjoint for layer in layers)
        self.tangent = total(layer.tangent for layer in layers)
        self.weights = total(layer.weights for layer in layers)
        self.mixed_weights = total(layer.mixed_weights for layer in layers)


def mlp(rows: int, widths: Sequence[int], num_path: int) -> Network:
    """A perceptron; behind its first layer everything carries a derivative."""
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    return Network([Layer(rows, i, o, i if k else num_path) for k, (i, o) in enumerate(pairs)])


class ObjectiveWork:
    """The learned objective on some windows.

    `forward`, the `action_gradient` that follows it, and the `second_order` that follows both: the derivative in alpha of the action
    gradient along a direction. That is a tangent forward, one more pass back, and a product of weights for each of the two terms; the
    adjoints of the tangents are those that the action gradient has computed.
    """

    def __init__(self, objective: LearnedObjective, rows: int, num_actions: int) -> None:
        hidden, context = objective.architecture["hidden_units"], objective.architecture["context_units"]
        num_context = 1 + objective.use_time + 2 * objective.use_value + (objective.terminal == "input") + objective.use_td_error
        transform = mlp(rows * num_actions, [2 + objective.needs_critic_gradient, hidden, hidden, hidden], 1)
        context_transform = mlp(rows, [num_context, hidden, hidden, context], 0)
        features, head_inputs = hidden + context, hidden + context
        recurrent: list[Layer] = []
        if objective.use_lstm:
            recurrent = [Layer(rows, features, 4 * hidden, hidden), Layer(rows, hidden, 4 * hidden, hidden)]
            head_inputs = hidden
        path = Network([*transform.layers, *recurrent, *mlp(rows, [head_inputs, hidden, hidden, 1], hidden).layers])
        self.forward = path.forward + context_transform.forward
        self.action_gradient = path.adjoint
        into_context = product(rows, recurrent[0].num_out if recurrent else hidden, context)
        back = path.adjoint + into_context + context_transform.adjoint
        self.second_order = path.tangent + back + path.weights + path.mixed_weights + context_transform.weights


def work_of_agent(size: tuple[int, int], settings: AgentSettings, objective: Objective) -> dict[str, Work]:
    """What one agent's updates need, by part of the cycle.

    Args:
        size: observation and action size.
        settings: of the agent.
        objective: a learned one, or one without parameters that costs nothing beside dQ/da.
    """
    o, a = size
    hidden = [settings.hidden_units] * settings.num_hidden_layers
    windows, rows = settings.num_windows, settings.num_windows * settings.window_length

    def policy(rows: int) -> Network:
        return mlp(rows, [o, *hidden, a], 0)

    def critic(rows: int, num_path: int = 0) -> Network:
        return mlp(rows, [o + a, *hidden, 1], num_path)

    def descent(network: Network) -> Work:
        return network.adjoint + network.weights

    values = critic(rows).forward + policy(windows).forward + critic(windows).forward  # V(s) of every state of a window
    critics = policy(rows).forward + 4 * critic(rows).forward + 2 * descent(critic(rows))
    if not isinstance(objective, LearnedObjective):
        to_action = critic(rows).forward + critic(rows, a).adjoint
        return {CRITIC: critics, POLICY: policy(rows).forward + to_action + descent(policy(rows))}
    if objective.needs_critic_gradient:
        values += critic(rows, a).adjoint  # of the same forward pass
    learned = ObjectiveWork(objective, rows, a)
    step = policy(rows).forward + values + learned.forward + learned.action_gradient + descent(policy(rows))
    judged = policy(2 * rows).forward + critic(2 * rows).forward + critic(2 * rows, a).adjoint + descent(policy(2 * rows))
    along = policy(rows).forward + policy(rows).tangent  # J w: weights have tangents as well as hidden units
    return {CRITIC: critics, POLICY: step, META: step + judged + along + learned.second_order}


def work_per_cycle(
    sizes: Sequence[tuple[int, int]], settings: AgentSettings, objective: Objective, learns: bool = True
) -> dict[str, Work]:
    """The mean cycle of a population, by part: all but the critics' update happens every `policy_delay` cycles."""
    agents = [work_of_agent(size, settings, objective) for size in sizes]
    share = {CRITIC: 1.0, POLICY: 1 / settings.policy_delay, META: learns / settings.policy_delay}
    return {part: share[part] * total(agent[part] for agent in agents) for part in agents[0] if share[part]}


def count_flop(agents: Agents) -> dict[str, float]:
    """Floating-point operations that each of the eager updates really does, as torch counts them."""
    counts = {}
    for part, update in updates(agents).items():
        with FlopCounterMode(display=False) as counter:
            update()
        counts[part] = float(counter.get_total_flops())
    return counts
