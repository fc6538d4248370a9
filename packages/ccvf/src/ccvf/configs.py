"""Settings of the learners, checked where they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

__all__ = ["BCConfig", "CCVLConfig", "CQLConfig", "DQNConfig", "IQLConfig", "LearnerConfig", "REMConfig"]

Body = Literal["auto", "mlp", "minatar", "nature", "tabular"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What all learners share.

    Args:
        gamma: Discount of one environment step, in [0, 1).
        learning_rate: Of Adam.
        adam_epsilon: Of Adam.
        target_period: Updates between hard copies into the target network (1 with `tau` below 1).
        tau: Share of the online network that enters the target every `target_period` updates.
        double: Choose the next action by the online network and value it by the target network.
        huber: Error at which the loss turns linear; None: squared error.
        clip_gradient: Largest norm of the gradient; None: not clipped.
        clip_rewards: Train on the signs of the rewards, as is usual on Atari; of single steps only.
        body: Trunk: "mlp", "minatar", "nature", "tabular" (state numbers), or "auto" by the observations' shape.
        hidden: Widths of an "mlp" trunk; the last layer of the others is as wide as published.
        n_states: Number of states of a "tabular" trunk.
        amp: Trunks in bfloat16.
        compile: Compile the loss by torch.compile.

    Raises:
        ValueError: If a setting is out of its range.
    """

    gamma: float = 0.99
    learning_rate: float = 3e-4
    adam_epsilon: float = 1e-8
    target_period: int = 500
    tau: float = 1.0
    double: bool = True
    huber: float | None = 1.0
    clip_gradient: float | None = 10.0
    clip_rewards: bool = False
    body: Body = "auto"
    hidden: Sequence[int] = (256, 256)
    n_states: int | None = None
    amp: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.gamma < 1, f"gamma is {self.gamma}; a discount lies in [0, 1)")
        for name in ("learning_rate", "adam_epsilon"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, f"{name} is {value}; give a positive number")
        _require(self.target_period >= 1, f"target_period is {self.target_period}; give 1 or more updates")
        _require(0 < self.tau <= 1, f"tau is {self.tau}; give a share in (0, 1]")
        for name in ("huber", "clip_gradient"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}; give a positive number, or None to leave it out")
        kinds = ("auto", "mlp", "minatar", "nature", "tabular")
        _require(self.body in kinds, f"body is {self.body!r}; give one of {', '.join(kinds)}")
        # JSON gives lists back
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        _require(all(width > 0 for width in self.hidden), f"hidden is {self.hidden}; widths are positive")


@final
@dataclass(frozen=True, kw_only=True)
class DQNConfig(LearnerConfig):
    """Settings of (double) DQN: only the shared ones."""


@final
@dataclass(frozen=True, kw_only=True)
class BCConfig(LearnerConfig):
    """Settings of behaviour cloning: only the shared ones."""


@final
@dataclass(frozen=True, kw_only=True)
class CQLConfig(LearnerConfig):
    """Settings of discrete CQL.

    Args:
        alpha: Weight of the conservative regulariser, at least 0.

    Raises:
        ValueError: If a setting is out of its range.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(math.isfinite(self.alpha) and self.alpha >= 0, f"alpha is {self.alpha}; give a number of at least 0")


@final
@dataclass(frozen=True, kw_only=True)
class REMConfig(LearnerConfig):
    """Settings of the random ensemble mixture.

    Args:
        heads: Number of value heads.

    Raises:
        ValueError: If a setting is out of its range.
    """

    heads: int = 200
    double: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.heads >= 1, f"heads is {self.heads}; give 1 or more")
        _require(not self.double, "double is not defined for a mixture of heads; leave it False")


@final
@dataclass(frozen=True, kw_only=True)
class IQLConfig(LearnerConfig):
    """Settings of discrete implicit Q-learning.

    Args:
        expectile: Of the state value among the logged actions' values, in (0, 1).
        temperature: Inverse temperature beta of the advantage weights.
        largest_weight: Advantage weights are cut here.

    Raises:
        ValueError: If a setting is out of its range.
    """

    expectile: float = 0.8
    temperature: float = 3.0
    largest_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.expectile < 1, f"expectile is {self.expectile}; give a number in (0, 1)")
        _require(self.temperature >= 0, f"temperature is {self.temperature}; give a number of at least 0")
        _require(self.largest_weight > 0, f"largest_weight is {self.largest_weight}; give a positive number")


@final
@dataclass(frozen=True, kw_only=True)
class CCVLConfig(LearnerConfig):
    r"""Settings of confidence-conditioned value learning.

    Args:
        method: "cql": the CQL regulariser with weight $\alpha \sqrt{\log(1/\delta)}$. "bonus": the penalty
            $\alpha \sqrt{\log(1/\delta)}\, b(s, a)$ of a `Bonus`.
        alpha: Scale of the conservatism, at least 0.
        budget: How delta is spent on this step and the rest: "box" (both at most delta; all that "cql" knows),
            "sum" or "product" (see `ccvf.TabularCCVL`).
        lift: With method "cql": whether the regulariser may lift values above those without conservatism. CQL's own
            does lift logged actions; the order in delta would carry that over to all confidences. If False, values at
            delta = 1, and the trunk, are learnt by Q-learning alone: regulariser and errors at smaller confidences
            move only what the head takes off for these (of the cosine head, which does not keep the two apart: the
            difference).
        penalise: With a bonus: "values" takes the penalty off the values of all actions wherever they are used, so
            that actions outside the log are penalised in the backup and when acting; "rewards" off the rewards of
            logged transitions only, as the backup is printed.
        relative: With a bonus on values: charge each action only for how much less familiar it is than the most
            familiar one in its state. Values are then no lower bounds; in long episodes where all states are rare, a
            charge on every step would make ending an episode look best.
        confidences: Confidences trained per sample and update.
        splits: Candidate splits per confidence for "sum" and "product".
        smallest: The most conservative confidence trained, in (0, 1).
        head: "monotone" (in delta, by construction) or "cosine" (the usual embedding, of u; not monotone).
        knots: Of the monotone head.
        hinge: Weight of a penalty on values that fall as delta grows, for the cosine head.

    Raises:
        ValueError: If a setting is out of its range, or two do not go together.
    """

    method: Literal["cql", "bonus"] = "cql"
    alpha: float = 1.0
    budget: Literal["box", "sum", "product"] = "box"
    lift: bool = True
    penalise: Literal["values", "rewards"] = "values"
    relative: bool = False
    confidences: int = 8
    splits: int = 8
    smallest: float = 1e-4
    head: Literal["monotone", "cosine"] = "monotone"
    knots: int = 16
    hinge: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (
            ("method", ("cql", "bonus")),
            ("budget", ("box", "sum", "product")),
            ("penalise", ("values", "rewards")),
            ("head", ("monotone", "cosine")),
        ):
            value = getattr(self, name)
            _require(value in kinds, f"{name} is {value!r}; give one of {', '.join(kinds)}")
        for name in ("alpha", "hinge"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name} is {value}; give a number of at least 0")
        for name in ("confidences", "splits", "knots"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give 1 or more")
        _require(0 < self.smallest < 1, f"smallest is {self.smallest}; the least confidence lies in (0, 1)")
        _require(self.method == "bonus" or self.budget == "box", f"budget {self.budget!r} splits a penalty, and method "
                 "'cql' has none: use method='bonus', or budget='box'")  # fmt: skip
        _require(self.penalise == "values" or not self.relative, "relative compares actions of one state: it needs "
                 "penalise='values'")  # fmt: skip
        _require(self.head == "cosine" or not self.hinge, "hinge is for the cosine head: the monotone one needs none")
