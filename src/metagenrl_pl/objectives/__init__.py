"""Objectives behind one contract: learned (LSTM), off-policy REINFORCE with GAE, and the critic itself (DDPG/TD3)."""

from metagenrl_pl.objectives.contract import Objective, ObjectiveInputs
from metagenrl_pl.objectives.critic import CriticObjective
from metagenrl_pl.objectives.learned import LearnedObjective
from metagenrl_pl.objectives.parametric import ParametricObjective
from metagenrl_pl.objectives.reinforce import Reinforce

__all__ = ["CriticObjective", "LearnedObjective", "Objective", "ObjectiveInputs", "ParametricObjective", "Reinforce"]
