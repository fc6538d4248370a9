"""Learners as files: saved whole, loaded without knowing which kind they are."""

import os
from typing import Any

import torch

from ccvf.baselines import DQN, REM, BehaviourCloning, DiscreteCQL, DiscreteIQL
from ccvf.ccvl import DeepCCVL
from ccvf.configs import BCConfig, CCVLConfig, CQLConfig, DQNConfig, IQLConfig, REMConfig
from ccvf.io import FormatError, load_checkpoint, save_checkpoint
from ccvf.learners import under
from ccvf.value_learner import ValueLearner

__all__ = ["KINDS", "load_learner", "save_learner"]

KINDS: dict[str, tuple[type[ValueLearner[Any]], type[Any]]] = {
    "ccvl": (DeepCCVL, CCVLConfig),
    "dqn": (DQN, DQNConfig),
    "cql": (DiscreteCQL, CQLConfig),
    "rem": (REM, REMConfig),
    "iql": (DiscreteIQL, IQLConfig),
    "bc": (BehaviourCloning, BCConfig),
}


def save_learner(path: str | os.PathLike[str], learner: ValueLearner[Any], info: dict[str, Any] | None = None) -> None:
    """Write a learner with everything that exact resumption needs, whole or not at all.

    Args:
        path: Target file, usually ending in .safetensors.
        learner: It.
        info: Further JSON values to keep beside it.

    Raises:
        OSError: If the file cannot be written; the old one is then untouched.
    """
    tensors, extra = learner.state()
    everything = {f"learner.{name}": value for name, value in tensors.items()}
    save_checkpoint(path, everything, {"what": "learner", "learner": extra, "info": info or {}})


def load_learner(
    path: str | os.PathLike[str], device: str | torch.device | None = None
) -> tuple[ValueLearner[Any], dict[str, Any]]:
    """Read a learner from what `save_learner`, or a checkpoint of `train`, wrote.

    Args:
        path: The file.
        device: Where it computes from now on; the CPU if None.

    Returns:
        The learner, and the `info` kept beside it.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer, or its settings are not ours.
    """
    tensors, about = load_checkpoint(path)
    extra = about.get("learner")
    if not isinstance(extra, dict) or str(extra.get("kind")) not in KINDS:
        raise FormatError(f"{path} holds no learner of a known kind ({', '.join(KINDS)})")
    kind, settings = KINDS[extra["kind"]]
    own = under(tensors, "learner.")
    options: dict[str, Any] = {}
    try:
        if "bonus" in extra:
            from ccvf.bonuses import restore_bonus

            held = under(own, "bonus.")
            options["bonus"] = restore_bonus(held, extra["bonus"], device=device or "cpu")
        config = settings(**extra["config"])
        learner = kind(tuple(extra["observation_shape"]), extra["n_actions"], config, device=device, **options)
        learner.restore(own, extra)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path} cannot be made a learner again: {error}") from None
    return learner, about.get("info", {})
