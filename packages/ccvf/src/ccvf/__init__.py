"""Offline reinforcement learning that chooses its own degree of conservatism.

Values Q(s, a, delta) are learnt for every confidence delta at once: each is meant as a lower bound that fails with
probability at most delta. One training gives policies from very conservative to none at all, and a belief over delta,
moved by how well the values at each predict what happens, chooses among them while acting.

Reference:
    Hong, Kumar, Levine (2023). Confidence-Conditioned Value Functions for Offline Reinforcement Learning. ICLR 2023.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccvf import datasets as datasets
    from ccvf import io as io
    from ccvf import plots as plots
    from ccvf import scores as scores
    from ccvf import theory as theory
    from ccvf.adaptive import AdaptivePolicy as AdaptivePolicy
    from ccvf.attractor import DegenerateValuesWarning as DegenerateValuesWarning
    from ccvf.baselines import DQN as DQN
    from ccvf.baselines import REM as REM
    from ccvf.baselines import BehaviourCloning as BehaviourCloning
    from ccvf.baselines import DiscreteCQL as DiscreteCQL
    from ccvf.baselines import DiscreteIQL as DiscreteIQL
    from ccvf.batches import Batch as Batch
    from ccvf.belief import PAPER as PAPER
    from ccvf.belief import DeltaBelief as DeltaBelief
    from ccvf.belief import Evidence as Evidence
    from ccvf.bonuses import make_bonus as make_bonus
    from ccvf.calibration import calibrate as calibrate
    from ccvf.ccvl import DeepCCVL as DeepCCVL
    from ccvf.collecting import ReplayOptions as ReplayOptions
    from ccvf.collecting import collect as collect
    from ccvf.collecting import collect_replay as collect_replay
    from ccvf.confidence import conservatism as conservatism
    from ccvf.confidence import delta_grid as delta_grid
    from ccvf.confidence import u_grid as u_grid
    from ccvf.configs import BCConfig as BCConfig
    from ccvf.configs import CCVLConfig as CCVLConfig
    from ccvf.configs import CQLConfig as CQLConfig
    from ccvf.configs import DQNConfig as DQNConfig
    from ccvf.configs import IQLConfig as IQLConfig
    from ccvf.configs import REMConfig as REMConfig
    from ccvf.counts import Counts as Counts
    from ccvf.coverage import coverage_of as coverage_of
    from ccvf.coverage import coverage_report as coverage_report
    from ccvf.datasets import atari_replay as atari_replay
    from ccvf.datasets import lava_log as lava_log
    from ccvf.datasets import minatar_replay as minatar_replay
    from ccvf.environments import GymnasiumStepper as GymnasiumStepper
    from ccvf.environments import Stepper as Stepper
    from ccvf.environments import check_match as check_match
    from ccvf.environments import make_vector as make_vector
    from ccvf.environments_grid import MDPEnv as MDPEnv
    from ccvf.evaluating import evaluate as evaluate
    from ccvf.gridworlds import GridWorld as GridWorld
    from ccvf.gridworlds import grid_world as grid_world
    from ccvf.gridworlds import gridworld_log as gridworld_log
    from ccvf.gridworlds import lava_world as lava_world
    from ccvf.io import FormatError as FormatError
    from ccvf.io import load_transitions as load_transitions
    from ccvf.io import save_transitions as save_transitions
    from ccvf.learners import Learner as Learner
    from ccvf.mdp import TabularMDP as TabularMDP
    from ccvf.minari_io import from_minari as from_minari
    from ccvf.minari_io import to_minari as to_minari
    from ccvf.multi_step import n_step as n_step
    from ccvf.ope import FittedQEvaluation as FittedQEvaluation
    from ccvf.ope import estimate_returns as estimate_returns
    from ccvf.ope_estimates import choose_delta as choose_delta
    from ccvf.ope_tabular import empirical_returns as empirical_returns
    from ccvf.penalties import Bonus as Bonus
    from ccvf.policies import FixedPolicy as FixedPolicy
    from ccvf.policies import Policy as Policy
    from ccvf.policies import RandomPolicy as RandomPolicy
    from ccvf.sampling import Sampler as Sampler
    from ccvf.saving import load_learner as load_learner
    from ccvf.saving import save_learner as save_learner
    from ccvf.tabular import TabularCCVL as TabularCCVL
    from ccvf.tabular_values import TabularValues as TabularValues
    from ccvf.training import train as train
    from ccvf.transitions import Transitions as Transitions
    from ccvf.values import ConfidenceValues as ConfidenceValues

__version__ = "0.1.0"

# Everything is imported when it is first used: `import ccvf` stays fast.
_LATER = {
    "AdaptivePolicy": "adaptive",
    "BCConfig": "configs",
    "Batch": "batches",
    "BehaviourCloning": "baselines",
    "Bonus": "penalties",
    "CCVLConfig": "configs",
    "CQLConfig": "configs",
    "ConfidenceValues": "values",
    "Counts": "counts",
    "DQN": "baselines",
    "DQNConfig": "configs",
    "DeepCCVL": "ccvl",
    "DegenerateValuesWarning": "attractor",
    "DeltaBelief": "belief",
    "DiscreteCQL": "baselines",
    "DiscreteIQL": "baselines",
    "Evidence": "belief",
    "FittedQEvaluation": "ope",
    "FixedPolicy": "policies",
    "FormatError": "io",
    "GridWorld": "gridworlds",
    "GymnasiumStepper": "environments",
    "IQLConfig": "configs",
    "Learner": "learners",
    "MDPEnv": "environments_grid",
    "PAPER": "belief",
    "Policy": "policies",
    "REM": "baselines",
    "REMConfig": "configs",
    "RandomPolicy": "policies",
    "ReplayOptions": "collecting",
    "Sampler": "sampling",
    "Stepper": "environments",
    "TabularCCVL": "tabular",
    "TabularMDP": "mdp",
    "TabularValues": "tabular_values",
    "Transitions": "transitions",
    "atari_replay": "datasets",
    "calibrate": "calibration",
    "check_match": "environments",
    "choose_delta": "ope_estimates",
    "collect": "collecting",
    "collect_replay": "collecting",
    "conservatism": "confidence",
    "coverage_of": "coverage",
    "coverage_report": "coverage",
    "delta_grid": "confidence",
    "empirical_returns": "ope_tabular",
    "estimate_returns": "ope",
    "evaluate": "evaluating",
    "from_minari": "minari_io",
    "grid_world": "gridworlds",
    "gridworld_log": "gridworlds",
    "lava_log": "datasets",
    "lava_world": "gridworlds",
    "load_learner": "saving",
    "load_transitions": "io",
    "make_bonus": "bonuses",
    "make_vector": "environments",
    "minatar_replay": "datasets",
    "n_step": "multi_step",
    "save_learner": "saving",
    "save_transitions": "io",
    "to_minari": "minari_io",
    "train": "training",
    "u_grid": "confidence",
}

_MODULES = ("datasets", "io", "plots", "scores", "theory")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"ccvf.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'ccvf' has no attribute {name!r}")
    found = getattr(import_module(f"ccvf.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
