"""Off-policy evaluation: the value of a policy from rewards that another policy collected.

With weights w_t = π(a_t | x_t) / p_t, p_t the logging policy's probability of the action it took, and a model q(x, a):

    DM     mean of Σ_a π(a | x_t) q(x_t, a)
    IPS    mean of w_t y_t
    SNIPS  Σ w_t y_t / Σ w_t
    DR     mean of Σ_a π(a | x_t) q(x_t, a) + w_t (y_t − q(x_t, a_t))
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from common_core.stats import Estimate
from hieropo.briefly import briefly
from hieropo.intervals import Interval, mean_interval, ratio_interval, standard_error
from hieropo.linalg import as_real


@final
@dataclass(frozen=True)
class OffPolicyEstimate:
    """A value and its confidence interval, in units of the reward.

    Args:
        estimator: "dm", "ips", "snips" or "dr".
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
        stderr: Standard error of the mean (SNIPS: by linearisation).
        confidence: Nominal coverage of [low, high].
        interval: "normal" and "bootstrap" hold for many rows; "bernstein" for any number.
        n: Number of rows.
        effective_n: (Σw)² / Σw², the number of rows an equally weighted sample would need; n for DM.
        max_weight: The largest weight; 1 for DM.
    """

    estimator: str
    value: float
    low: float
    high: float
    stderr: float
    confidence: float
    interval: str
    n: int
    effective_n: float
    max_weight: float

    @property
    def estimate(self) -> Estimate:
        """Value and interval, for tables."""
        return Estimate(self.value, self.low, self.high, self.n)


@final
@dataclass(frozen=True, eq=False)
class LoggedFeedback:
    """Bandit feedback with the propensities it was logged under.

    Args:
        actions: Logged actions, shape [n], in 0..K-1.
        rewards: Their rewards, shape [n].
        propensities: Probabilities with which the logging policy took them, shape [n], in (0, 1].

    Raises:
        ValueError: If shapes disagree, a number is not finite, an action negative, or a propensity outside (0, 1].
        TypeError: If actions are not integers.
    """

    actions: np.ndarray
    rewards: np.ndarray
    propensities: np.ndarray

    __repr__ = briefly("n")

    def __post_init__(self) -> None:
        actions = np.asarray(self.actions)
        if actions.dtype.kind not in "iu":
            raise TypeError(f"actions has dtype {actions.dtype}; give integers")
        rewards, propensities = as_real(self.rewards, "rewards"), as_real(self.propensities, "propensities")
        if (
            actions.ndim != 1
            or actions.size == 0
            or rewards.shape != actions.shape
            or propensities.shape != actions.shape
        ):
            shapes = f"{actions.shape}, {rewards.shape} and {propensities.shape}"
            raise ValueError(f"actions, rewards and propensities have shapes {shapes}; give [n] each, n >= 1")
        if actions.min() < 0:
            row = int(np.argmax(actions < 0))
            raise ValueError(f"actions[{row}] is {actions[row]}; give positions in 0..K-1, and drop rows without one")
        if not np.isfinite(rewards).all():
            raise ValueError(f"rewards[{int(np.flatnonzero(~np.isfinite(rewards))[0])}] is not finite")
        bad = np.flatnonzero(~((propensities > 0) & (propensities <= 1)))
        if bad.size:
            value = propensities[bad[0]]
            raise ValueError(f"propensities[{bad[0]}] is {value}; give the probability of the logged action, in (0, 1]")
        for name, array in (
            ("actions", actions.astype(np.int64)),
            ("rewards", rewards),
            ("propensities", propensities),
        ):
            object.__setattr__(self, name, array)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.actions)


def direct_method(
    action_dist: npt.ArrayLike,
    predicted_rewards: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    interval: Interval | str = "normal",
    value_range: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> OffPolicyEstimate:
    """DM: the mean over contexts of Σ_a π(a | x) q(x, a).

    The interval speaks of the sampling of contexts only: a wrong model is wrong whatever its width.

    Args:
        action_dist: π(a | x_t), shape [n, K] (or [n, K, 1]).
        predicted_rewards: q(x_t, a), shape [n, K].
        confidence: Coverage of the interval.
        interval: "normal", "bernstein" or "bootstrap".
        value_range: Least and largest possible q, for "bernstein".
        rng: Source of randomness, for "bootstrap".

    Returns:
        The estimate.

    Raises:
        ValueError: If a shape or option is wrong or a row of π is not a distribution.
    """
    policy = _distribution(action_dist)
    model = _model(predicted_rewards, policy.shape)
    if value_range is not None and not value_range[0] <= model.min() <= model.max() <= value_range[1]:
        raise ValueError(f"value_range is {value_range}; predicted_rewards leave it, clip them or widen it")
    terms = np.sum(policy * model, axis=1)
    low, high = mean_interval(terms, confidence, interval, value_range, rng)
    return _result(
        "dm", float(terms.mean()), low, high, standard_error(terms), confidence, interval, np.ones(len(terms))
    )


def inverse_propensity(
    feedback: LoggedFeedback,
    action_dist: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    interval: Interval | str = "normal",
    reward_range: tuple[float, float] | None = None,
    min_propensity: float | None = None,
    rng: np.random.Generator | None = None,
) -> OffPolicyEstimate:
    """IPS: the mean of w y, unbiased when every action π takes could have been logged.

    Args:
        feedback: The log.
        action_dist: π(a | x_t), shape [n, K] (or [n, K, 1]).
        confidence: Coverage of the interval.
        interval: "normal", "bernstein" (any n; needs `reward_range` and `min_propensity`) or "bootstrap" (needs `rng`).
        reward_range: Least and largest possible reward.
        min_propensity: A lower bound of the logging policy's probabilities, known beforehand.
        rng: Source of randomness, for "bootstrap".

    Returns:
        The estimate.

    Raises:
        ValueError: If a shape or option is wrong or a row of π is not a distribution.

    Example:
        >>> log = LoggedFeedback(np.array([0, 1, 0, 1]), np.array([1.0, 0.0, 1.0, 1.0]), np.full(4, 0.5))
        >>> inverse_propensity(log, [[1.0, 0.0]] * 4).value  # two of the rewards, each counted twice
        1.0
    """
    policy = _policy_for(feedback, action_dist)
    weights = _weights(feedback, policy)
    bounds = None
    if interval == "bernstein":
        top, (least, most) = _largest_weight(feedback, min_propensity), _range(reward_range, feedback.rewards)
        bounds = (min(0.0, top * least), max(0.0, top * most))
    return _mean_of(weights * feedback.rewards, weights, "ips", confidence, interval, bounds, rng)


def self_normalised(
    feedback: LoggedFeedback,
    action_dist: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    interval: str = "normal",
    rng: np.random.Generator | None = None,
) -> OffPolicyEstimate:
    """SNIPS: Σ w y / Σ w, slightly biased, bounded by the rewards, and unmoved by a constant added to all of them.

    Args:
        feedback: The log.
        action_dist: π(a | x_t), shape [n, K] (or [n, K, 1]).
        confidence: Coverage of the interval.
        interval: "normal" (linearised) or "bootstrap" (needs `rng`).
        rng: Source of randomness, for "bootstrap".

    Returns:
        The estimate.

    Raises:
        ValueError: If a shape or option is wrong, or π never takes a logged action.
    """
    policy = _policy_for(feedback, action_dist)
    weights = _weights(feedback, policy)
    total = weights.sum()
    if total <= 0:
        raise ValueError("every weight is zero: the policy never takes a logged action; nothing can be said about it")
    value = float(weights @ feedback.rewards / total)
    influence = weights * (feedback.rewards - value) / (total / feedback.n)
    if interval == "normal":
        low, high = mean_interval(value + influence, confidence, "normal", None, None)
    elif interval == "bootstrap":
        low, high = ratio_interval(weights * feedback.rewards, weights, confidence, rng)
    else:
        raise ValueError(f"interval is {interval!r}; a ratio has 'normal' and 'bootstrap' intervals only")
    return _result("snips", value, low, high, standard_error(influence), confidence, interval, weights)


def doubly_robust(
    feedback: LoggedFeedback,
    action_dist: npt.ArrayLike,
    predicted_rewards: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    interval: Interval | str = "normal",
    reward_range: tuple[float, float] | None = None,
    min_propensity: float | None = None,
    rng: np.random.Generator | None = None,
) -> OffPolicyEstimate:
    """DR: the direct method plus the weighted residuals; unbiased if the propensities are right, whatever the model.

    Args:
        feedback: The log.
        action_dist: π(a | x_t), shape [n, K] (or [n, K, 1]).
        predicted_rewards: q(x_t, a), shape [n, K], from other data (cross-fitted), otherwise the interval is too short.
        confidence: Coverage of the interval.
        interval: "normal", "bernstein" (any n; needs `reward_range` and `min_propensity`) or "bootstrap" (needs `rng`).
        reward_range: Least and largest possible reward; predictions must lie in it.
        min_propensity: A lower bound of the logging policy's probabilities, known beforehand.
        rng: Source of randomness, for "bootstrap".

    Returns:
        The estimate.

    Raises:
        ValueError: If a shape or option is wrong or a row of π is not a distribution.

    Reference:
        Dudík, Langford and Li, "Doubly Robust Policy Evaluation and Learning", ICML 2011.
    """
    policy = _policy_for(feedback, action_dist)
    weights, model = _weights(feedback, policy), _model(predicted_rewards, policy.shape)
    logged = model[np.arange(feedback.n), feedback.actions]
    terms = np.sum(policy * model, axis=1) + weights * (feedback.rewards - logged)
    bounds = None
    if interval == "bernstein":
        top, (least, most) = _largest_weight(feedback, min_propensity), _range(reward_range, feedback.rewards)
        if model.min() < least or model.max() > most:
            raise ValueError("predicted_rewards leave reward_range; clip them for a 'bernstein' interval")
        bounds = (least - top * (most - least), most + top * (most - least))
    return _mean_of(terms, weights, "dr", confidence, interval, bounds, rng)


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """(Σw)² / Σw², between 1 and n; 0 if every weight is zero.

    Args:
        weights: Importance weights, shape [n], not negative.

    Returns:
        The effective number of rows.
    """
    weights = np.asarray(weights, dtype=np.float64)
    square = float(weights @ weights)
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0


def _mean_of(
    terms: np.ndarray,
    weights: np.ndarray,
    name: str,
    confidence: float,
    interval: str,
    bounds: tuple[float, float] | None,
    rng: np.random.Generator | None,
) -> OffPolicyEstimate:
    low, high = mean_interval(terms, confidence, interval, bounds, rng)
    return _result(name, float(terms.mean()), low, high, standard_error(terms), confidence, interval, weights)


def _result(
    name: str,
    value: float,
    low: float,
    high: float,
    stderr: float,
    confidence: float,
    kind: str,
    weights: np.ndarray,
) -> OffPolicyEstimate:
    ess, top = effective_sample_size(weights), float(weights.max())
    return OffPolicyEstimate(name, value, low, high, stderr, confidence, kind, len(weights), ess, top)


def _distribution(action_dist: npt.ArrayLike) -> Float[np.ndarray, "n K"]:
    policy = np.asarray(action_dist, dtype=np.float64)
    if policy.ndim == 3 and policy.shape[2] == 1:
        policy = policy[:, :, 0]
    if policy.ndim != 2 or 0 in policy.shape:
        raise ValueError(f"action_dist has shape {policy.shape}; give [n, K] or [n, K, 1]")
    if not (np.isfinite(policy).all() and policy.min() >= 0 and np.allclose(policy.sum(axis=1), 1.0, atol=1e-6)):
        raise ValueError("a row of action_dist is not a distribution; its entries must be >= 0 and sum to 1")
    return policy


def _policy_for(feedback: LoggedFeedback, action_dist: npt.ArrayLike) -> Float[np.ndarray, "n K"]:
    policy = _distribution(action_dist)
    if len(policy) != feedback.n:
        raise ValueError(f"action_dist has {len(policy)} rows, the log {feedback.n}")
    if feedback.actions.max() >= policy.shape[1]:
        raise ValueError(f"a logged action is outside 0..{policy.shape[1] - 1}, the columns of action_dist")
    return policy


def _model(predicted_rewards: npt.ArrayLike, shape: tuple[int, ...]) -> Float[np.ndarray, "n K"]:
    if hasattr(predicted_rewards, "task_var"):  # ActionScores, which this module does not know
        raise TypeError("predicted_rewards holds means and variances; give its means, .mean")
    model = as_real(predicted_rewards, "predicted_rewards")
    if model.shape != shape:
        raise ValueError(f"predicted_rewards has shape {model.shape}; action_dist has {shape}, they must agree")
    if not np.isfinite(model).all():
        raise ValueError("predicted_rewards holds a number that is not finite")
    return model


def _weights(feedback: LoggedFeedback, policy: np.ndarray) -> Float[np.ndarray, " n"]:
    return policy[np.arange(feedback.n), feedback.actions] / feedback.propensities


def _largest_weight(feedback: LoggedFeedback, min_propensity: float | None) -> float:
    if min_propensity is None or not 0 < min_propensity <= feedback.propensities.min():
        least = feedback.propensities.min()
        raise ValueError(
            f"min_propensity is {min_propensity}; 'bernstein' needs a bound in (0, {least}], known beforehand"
        )
    return 1.0 / min_propensity


def _range(reward_range: tuple[float, float] | None, rewards: np.ndarray) -> tuple[float, float]:
    if reward_range is None or not reward_range[0] <= rewards.min() <= rewards.max() <= reward_range[1]:
        raise ValueError(f"reward_range is {reward_range}; 'bernstein' needs bounds that all rewards respect")
    return reward_range
