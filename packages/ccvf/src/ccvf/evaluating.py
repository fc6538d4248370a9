"""Playing whole episodes: exactly as many as asked for, chosen before anybody knows how long they last.

Environments that step together finish short episodes first. To stop at the n-th finished one would count short ones too
often; here every environment has its share of the episodes from the start, and all of them are played to their end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int

from ccvf.adaptive import AdaptivePolicy, BeliefHistory
from ccvf.environments import Step, Stepper
from ccvf.policies import Policy
from ccvf.progress import bar
from common_core.stats import Estimate, bootstrap_mean

__all__ = ["Evaluation", "PlayedStep", "evaluate", "play"]

_PATIENCE = 10  # time limits that an environment may go on for beyond a limit that it does not know of


@final
@dataclass(frozen=True, eq=False)
class PlayedStep:
    """One step of all environments, and which of them count.

    Args:
        observations: What was acted on.
        actions: What was done.
        step: What it led to.
        episode: Number of the running episode of each environment, 0 to episodes - 1; -1 where none counts.
        age: Step within it, from 0.
        ended: Whether the episode that counts ends here.
        cut: Whether it does so by a time limit.
    """

    observations: np.ndarray
    actions: Int[np.ndarray, " envs"]
    step: Step
    episode: Int[np.ndarray, " envs"]
    age: Int[np.ndarray, " envs"]
    ended: Bool[np.ndarray, " envs"]
    cut: Bool[np.ndarray, " envs"]


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Played episodes; the first of every environment come first, then the second ones, and so on.

    Args:
        environment: Name of the environments.
        returns: Sums of rewards.
        discounted: Discounted sums of rewards.
        lengths: Steps.
        truncated: Whether a time limit cut the episode.
        envs: Which environment played it.
        gamma: Discount of a step.
        seed: Seed of the environments.
        belief: How the belief moved, of an `AdaptivePolicy`; its episodes in one environment are not independent.
    """

    environment: str
    returns: Float[np.ndarray, " episodes"]
    discounted: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    truncated: Bool[np.ndarray, " episodes"]
    envs: Int[np.ndarray, " episodes"]
    gamma: float
    seed: int
    belief: BeliefHistory | None = None

    def __len__(self) -> int:
        return len(self.returns)

    def mean(self, rng: np.random.Generator, *, discounted: bool = False, confidence: SupportsFloat = 0.95) -> Estimate:
        """Mean return with a bootstrap interval.

        Where a belief was carried from episode to episode and several environments played, environments are resampled
        instead of episodes.

        Args:
            rng: Source of the resamples.
            discounted: Of the discounted returns.
            confidence: Nominal coverage.
        """
        found = self.discounted if discounted else self.returns
        groups = np.unique(self.envs)
        if self.belief is None or len(groups) < 2 or len(found) % len(groups):
            return bootstrap_mean(found, rng=rng, confidence=float(confidence))
        means = [float(found[self.envs == k].mean()) for k in groups]
        return bootstrap_mean(means, rng=rng, confidence=float(confidence))

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the belief's history."""
        columns = ("returns", "discounted", "lengths", "truncated", "envs")
        plain = {"environment": self.environment, "gamma": self.gamma, "seed": self.seed}
        return plain | {name: getattr(self, name).tolist() for name in columns}


def play(
    policy: Policy, stepper: Stepper, episodes: SupportsInt, *, seed: SupportsInt, max_steps: SupportsInt | None = None
) -> Iterator[PlayedStep]:
    """Play episodes, step by step.

    Args:
        policy: Who acts; it is told of every transition, of those too that count for no episode because the others of
            its environment are played.
        stepper: The environments; environment k plays the episodes k, k + n, k + 2 n, ...
        episodes: How many.
        seed: Seed of the environments.
        max_steps: Steps after which an episode is counted as cut.

    Yields:
        Every step.

    Raises:
        ValueError: If a number is below 1, the policy returns other than one action for each environment, or an
            environment goes on for long beyond `max_steps`.
    """
    count, limit = int(episodes), None if max_steps is None else int(max_steps)
    if count < 1 or (limit is not None and limit < 1):
        raise ValueError(f"{count} episodes of at most {limit} steps: both must be at least 1")
    episode, age = np.arange(stepper.n), np.zeros(stepper.n, dtype=np.int64)
    closed = np.zeros(stepper.n, dtype=bool)  # counted as cut, though the environment goes on
    observations = stepper.reset(seed)
    policy.reset()
    while True:
        live = (episode < count) & ~closed
        if not live.any() and not (closed & (episode + stepper.n < count)).any():
            return
        actions = _checked(policy.act(observations), stepper)
        step = stepper.step(actions)
        policy.observe(step.rewards, step.next_observations, step.terminated, step.truncated)
        late = np.zeros_like(live) if limit is None else live & (age + 1 >= limit) & ~step.ended
        yield PlayedStep(observations, actions, step, np.where(live, episode, -1), age,
                         live & (step.ended | late), live & (step.truncated | late))  # fmt: skip
        policy.reset(step.ended)
        closed = (closed | late) & ~step.ended
        episode, age = episode + stepper.n * step.ended, np.where(step.ended, 0, age + 1)
        if limit is not None and (age[closed] > _PATIENCE * limit).any():
            raise ValueError(f"{stepper.name} goes on {_PATIENCE} times beyond max_steps={limit}: it has no time limit "
                             "of its own; make it with one")  # fmt: skip
        observations = step.observations


def evaluate(
    policy: Policy,
    stepper: Stepper,
    episodes: SupportsInt,
    *,
    seed: SupportsInt,
    gamma: SupportsFloat = 1.0,
    max_steps: SupportsInt | None = None,
    progress: bool = False,
) -> Evaluation:
    """Play exactly as many episodes as asked for, without preferring short ones.

    Args:
        policy: Who acts.
        stepper: The environments.
        episodes: How many.
        seed: Seed of the environments: the same one plays the same episodes for every policy.
        gamma: Discount of a step, for the discounted returns.
        max_steps: Steps after which an episode is counted as cut; the environments' own time limit unless given.
        progress: Show a bar on standard error.

    Returns:
        The episodes.

    Raises:
        ValueError: If a number is out of range, or policy and environments do not fit.

    Example:
        >>> from ccvf.environments import make_vector
        >>> from ccvf.policies import RandomPolicy
        >>> policy = RandomPolicy(2, np.random.default_rng(0))
        >>> found = evaluate(policy, make_vector("CartPole-v1", 2), 5, seed=0)
        >>> found.envs.tolist(), bool((found.returns == found.lengths).all())
        ([0, 1, 0, 1, 0], True)
    """
    if not 0 <= float(gamma) <= 1:
        raise ValueError(f"gamma={gamma} is out of range: give a discount in [0, 1]")
    count = int(episodes)
    returns, discounted = np.zeros(max(count, 0)), np.zeros(max(count, 0))
    lengths, truncated = np.zeros(max(count, 0), dtype=np.int64), np.zeros(max(count, 0), dtype=bool)
    done = 0
    with bar(progress, "evaluating", count) as show:
        for played in play(policy, stepper, count, seed=seed, max_steps=max_steps):
            live = played.episode >= 0
            which, rewards = played.episode[live], played.step.rewards[live]
            returns[which] += rewards
            discounted[which] += float(gamma) ** played.age[live] * rewards
            lengths[which] += 1
            truncated[played.episode[played.cut]] = True
            if played.ended.any():
                done += int(played.ended.sum())
                show(done, "")
    belief = policy.history if isinstance(policy, AdaptivePolicy) else None
    envs = np.arange(count) % stepper.n
    return Evaluation(stepper.name, returns, discounted, lengths, truncated, envs, float(gamma), int(seed), belief)


def _checked(actions: np.ndarray, stepper: Stepper) -> np.ndarray:
    found = np.asarray(actions)
    if found.shape != (stepper.n,) or found.dtype.kind not in "iu":
        raise ValueError(f"the policy gave {found.dtype} of shape {found.shape}; a whole number is needed for each of "
                         f"{stepper.n} environments")  # fmt: skip
    if found.min() < 0 or found.max() >= stepper.n_actions:
        raise ValueError(f"the policy gave action {found.max()}, but {stepper.name} has actions 0 to "
                         f"{stepper.n_actions - 1}: is it made for another environment?")  # fmt: skip
    return found
