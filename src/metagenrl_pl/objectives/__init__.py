"""Objectives behind one contract: learned (LSTM), off-policy REINFORCE with GAE, the critic itself (DDPG/TD3), a mixture of those.

Import them from here. `contract` has what the updates need to know of one.
"""

from metagenrl_pl.objectives.contract import DirectedObjective, Objective, ObjectiveInputs
from metagenrl_pl.objectives.critic import CriticObjective
from metagenrl_pl.objectives.learned import LearnedObjective
from metagenrl_pl.objectives.mixture import LearnedMixture
from metagenrl_pl.objectives.parametric import ParametricObjective
from metagenrl_pl.objectives.reinforce import Reinforce

__all__ = [
    "CriticObjective",
    "DirectedObjective",
    "LearnedMixture",
    "LearnedObjective",
    "Objective",
    "ObjectiveInputs",
    "ParametricObjective",
    "Reinforce",
]
