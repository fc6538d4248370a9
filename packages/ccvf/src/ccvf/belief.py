r"""A belief over confidences, moved by how badly the values at each of them predicted what happened.

After each transition the values at confidence delta were off by the Bellman residual

    c(delta) = Q(s, a, delta) - r - gamma max_a' Q(s', a', delta),

all confidences scored on the same transition, so that what is noise to all cancels. The paper's belief is
b(delta) <- b(delta) exp(-beta c(delta)^2), normalised: `PAPER`. Squares of single residuals have two weaknesses. An
honest lower bound pays for its penalty at every step, though it is meant to; and a policy that circles for ever at
value V is off by (1 - gamma) V a step only, which many small penalties outweigh. The default `Evidence` therefore
squares residuals summed with a fading memory, in which a steady error grows and noise does not, and counts values that
turned out too low for less than values that turned out too high. Temperature is relative: a running scale of the
residuals divides them, so that multiplying all rewards changes nothing.
"""

from dataclasses import dataclass, replace
from typing import SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int

from ccvf.confidence import check_deltas, conservatism

__all__ = ["PAPER", "DeltaBelief", "Evidence", "bellman_residuals", "reset", "restrict", "uniform", "update"]

_LEAST_SHARE = 1e-3  # of the mean misfit, below which the median is no scale: more than half the confidences are exact


@final
@dataclass(frozen=True)
class Evidence:
    r"""How residuals move a belief.

    A transition with summed residual $z_t = c_t + \text{trace}\, z_{t-1}$ takes
    $\beta\, w\, (1 - \text{trace}^2)\, z_t^2 / \text{scale}^2$ off the log weight, with w = 1 where values were too
    high (z > 0) and w = `under` where they were too low. White noise has the same size whatever the trace.

    Args:
        beta: Weight of the evidence; 1/2 is a Gaussian likelihood whose variance is the running scale.
        trace: Memory of the summed residuals within an episode, in [0, 1); 0 squares each residual alone.
        under: Weight of values that turned out too low, in [0, 1]; 1 treats both sides alike.
        forget: Share of the evidence that is kept at every transition, in (0, 1]; below 1 old evidence fades and the
            belief falls back towards its prior.
        mix: Share of the prior that is mixed in after every transition, in [0, 1): no weight falls far below it.
        scaled: Divide by the running scale (mean over transitions of the median over confidences of the squares);
            without it beta has units of 1 / return^2.

    Raises:
        ValueError: If a number is out of its range.
    """

    beta: SupportsFloat = 0.5
    trace: SupportsFloat = 0.9
    under: SupportsFloat = 0.25
    forget: SupportsFloat = 1.0
    mix: SupportsFloat = 0.0
    scaled: bool = True

    def __post_init__(self) -> None:
        checks = (
            ("beta", 0 <= float(self.beta) < np.inf, "at least 0 and finite"),
            ("trace", 0 <= float(self.trace) < 1, "in [0, 1)"),
            ("under", 0 <= float(self.under) <= 1, "in [0, 1]"),
            ("forget", 0 < float(self.forget) <= 1, "in (0, 1]"),
            ("mix", 0 <= float(self.mix) < 1, "in [0, 1)"),
        )
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: give a number {allowed}")


PAPER = Evidence(trace=0.0, under=1.0)
"""Squares of single residuals, both sides alike."""


@final
@dataclass(frozen=True, eq=False)
class DeltaBelief:
    """A belief over a grid of confidences for each of several environments, or one that all of them share.

    Args:
        deltas: The grid, in (0, 1].
        log_prior: Log weights before any evidence, normalised.
        log_weights: Normalised log weights; one row when shared.
        traces: Residuals summed with fading memory in the running episodes, in units of return.
        scale_sum: Sum of the squares that make the scale, in units of return squared.
        scale_count: How many transitions it is of.
    """

    deltas: Float[np.ndarray, " confidences"]
    log_prior: Float[np.ndarray, " confidences"]
    log_weights: Float[np.ndarray, "rows confidences"]
    traces: Float[np.ndarray, "envs confidences"]
    scale_sum: Float[np.ndarray, " rows"]
    scale_count: Float[np.ndarray, " rows"]

    @property
    def weights(self) -> Float[np.ndarray, "rows confidences"]:
        """Probabilities of the confidences."""
        return np.exp(self.log_weights)

    @property
    def mean_u(self) -> Float[np.ndarray, " rows"]:
        r"""Mean degree of conservatism, $E[\sqrt{\log(1/\delta)}]$."""
        return self.weights @ conservatism(self.deltas)

    @property
    def mode(self) -> Float[np.ndarray, " rows"]:
        """The likeliest confidence; the first of equals."""
        return self.deltas[self.log_weights.argmax(-1)]

    @property
    def entropy(self) -> Float[np.ndarray, " rows"]:
        """Entropy in nats: log(confidences) knows nothing, 0 is sure."""
        log_weights = np.where(np.isfinite(self.log_weights), self.log_weights, 0.0)
        return np.maximum(-(self.weights * log_weights).sum(-1), 0.0)

    @property
    def effective_number(self) -> Float[np.ndarray, " rows"]:
        """Number of equally likely confidences of the same entropy."""
        return np.exp(self.entropy)

    @property
    def scale(self) -> Float[np.ndarray, " rows"]:
        """Running scale of the residuals, in units of return; 0 before the first transition."""
        return np.sqrt(self.scale_sum / np.maximum(self.scale_count, 1e-300))

    def sample(self, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        """Places on the grid, drawn from the belief.

        Args:
            rng: Source of randomness.
        """
        return _place(self.weights, rng.random(len(self.log_weights)))

    def quantile(self, q: SupportsFloat) -> Int[np.ndarray, " rows"]:
        """Places on the grid below which a share q of the belief lies: small q acts conservatively.

        Args:
            q: The share, in [0, 1].

        Raises:
            ValueError: If q is out of range.
        """
        if not 0 <= float(q) <= 1:
            raise ValueError(f"quantile {q} is out of range: give a number in [0, 1]")
        order = np.argsort(self.deltas, kind="stable")
        share = np.full(len(self.log_weights), float(q) * (1 - 1e-12))
        return order[_place(self.weights[:, order], share)]

    def nearest_mean(self) -> Int[np.ndarray, " rows"]:
        """Places on the grid nearest, in u, to the mean."""
        return np.abs(conservatism(self.deltas) - self.mean_u[:, None]).argmin(-1)


def uniform(
    deltas: Float[np.ndarray, " confidences"],
    envs: SupportsInt = 1,
    *,
    shared: bool = False,
    prior: Float[np.ndarray, " confidences"] | None = None,
) -> DeltaBelief:
    """A belief before any evidence.

    Args:
        deltas: Grid of confidences.
        envs: Environments that step together.
        shared: One belief for all of them.
        prior: Probabilities of the confidences up to a factor; None: equal.

    Returns:
        The belief.

    Raises:
        ValueError: If there is no environment, or the prior is not positive and finite, one for each confidence.

    Example:
        >>> belief = uniform(np.array([0.01, 1.0]), envs=3)
        >>> belief.weights.tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    grid, count = check_deltas(deltas), int(envs)
    given = np.ones(len(grid)) if prior is None else np.asarray(prior, dtype=np.float64)
    if count < 1:
        raise ValueError(f"envs={count}: give at least one environment")
    if given.shape != grid.shape or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"prior={given}: give a positive finite number for each of {len(grid)} confidences")
    log_prior, rows = np.log(given / given.sum()), 1 if shared else count
    start = np.broadcast_to(log_prior, (rows, len(grid))).copy()
    return DeltaBelief(grid, log_prior, start, np.zeros((count, len(grid))), np.zeros(rows), np.zeros(rows))


def bellman_residuals(
    q: Float[np.ndarray, "envs confidences actions"],
    actions: Int[np.ndarray, " envs"],
    rewards: Float[np.ndarray, " envs"],
    next_q: Float[np.ndarray, "envs confidences actions"],
    terminated: Bool[np.ndarray, " envs"],
    gamma: SupportsFloat,
) -> Float[np.ndarray, "envs confidences"]:
    r"""How far each confidence was off: $Q(s, a, \delta) - r - \gamma \max_{a'} Q(s', a', \delta)$.

    A terminated transition has no future; a truncated one has, so give what followed it, not the next episode.

    Args:
        q: Values before the action.
        actions: Actions taken.
        rewards: Their rewards.
        next_q: Values of what followed.
        terminated: Whether the environment ended the episode.
        gamma: Discount of a step.

    Returns:
        Residuals in units of return: above 0 where the value was too high.

    Example:
        >>> q, after = np.array([[[0.0, 1.0], [2.0, 3.0]]]), np.array([[[1.0, 0.0], [4.0, 2.0]]])
        >>> bellman_residuals(q, np.array([1]), np.array([0.5]), after, np.array([False]), 0.5)
        array([[0. , 0.5]])
        >>> bellman_residuals(q, np.array([1]), np.array([0.5]), after, np.array([True]), 0.5)
        array([[0.5, 2.5]])
    """
    taken = q[np.arange(len(q)), :, actions].astype(np.float64)
    future = np.where(terminated[:, None], 0.0, next_q.max(-1).astype(np.float64))
    return taken - rewards.astype(np.float64)[:, None] - float(gamma) * future


def update(
    belief: DeltaBelief,
    residuals: Float[np.ndarray, "envs confidences"],
    evidence: Evidence = PAPER,
    *,
    ended: Bool[np.ndarray, " envs"] | None = None,
    silent: Bool[np.ndarray, "envs confidences"] | None = None,
) -> DeltaBelief:
    """The belief after one transition of each environment.

    Args:
        belief: The belief before.
        residuals: What `bellman_residuals` found, in units of return.
        evidence: How they count.
        ended: Environments whose episode ended with this transition, for whatever reason; None: none.
        silent: Confidences whose values said nothing about this transition: they get no better marks for it than the
            others do on average.

    Returns:
        The belief after.

    Raises:
        ValueError: If a residual is not finite.

    Example:
        >>> belief = update(uniform(np.array([0.01, 1.0])), np.array([[1.0, 0.0]]), Evidence(trace=0, scaled=False))
        >>> bool(np.isclose(belief.weights[0, 1] / belief.weights[0, 0], np.exp(0.5)))
        True
    """
    if not np.isfinite(residuals).all():
        raise ValueError("residuals hold NaN or infinite numbers: check the values and the rewards")
    trace = float(evidence.trace)
    traces = trace * belief.traces + residuals
    misfit = (1 - trace**2) * traces**2 * np.where(traces < 0, float(evidence.under), 1.0)
    if silent is not None:
        misfit = _no_reward_for_silence(misfit, silent, belief.log_weights)
    if ended is not None:
        traces = np.where(ended[:, None], 0.0, traces)
    rows, envs = belief.log_weights.shape[0], len(misfit)
    share = np.maximum(np.median(misfit, axis=-1), _LEAST_SHARE * misfit.mean(-1))
    pooled, level, count = (misfit, share, 1) if rows == envs else (misfit.sum(0)[None], share.sum()[None], envs)
    forget = float(evidence.forget)
    scale_sum, scale_count = forget * belief.scale_sum + level, forget * belief.scale_count + count
    if evidence.scaled:
        scale = (scale_sum / scale_count)[:, None]
        pooled = np.divide(pooled, scale, out=np.zeros_like(pooled), where=scale > 0)
    log_weights = belief.log_prior + forget * (belief.log_weights - belief.log_prior) - float(evidence.beta) * pooled
    log_weights = _normalised(log_weights)
    if float(evidence.mix):
        mix = float(evidence.mix)
        log_weights = np.logaddexp(np.log1p(-mix) + log_weights, np.log(mix) + belief.log_prior)
    return replace(belief, log_weights=log_weights, traces=traces, scale_sum=scale_sum, scale_count=scale_count)


def reset(belief: DeltaBelief, envs: Bool[np.ndarray, " envs"] | None = None) -> DeltaBelief:
    """The belief without its evidence; what is known of the scale of the residuals stays.

    Args:
        belief: The belief; a shared one is reset for all.
        envs: Which environments; None: all.

    Returns:
        The belief with those rows back at the prior and their traces at 0.
    """
    chosen = np.ones(len(belief.traces), dtype=bool) if envs is None else envs
    rows = chosen if len(belief.log_weights) == len(belief.traces) else np.ones(1, dtype=bool)
    log_weights = np.where(rows[:, None], belief.log_prior, belief.log_weights)
    return replace(belief, log_weights=log_weights, traces=np.where(chosen[:, None], 0.0, belief.traces))


def restrict(belief: DeltaBelief, allowed: Bool[np.ndarray, "envs confidences"]) -> DeltaBelief:
    """The belief given that only some confidences come into question; one row for each environment.

    Args:
        belief: The belief.
        allowed: Which confidences; an environment that allows none keeps all.

    Returns:
        The conditional belief, to act on; updates go on from the other.
    """
    kept = allowed | ~allowed.any(-1, keepdims=True)
    scale_sum, scale_count = (np.broadcast_to(x, len(kept)) for x in (belief.scale_sum, belief.scale_count))
    log_weights = _normalised(np.where(kept, belief.log_weights, -np.inf))
    return replace(belief, log_weights=log_weights, scale_sum=scale_sum, scale_count=scale_count)


def _no_reward_for_silence(misfit: np.ndarray, silent: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Misfits in which a silent confidence does no better than those that speak do on average over the belief."""
    speak = ~silent
    spoken = np.where(speak, log_weights, -np.inf)
    top = spoken.max(-1, keepdims=True)
    share = np.exp(np.where(speak, spoken - np.where(np.isfinite(top), top, 0.0), -np.inf))
    average = (share * misfit).sum(-1, keepdims=True) / np.maximum(share.sum(-1, keepdims=True), 1e-300)
    return np.where(silent, np.maximum(misfit, average), misfit)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    shifted = log_weights - log_weights.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _place(weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """First place at which the cumulative weight exceeds a share; rounding never leaves the support."""
    cumulative = weights.cumsum(-1)
    return (cumulative > share[:, None] * cumulative[:, -1:]).argmax(-1)
