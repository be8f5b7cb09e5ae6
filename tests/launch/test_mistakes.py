"""Mistakes on the command line: each is answered by one line, before anything is made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.launch.checks import unlike_meta_training
from metagenrl_pl.learning.judges import Judge
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Objective, ObjectiveInputs

Train = Callable[..., tuple[int, str, str]]


class Unkept(CriticObjective):
    """An objective with something to learn that it cannot save."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return parameters["weight"].view(-1, 1, 1, 1) * super().action_gradient(parameters, inputs)


class Unmakeable(LearnedObjective):
    """An objective that does not say all of its options."""

    def __init__(self, width: int = 4, **options: Any) -> None:
        super().__init__(hidden_units=4, seed=options["seed"])
        self.architecture = {"width": width}
        self.extra = nn.Parameter(torch.ones(width if "hidden_units" in options else 1))

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return super().loss(parameters, inputs) * parameters["extra"].mean()


class HalfFrozen(LearnedObjective):
    """A part of it is not meant to learn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.action_transform.requires_grad_(False)


class Blind(Judge):
    """A judge that does not look at the actions."""

    def loss(self, networks: Any, action: Tensor, policy: Any, critics: Any, windows: Any) -> Tensor:
        return windows.reward.sum((1, 2))


class Unasked(CriticObjective):
    """An objective that does not look at the policy's action."""

    needs_critic_gradient = False

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def loss(self, parameters: Any, inputs: ObjectiveInputs) -> torch.Tensor:
        return inputs.reward

    action_gradient = Objective.action_gradient


def test_agents_that_an_objective_does_not_know_are_told_of() -> None:
    objective = LearnedObjective(hidden_units=8)
    config = OmegaConf.create({"meta": None, "agent": {"window_length": 20, "discount": 0.9, "hidden_units": 64}})
    assert unlike_meta_training(config, objective) == []
    objective.card = {
        "window_length": 10,
        "settings": {"agent.discount": 0.99, "agent.hidden_units": 64, "meta.gradient": "clip"},
    }
    assert unlike_meta_training(config, objective) == ["agent.discount=0.9, not 0.99", "agent.window_length=20, not 10"]
    config.meta = {}
    assert unlike_meta_training(config, objective) == []


UNKNOWN_NAMES = [
    ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
    ("+sed=3", "unknown key 'sed'; did you mean 'seed'?"),
    ("++env.trian=x", "unknown key 'env.trian'; did you mean 'env.train'?"),
    ("agent.num_window=3", "unknown key 'agent.num_window'; did you mean 'agent.num_windows'?"),
    ("callbacks.chekpoint=null", "unknown key 'callbacks.chekpoint'; did you mean 'callbacks.checkpoint'?"),
    ("objectiv=learned", "unknown key 'objectiv'; did you mean 'objective'?"),
    ("objective=learnt", "objective=learnt is not a choice; did you mean 'learned'? valid: critic, frozen, learned, "),
    (
        "experiment=baseline/dpg",
        "experiment=baseline/dpg is not a choice; did you mean 'baseline/ddpg'? valid: baseline/ddpg, baseline/off_",
    ),
    ("meta.gradient=clipp", "meta.gradient=clipp is not a choice; did you mean 'clip'? valid: clip, normalize"),
    ("judge=critics", "judge=critics is not a choice; did you mean 'critic'? valid: critic, returns"),
    ("meta=null", "meta=null is not a choice; valid: debug, evolution, frozen, "),
    ("env_steps=${nope}", "env_steps: Interpolation key 'nope' not found"),
    ("~population experiment=debug", "population: has no _target_; valid is a node that names its class as _target_"),
    ("experiment=meta_test", "missing key 'objective.path'"),
]
NUMBERS = [
    ("population.size=0", "population: size must be at least 1, got 0"),
    ("agent.num_windows=-3", "agent: num_windows must be at least 1, got -3"),
    ("env_steps=0", "env_steps must be at least 1, got 0"),
    ("env_steps=-100", "env_steps must be at least 1, got -100"),
    ("env_steps=many", "env_steps: expected int, got 'many'"),
    ("updates_per_batch=0", "updates_per_batch must be at least 1, got 0"),
    ("num_threads=0", "num_threads must be at least 1, or null to choose, got 0"),
    ("replay.capacity=10 agent.window_length=20", "replay.capacity must be at least 22 for windows of 20 steps, got 10"),
    ("replay.capacity=100000000000 env_steps=100000000000", "choose a smaller replay.capacity or population.size"),
    ("agent.hidden_units=1e300", "agent.hidden_units=1e+300 is too large; valid is a whole number up to 9007199254740992"),
    ("env_steps=99999999999999999999999", "env_steps=1e+23 is too large; valid is a whole number up to 9007199254740992"),
    ("agent.hidden_units=100000000", "population.size=6 with agent.hidden_units=100000000 needs "),
    ("population.size=100000000", "population.size=100000000 with agent.hidden_units=64 needs "),
    ("num_threads=100000", "num_threads=100000 is too large; this machine has "),
    ("env_workers=-1", "env_workers must be null, to choose, or a whole number from 0, got -1"),
    ("meta.learning_rate=inf", "meta: learning_rate must be positive and finite, got inf"),
    ("inner.step_size=inf", "inner: step_size must be positive and finite, got inf"),
    ("seed=-1", "seed=-1: valid is a whole number from 0"),
    ("meta=frozen objective=pretrained inner.step_size=-1", "inner: step_size must be positive and finite, got -1.0"),
    ("judge=returns judge.share=2", "judge: share must be between 0 and 1, got 2.0"),
    ("meta=evolution population.lifetime_env_steps=2000 judge=returns judge.share=7", "judge: share must be"),
    ("seed=abc", "error: seed: expected int, got 'abc'"),
]
ENVIRONMENTS = [
    ("env.train=[CartPole-v1]", "environment CartPole-v1: its actions are Discrete(2); valid is a continuous Box"),
    ("env.train=[Pendulum-v2]", "environment Pendulum-v2: "),
    ("env.test=[Hoper-v5]", "did you mean 'Hopper-v5'?"),
    ("env.train=[]", "env: train must name at least one environment"),
    (
        "env.test=[{id:Pendulum-v1,evaluation_kwargs:{foo:1}}]",
        "environment Pendulum-v1[evaluation:foo=1]: TypeError: PendulumEnv.__init__() got an unexpected keyword argument 'foo'",
    ),
    ("env.train=[{id:null}]", "environment {'id': None}: needs an id; valid is an id or a mapping with the keys id, "),
    (
        "experiment=meta_test objective=pretrained env.test=[Hopper-v5]",
        "valid is env.train=..., the environments of this run's agents",
    ),
]
OBJECTIVES = [
    ("objective=pretrained objective.name=heavy", "objective: there is no pretrained objective 'heavy'; valid: falling, light"),
    (
        "objective=pretrained objective.frozen=false meta=frozen",
        "objective.frozen=false goes on meta-training the objective, and meta=frozen does not; valid is objective.frozen=true, or",
    ),
    (
        "experiment=debug objective._target_=test_mistakes.Unkept",
        "objective=test_mistakes.Unkept has parameters that no file can store; valid is a subclass of metagenrl_pl.objectives.Param",
    ),
    (
        "experiment=debug objective._target_=test_mistakes.Unmakeable",
        "objective=test_mistakes.Unmakeable: made again, its extra has another shape; valid is a constructor with options and `seed`",
    ),
    ("objective._target_=torch.nn.Identity", "objective._target_=torch.nn.Identity is no metagenrl_pl.objectives.contract.Obj"),
    (
        "objective._target_=test_mistakes.Unasked",
        "objective=test_mistakes.Unasked: its loss does not depend on inputs.policy_action, so",
    ),
    (
        "objective._target_=test_mistakes.HalfFrozen",
        "objective=test_mistakes.HalfFrozen: action_transform.hidden.0.weight needs no ",
    ),
    (
        "experiment=meta_test objective=learned",
        "LearnedObjective has not been meta-trained, and meta=frozen does not train it; valid",
    ),
    ("experiment=meta_test objective.path=nothing", "objective: nothing: no such file; valid is an objective"),
    ("experiment=meta_test objective.path=/dev/null", "objective: /dev/null: no such file"),
]
META_TRAINING = [
    (
        "judge._target_=test_mistakes.Blind",
        "judge=test_mistakes.Blind: its loss does not depend on the actions, so the objective would learn nothing",
    ),
    (
        "meta=evolution population.size=12 population.lifetime_env_steps=null",
        "population.lifetime_env_steps=null: meta=evolution needs the length of a generation's lives",
    ),
    (
        "meta=evolution population.size=12 population.lifetime_env_steps=90000",
        "population.lifetime_env_steps=90000: no generation of meta=evolution would end within env_steps=",
    ),
    (
        "experiment=baseline/ddpg population.lifetime_env_steps=6000",
        "population.lifetime_env_steps=6000 is for meta-training only; valid is null without it",
    ),
    (
        "inner._target_=metagenrl_pl.learning.inner_step.InnerStep ~inner.step_size",
        "inner: Can't instantiate abstract class InnerStep",
    ),
    (
        "meta._target_=metagenrl_pl.agents.population.PopulationSettings +meta.size=1 ~meta.learning_rate ~meta.gradient "
        "~meta.annealing_env_steps",
        "meta._target_=metagenrl_pl.agents.population.PopulationSettings is no metagenrl_pl.learning.settings.MetaSettings or meta",
    ),
]
CALLBACKS = [
    (
        "callbacks.checkpoint.every_env_steps=0",
        "callbacks.checkpoint: every_env_steps must be at least 1, or null for the end only",
    ),
    (
        "callbacks.meta_test=null callbacks.meta_test.env_steps=60",
        "callbacks.meta_test is null, so 'callbacks.meta_test.env_steps' sets nothing; valid is one of the two",
    ),
    (
        "experiment=baseline/ddpg objective=reinforce",
        "callbacks.evaluation.method=critic: critic is the name of CriticObjective, not of Reinforce; valid is a name of your own",
    ),
    (
        "experiment=baseline/ddpg objective.critic_gradient_of=both",
        "callbacks.evaluation.method=critic: critic is the name of CriticObjective with critic_gradient_of=first, not both; valid is",
    ),
    (
        "experiment=baseline/ddpg callbacks.evaluation.method=critic_both",
        "callbacks.evaluation.method=critic_both: critic_both is the name of CriticObjective with critic_gradient_of=both, not first",
    ),
    (
        "callbacks.meta_test.baselines.critic._target_=metagenrl_pl.objectives.Reinforce",
        "callbacks.meta_test: baselines.critic=metagenrl_pl.objectives.reinforce.Reinforce: critic is the name of CriticObjective, not",
    ),
    (
        "experiment=meta_test objective=learned meta=small",
        "method=learned is for a run of fresh agents, and this run meta-trains; valid is null, or",
    ),
    ("callbacks.meta_test.seeds=[0,0]", "callbacks.meta_test: seeds must differ, got [0, 0]"),
    ("callbacks.meta_test.baselines.critic=false", "baselines.critic must be an objective, or null for none, got False"),
    ("callbacks.meta_test.num_episodes=0", "num_episodes must be at least 1, got 0"),
    (
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping +callbacks.stop.monitor=a",
        "callbacks.stop=pytorch_lightning.callbacks.EarlyStopping acts at the end of an epoch, but a run has only one; valid",
    ),
    (
        "+callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint +callbacks.best.save_weights_only=true",
        "callbacks: save_weights_only=true leaves out what a resume needs; valid is false",
    ),
]
TRAINER = [
    ("trainer.devices=-5", "trainer.devices=-5: valid are auto, -1 (all), a number of devices, or a list of their indices"),
    ("replay.device=meta", "replay: device=meta does not exist; valid is auto, cpu or a GPU (cuda)"),
    ("replay.device=gpu", "replay: device=gpu does not exist; valid is auto, cpu or a GPU (cuda)"),
    *(
        (
            f"trainer.strategy={name}",
            f"trainer.strategy={name} is not a choice, since processes share the objective but not their ",
        )
        for name in ("fsdp", "deepspeed", "dp")
    ),
    ("trainer.strategy=fsdp", "; valid: auto, ddp"),
    (
        "experiment=debug trainer.accelerator=cpu trainer.devices=4",
        "ask for 4 processes, population.size=3 agents can be spread over at most 3",
    ),
    ("trainer.accelerator=abacus", "trainer: You selected an invalid accelerator name: `accelerator='abacus'`. Available"),
    ("+trainer.max_steps=20", "trainer.max_steps=20 would end the run unsaved; valid is env_steps=... for its length"),
    ("+trainer.logger=false", "trainer.logger=False is set by the run; valid is logger=... or an entry below logger"),
    ("trainer.devices=two", "trainer.devices=two: valid are auto, a number of devices, or a list of their indices"),
    ("trainer.accelerator=cpu trainer.devices=[0,1]", "trainer.devices=[0, 1]: the CPU has no indices; valid is a number of"),
    ("trainer.accelerator=cpu trainer.devices='0,1'", "trainer.devices=0,1: the CPU has no indices; valid is a number of"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0: a run is one epoch, as long as env_steps; valid is 1"),
    ("+trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed: agents compute in 32 bits; valid is 32-true"),
    ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1 does not work with manual optimization; valid is agent."),
    ("+trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches=4 does not work with manual optimiz"),
]
FILES = [
    (f"run_dir={'x' * 5000}", "cannot be written: File name too long"),
    ("run_dir=/proc/nowhere", "run_dir=/proc/nowhere cannot be written: "),
    ("ckpt_path=nothing.ckpt", "ckpt_path=nothing.ckpt: there is no such file or folder; valid is a run folder, or a .ckpt file"),
    (
        "ckpt_path=.",
        "ckpt_path=.: this folder has no checkpoints/env_steps_*.ckpt; valid is a .ckpt file, or the folder of a run",
    ),
    ("ckpt_path=", "ckpt_path is empty; valid is a checkpoint, the folder of a run, or null"),
    ("run_dir=", "run_dir is empty; valid is a folder"),
    ("run_dir=/dev/null", "run_dir=/dev/null is not a folder; valid is a new one"),
]
MISTAKES = {
    "name": UNKNOWN_NAMES,
    "number": NUMBERS,
    "environment": ENVIRONMENTS,
    "objective": OBJECTIVES,
    "meta-training": META_TRAINING,
    "callback": CALLBACKS,
    "trainer": TRAINER,
    "file": FILES,
}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [pytest.param(*case, id=f"{subject} {number}") for subject, cases in MISTAKES.items() for number, case in enumerate(cases)],
)
def test_a_mistake_is_answered_by_one_line(arguments: str, named: str, in_process: Train, tmp_path: Path) -> None:
    code, printed, errors = in_process(*arguments.split())
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and errors.endswith("\n") and "Traceback" not in errors
    assert named in errors
    assert printed == "" and list(tmp_path.iterdir()) == []
