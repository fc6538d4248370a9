"""A policy that finds its own conservatism while it acts: a belief over confidences, moved by every transition."""

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, SupportsFloat, SupportsInt, final, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from ccvf import attractor
from ccvf.attractor import DegenerateValuesWarning, Spread
from ccvf.belief import DeltaBelief, Evidence, bellman_residuals, reset, restrict, uniform, update
from ccvf.confidence import check_deltas, conservatism, u_grid
from ccvf.policies import Policy
from ccvf.values import ConfidenceValues

__all__ = ["Act", "AdaptivePolicy", "BeliefHistory", "Diagnostics", "Persist", "Resample"]

Act = Literal["mean", "sample", "argmax", "quantile"]
Persist = Literal["env", "episode", "shared"]
Resample = Literal["step", "episode"]

_PATIENCE = 100  # values seen before constant ones are called degenerate


@final
@dataclass(frozen=True, eq=False)
class Diagnostics:
    """What a belief looks like now.

    Args:
        mean_u: Mean degree of conservatism; one number for each belief, one in all when shared.
        mode: Likeliest confidence.
        entropy: Entropy in nats.
        effective_number: Number of equally likely confidences of that entropy.
        scale: Running scale of the residuals, in units of return.
        degenerate: Confidences whose values do not vary over what was visited.
        chosen: Confidence last acted on in each environment.
        transitions: Transitions seen, over all environments.
    """

    mean_u: Float[np.ndarray, " rows"]
    mode: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    effective_number: Float[np.ndarray, " rows"]
    scale: Float[np.ndarray, " rows"]
    degenerate: Bool[np.ndarray, "rows confidences"]
    chosen: Float[np.ndarray, " envs"]
    transitions: int


@final
@dataclass(frozen=True, eq=False)
class BeliefHistory:
    """The belief over the last steps, averaged over environments.

    Args:
        deltas: The grid.
        weights: Mean belief after each step.
        mean_u: Mean degree of conservatism after each step.
        entropy: Mean entropy after each step, in nats.
        chosen_u: Mean degree of conservatism acted on at each step.
        degenerate: Share of (environment, confidence) pairs set aside as degenerate.
        first: Number of the first step kept, from 0.
    """

    deltas: Float[np.ndarray, " confidences"]
    weights: Float[np.ndarray, "steps confidences"]
    mean_u: Float[np.ndarray, " steps"]
    entropy: Float[np.ndarray, " steps"]
    chosen_u: Float[np.ndarray, " steps"]
    degenerate: Float[np.ndarray, " steps"]
    first: int


@final
class AdaptivePolicy(Policy):
    """Greedy on the values at a confidence taken from a belief, which every transition moves.

    Args:
        values: The learnt values.
        gamma: Discount of one step, as in learning.
        deltas: Grid of confidences; None: 21 from 1e-4 to 1, evenly spaced in u.
        evidence: How residuals move the belief; the default sums them and forgives pessimism, `PAPER` squares each.
        act: Confidence acted on: "mean" (the grid point nearest to the mean u), "sample", "argmax" or "quantile".
        quantile: Share of the belief below the confidence of act="quantile"; small is conservative.
        persist: "env" keeps one belief for each environment through its episodes, "episode" starts anew with every
            episode, "shared" keeps one belief that all environments feed.
        resample: How long a sampled confidence is acted on: one "step" or one "episode".
        guard: Set confidences aside that say nothing (see `ccvf.attractor`).
        generator: Source of samples; needed for act="sample".
        prior: Probabilities of the confidences before any evidence, up to a factor; None: equal.
        history: Steps of history to keep.

    Raises:
        ValueError: If a setting is unknown or out of range, or samples are asked for without a generator.

    Example:
        >>> class Two:
        ...     n_actions = 2
        ...     def q_values(self, observations, deltas):
        ...         return np.tile(np.array([1.0, 0.0])[None, None], (len(observations), len(deltas), 1))
        >>> policy = AdaptivePolicy(Two(), gamma=0.9)
        >>> policy.act(np.zeros(3)).tolist()
        [0, 0, 0]
        >>> policy.observe(np.ones(3), np.zeros(3), np.ones(3, bool), np.zeros(3, bool))
        >>> policy.diagnostics.transitions
        3

    Reference:
        Hong, Kumar, Levine (2023), online adaptation of the confidence; `evidence` and `guard` are this package's own.
    """

    def __init__(
        self,
        values: ConfidenceValues,
        *,
        gamma: SupportsFloat,
        deltas: Iterable[SupportsFloat] | None = None,
        evidence: Evidence | None = None,
        act: Act | str = "mean",
        quantile: SupportsFloat = 0.5,
        persist: Persist | str = "env",
        resample: Resample | str = "step",
        guard: bool = True,
        generator: np.random.Generator | None = None,
        prior: Float[np.ndarray, " confidences"] | None = None,
        history: SupportsInt = 10_000,
    ) -> None:
        for name, given, kind in (("act", act, Act), ("persist", persist, Persist), ("resample", resample, Resample)):
            if given not in get_args(kind):
                raise ValueError(f"{name}={given!r} is unknown: choose one of {', '.join(get_args(kind))}")
        if not 0 <= float(gamma) <= 1:
            raise ValueError(f"gamma={gamma} is out of range: give the discount of learning, in [0, 1]")
        if not 0 <= float(quantile) <= 1:
            raise ValueError(f"quantile={quantile} is out of range: give a share in [0, 1]")
        if act == "sample" and generator is None:
            raise ValueError("act='sample' draws confidences: give generator=numpy.random.default_rng(seed)")
        self.values, self.gamma, self.evidence = values, float(gamma), evidence or Evidence()
        self.deltas = u_grid() if deltas is None else check_deltas(deltas)
        self.how, self.quantile, self.persist, self.resample = act, float(quantile), persist, resample
        self.guard, self.generator, self.prior = guard, generator, prior
        self.belief: DeltaBelief = uniform(self.deltas, 1, prior=prior)
        self._spread: Spread = attractor.no_spread(1, len(self.deltas))
        self._envs = 0
        self._transitions = 0
        self._warned = False
        self._held = np.zeros(0, dtype=np.int64)
        self._chosen = np.zeros(0, dtype=np.int64)
        self._actions: np.ndarray | None = None
        self._q: np.ndarray | None = None
        self._cached: tuple[np.ndarray, np.ndarray] | None = None
        self._log: deque[tuple[np.ndarray, float, float, float, float]] = deque(maxlen=int(history))
        self._steps = 0

    def act(self, observations: np.ndarray) -> Int[np.ndarray, " envs"]:
        """The best action at the confidence that the belief gives; the first of equals."""
        observations = np.asarray(observations)
        if observations.ndim == 0:
            raise ValueError("act takes a batch of observations: for one environment an array of length one")
        if self._envs != len(observations):
            self._evaluate(observations[:1])  # refused before anything is changed, if it cannot be valued
            self._begin(len(observations))
        self._q = q = self._values_of(observations)
        self._chosen = chosen = self._choose(q)
        self._actions = q[np.arange(len(q)), chosen].argmax(-1)
        return self._actions

    def observe(
        self,
        rewards: Float[np.ndarray, " envs"],
        next_observations: np.ndarray,
        terminated: Bool[np.ndarray, " envs"],
        truncated: Bool[np.ndarray, " envs"],
    ) -> None:
        """Move the belief by what the last actions led to."""
        if self._q is None or self._actions is None:
            raise ValueError("observe() came before act(): call act, step the environments, then observe")
        q, actions, next_observations = self._q, self._actions, np.asarray(next_observations)
        next_q = self._evaluate(next_observations)
        residuals = bellman_residuals(q, actions, np.asarray(rewards), next_q, terminated, self.gamma)
        quiet = None
        if self.guard:
            self._spread = attractor.watch(self._spread, q, actions)
            quiet = attractor.silent(self._spread, q, actions, next_q, terminated)
            self._warn()
        self.belief = update(self.belief, residuals, self.evidence, ended=terminated | truncated, silent=quiet)
        self._transitions += len(actions)
        # Copied: steppers may write the next observations into the same memory.
        self._cached, self._q, self._actions = (next_observations.copy(), next_q), None, None
        self._record()

    def reset(self, envs: Bool[np.ndarray, " envs"] | None = None) -> None:
        """Before episodes start: let go of held confidences and residuals, with persist="episode" of the belief too."""
        if not self._envs:
            return
        chosen = np.ones(self._envs, dtype=bool) if envs is None else np.asarray(envs, dtype=bool)
        if chosen.shape != (self._envs,):
            raise ValueError(f"reset of {chosen.shape} environments: this policy acts in {self._envs}")
        self._held = np.where(chosen, -1, self._held)
        if self.persist == "episode":
            self.belief = reset(self.belief, chosen)
        else:  # an episode may be given up before it ended
            self.belief = replace(self.belief, traces=np.where(chosen[:, None], 0.0, self.belief.traces))

    def forget(self) -> None:
        """Start anew: no evidence, no history, any number of environments."""
        self._envs = 0
        self.belief = uniform(self.deltas, 1, prior=self.prior)
        self._spread = attractor.no_spread(1, len(self.deltas))
        self._actions = self._q = self._cached = None
        self._transitions = self._steps = 0
        self._log.clear()

    @property
    def diagnostics(self) -> Diagnostics:
        """What the belief looks like now."""
        b = self.belief
        return Diagnostics(b.mean_u, b.mode, b.entropy, b.effective_number, b.scale, self._degenerate(),
                           self.deltas[self._chosen], self._transitions)  # fmt: skip

    @property
    def history(self) -> BeliefHistory:
        """The belief over the last steps."""
        rows = list(self._log)
        weights = np.array([row[0] for row in rows], dtype=np.float64).reshape(len(rows), len(self.deltas))
        rest = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), 4)
        mean_u, entropy, chosen, degenerate = np.ascontiguousarray(rest.T)
        return BeliefHistory(self.deltas, weights, mean_u, entropy, chosen, degenerate, self._steps - len(rows))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that going on needs but the history, taken between `observe` and `act`.

        Returns:
            Arrays by name, and JSON values.
        """
        arrays = {f"belief.{f.name}": getattr(self.belief, f.name) for f in fields(self.belief)}
        arrays |= {f"spread.{f.name}": getattr(self._spread, f.name) for f in fields(self._spread)}
        arrays |= {"held": self._held, "chosen": self._chosen}
        generator = None if self.generator is None else self.generator.bit_generator.state
        extra = {"envs": self._envs, "transitions": self._transitions, "steps": self._steps, "warned": self._warned,
                 "persist": self.persist, "generator": generator}  # fmt: skip
        return {name: array.copy() for name, array in arrays.items()}, extra

    def restore(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        """Take over a `state`.

        Args:
            arrays: Arrays by name.
            extra: JSON values.

        Raises:
            ValueError: If the state is of another grid or another way to persist.
        """
        if extra["persist"] != self.persist or not np.array_equal(arrays["belief.deltas"], self.deltas):
            raise ValueError(
                f"the state is of persist={extra['persist']!r} and {len(arrays['belief.deltas'])} confidences, this "
                f"policy of persist={self.persist!r} and {len(self.deltas)} of its own: make it with the same settings"
            )
        self.belief = DeltaBelief(**{f.name: np.array(arrays[f"belief.{f.name}"]) for f in fields(DeltaBelief)})
        self._spread = Spread(**{f.name: np.array(arrays[f"spread.{f.name}"]) for f in fields(Spread)})
        self._held, self._chosen = np.array(arrays["held"]), np.array(arrays["chosen"])
        self._envs, self._transitions = int(extra["envs"]), int(extra["transitions"])
        self._steps, self._warned = int(extra["steps"]), bool(extra["warned"])
        if self.generator is not None and extra["generator"] is not None:
            self.generator.bit_generator.state = extra["generator"]
        self._actions = self._q = self._cached = None
        self._log.clear()

    def _begin(self, envs: int) -> None:
        if self._envs:
            raise ValueError(f"{envs} observations, but this policy acts in {self._envs} environments: "
                             "call forget() to use it elsewhere")  # fmt: skip
        shared = self.persist == "shared"
        self._envs = envs
        self.belief = uniform(self.deltas, envs, shared=shared, prior=self.prior)
        self._spread = attractor.no_spread(1 if shared else envs, len(self.deltas))
        self._held = np.full(envs, -1)

    def _evaluate(self, observations: np.ndarray) -> np.ndarray:
        q = np.asarray(self.values.q_values(observations, self.deltas))
        wanted = (len(observations), len(self.deltas), self.values.n_actions)
        if q.shape != wanted:
            raise ValueError(
                f"q_values gave values of shape {q.shape}; {wanted}, (batch, confidences, actions), is wanted"
            )
        if not np.isfinite(q).all():
            raise ValueError("values hold NaN or infinite numbers: was the training stable?")
        return q

    def _values_of(self, observations: np.ndarray) -> np.ndarray:
        """Values to act on; only where an episode started are they not those that the last residual asked for."""
        if self._cached is None:
            return self._evaluate(observations)
        known, q = self._cached
        stale = (observations != known).reshape(len(known), -1).any(-1)
        if stale.all():
            return self._evaluate(observations)
        if stale.any():
            q = q.copy()
            q[stale] = self._evaluate(observations[stale])
        return q

    def _choose(self, q: np.ndarray) -> np.ndarray:
        belief = self.belief
        if self.guard:
            speak = attractor.informative(self._spread)
            both = speak & ~attractor.undecided(self._spread, q)
            belief = restrict(belief, np.where(both.any(-1, keepdims=True), both, speak))
        elif len(belief.log_weights) != len(q):
            belief = restrict(belief, np.ones(q.shape[:2], dtype=bool))
        if self.how == "mean":
            return belief.nearest_mean()
        if self.how == "argmax":
            return belief.log_weights.argmax(-1)
        if self.how == "quantile":
            return belief.quantile(self.quantile)
        assert self.generator is not None
        drawn = belief.sample(self.generator)
        if self.resample == "step":
            return drawn
        self._held = np.where(self._held < 0, drawn, self._held)
        return self._held

    def _degenerate(self) -> np.ndarray:
        return ~attractor.informative(self._spread) & (self._spread.count >= _PATIENCE)[:, None]

    def _warn(self) -> None:
        if self._warned:
            return
        found = self._degenerate().any(0)
        if found.any():
            self._warned = True
            warnings.warn(
                f"values at {int(found.sum())} of {found.size} confidences (the least {self.deltas[found].min():.2g}) "
                "do not vary over what was visited, and are not acted on: were they clipped from below?",
                DegenerateValuesWarning,
                stacklevel=3,
            )

    def _record(self) -> None:
        b, u = self.belief, conservatism(self.deltas)
        row = (b.weights.mean(0).astype(np.float32), float(b.mean_u.mean()), float(b.entropy.mean()),
               float(u[self._chosen].mean()), float(self._degenerate().mean()))  # fmt: skip
        self._log.append(row)
        self._steps += 1
