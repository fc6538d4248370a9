"""One training of the MinAtar benchmark: a method on a part of the log of a learning agent, judged by playing."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ccvf.adaptive import AdaptivePolicy
from ccvf.baselines import DQN, REM, DiscreteCQL
from ccvf.belief import PAPER, Evidence
from ccvf.bonuses import make_bonus
from ccvf.ccvl import DeepCCVL
from ccvf.confidence import delta_of
from ccvf.configs import CCVLConfig, CQLConfig, DQNConfig, REMConfig
from ccvf.datasets import minatar_replay
from ccvf.environments import make_vector
from ccvf.evaluating import evaluate
from ccvf.policies import FixedPolicy, Policy, RandomPolicy
from ccvf.training import train
from ccvf.transitions import Transitions
from ccvf.transitions_summary import returns_of
from ccvf.value_learner import ValueLearner

METHODS = ("dqn", "rem", "cql-0.1", "cql-0.5", "cql-1", "cql-4", "ccvl", "ccvl-cql")
FIXED_U = (0.0, 1.0, 2.0, 3.0)  # conservatism sqrt(log(1/delta)) of the fixed policies of one CCVL training
SHARED: dict[str, Any] = {"learning_rate": 5e-4, "target_period": 400}  # of all methods alike
ENVS = 16
LONGEST = 2500  # steps of an episode that is judged


@dataclass(frozen=True)
class Setting:
    """What is trained on what.

    Attributes:
        game: MinAtar's name.
        seed: Of the log, the part and the training.
        fraction: Share of the log.
        method: One of `METHODS`.
        frames: Length of the whole log.
        updates: Of each method alike.
        episodes: Played to judge each policy.
    """

    game: str
    seed: int
    fraction: float
    method: str
    frames: int
    updates: int
    episodes: int

    @property
    def key(self) -> str:
        return f"{self.game}/{self.seed}/{self.fraction:g}/{self.method}"


def make_log(game: str, seed: int, frames: int) -> dict[str, Any]:
    """Make the log of a game, or find it; what it says of itself.

    Args:
        game: MinAtar's name.
        seed: Of everything.
        frames: Its length.

    Returns:
        Fingerprint, the mean return of a random policy and of the last tenth of the log's episodes.
    """
    torch.set_num_threads(1)
    data = minatar_replay(game, seed, frames)
    returns = returns_of(data.episodes, data.rewards)
    last = returns[-max(1, len(returns) // 10) :]
    random = evaluate(RandomPolicy(data.n_actions, np.random.default_rng(seed)), make_vector(f"minatar:{game}", ENVS),
                      128, seed=10_000 + seed, max_steps=LONGEST)  # fmt: skip
    return {
        "fingerprint": data.fingerprint(),
        "random": float(random.returns.mean()),
        "behaviour": float(np.mean(last)),
        "episodes": len(returns),
    }


def make_learner(method: str, data: Transitions, seed: int) -> ValueLearner[Any]:
    """The learner of a method, with its default settings but for what all share.

    Args:
        method: One of `METHODS`.
        data: What it will learn from; counts are fitted on it.
        seed: Of weights and draws.

    Returns:
        The learner.
    """
    where = (data.observation_shape, data.n_actions)
    generator = torch.Generator().manual_seed(seed)
    name, _, alpha = method.partition("-")
    if method == "ccvl-cql":  # CQL's own regulariser, whose weight the confidence sets
        regulariser = CCVLConfig(**SHARED, method="cql", alpha=1.0, lift=True, head="cosine")
        return DeepCCVL(*where, regulariser, generator=generator)
    if name == "dqn":
        return DQN(*where, DQNConfig(**SHARED), generator=generator)
    if name == "rem":
        return REM(*where, REMConfig(**SHARED), generator=generator)
    if name == "cql":
        return DiscreteCQL(*where, CQLConfig(**SHARED, alpha=float(alpha)), generator=generator)
    bonus = make_bonus("behaviour", steps=2000).fit(data, torch.Generator().manual_seed(seed))
    config = CCVLConfig(**SHARED, method="bonus", alpha=1.0, relative=True)
    return DeepCCVL(*where, config, bonus=bonus, generator=generator)


def policies(learner: ValueLearner[Any], seed: int) -> dict[str, Policy]:
    """The policies of one training by name.

    Args:
        learner: Trained.
        seed: Of the random actions of fixed policies.

    Returns:
        Greedy ones; of CCVL at fixed confidences, and adapting by our evidence, by the paper's, at the
        mode of the belief in place of its mean, and by one belief that all games feed.
    """
    if not isinstance(learner, DeepCCVL):
        return {"greedy": FixedPolicy(learner, 1.0)}
    fixed: dict[str, Policy] = {f"u={u:g}": FixedPolicy(learner, float(delta_of(u)[0])) for u in FIXED_U}
    for name, evidence in (("adaptive", Evidence()), ("adaptive-paper", PAPER)):
        fixed[name] = AdaptivePolicy(learner, gamma=learner.gamma, evidence=evidence)
    fixed["adaptive-mode"] = AdaptivePolicy(learner, gamma=learner.gamma, act="argmax")
    fixed["adaptive-shared"] = AdaptivePolicy(learner, gamma=learner.gamma, persist="shared")
    return fixed


def train_and_play(**kwargs: Any) -> Mapping[str, Any]:
    """Train one method and play with all its policies.

    Args:
        **kwargs: The fields of a `Setting`.

    Returns:
        Mean returns by policy, the belief's mean conservatism, figures of the training.
    """
    setting = Setting(**kwargs)
    torch.set_num_threads(1)
    data = minatar_replay(setting.game, setting.seed, setting.frames, fraction=setting.fraction)
    start = time.process_time()
    learner = make_learner(setting.method, data, setting.seed)
    history = train(learner, data, updates=setting.updates, batch_size=32,
                    generator=torch.Generator().manual_seed(setting.seed))  # fmt: skip
    trained = time.process_time() - start
    returns, conservatism = {}, {}
    for name, policy in policies(learner, setting.seed).items():
        stepper = make_vector(f"minatar:{setting.game}", ENVS)
        found = evaluate(policy, stepper, setting.episodes, seed=20_000 + setting.seed, max_steps=LONGEST)
        returns[name] = float(found.returns.mean())
        if isinstance(policy, AdaptivePolicy):
            conservatism[name] = float(policy.diagnostics.mean_u.mean())
    return {
        "setting": asdict(setting),
        "transitions": len(data),
        "returns": returns,
        "mean_u": conservatism,
        "cpu_seconds": trained,
        "last": history.metrics[-1],
    }
