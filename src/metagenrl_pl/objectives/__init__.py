"""Objectives with one interface: learned (LSTM), off-policy REINFORCE with GAE, the critic (DDPG/TD3), and a learned mixture.

Import them from here. `contract` defines the interface that the updates use.
"""

from metagenrl_pl.objectives.contract import DirectedObjective, Objective, ObjectiveInputs
from metagenrl_pl.objectives.critic import CriticObjective
from metagenrl_pl.objectives.learned import LearnedObjective
from metagenrl_pl.objectives.mixture import LearnedMixture
from metagenrl_pl.objectives.parametric import ParametricObjective
from metagenrl_pl.objectives.pretrained import list_pretrained
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
    "list_pretrained",
]
