"""Policies over a batch of environments, and the two plainest: at one fixed confidence, and at random."""

from abc import ABC, abstractmethod
from typing import SupportsFloat, final

import numpy as np
from jaxtyping import Bool, Float, Int

from ccvf.confidence import check_deltas
from ccvf.values import ConfidenceValues

__all__ = ["FixedPolicy", "Policy", "RandomPolicy"]


class Policy(ABC):
    """Acts in a batch of environments that step together, each with its own memory."""

    @abstractmethod
    def act(self, observations: np.ndarray) -> Int[np.ndarray, " envs"]:
        """Choose one action for each environment.

        Args:
            observations: What the environments show, (envs, *observation shape).

        Returns:
            Actions.
        """

    # A policy without memory has nothing to do here.
    def observe(  # noqa: B027
        self,
        rewards: Float[np.ndarray, " envs"],
        next_observations: np.ndarray,
        terminated: Bool[np.ndarray, " envs"],
        truncated: Bool[np.ndarray, " envs"],
    ) -> None:
        """Learn what the last actions led to; called once after each `act`.

        Args:
            rewards: Rewards of the actions.
            next_observations: What followed each action: of an episode that ended, its own last observation.
            terminated: Whether the environment ended the episode: its future is worth 0.
            truncated: Whether a time limit cut the episode: its future goes on unseen.
        """

    def reset(self, envs: Bool[np.ndarray, " envs"] | None = None) -> None:  # noqa: B027
        """Forget what belongs to an episode, before an episode starts.

        Args:
            envs: Which environments start an episode; None: all.
        """


@final
class FixedPolicy(Policy):
    """Greedy on the values at one confidence, with a share of random actions if asked for.

    Args:
        values: The learnt values.
        delta: The confidence, in (0, 1].
        epsilon: Probability of a uniformly random action.
        generator: Source of the random actions; needed when epsilon > 0.

    Raises:
        ValueError: If delta or epsilon is out of range, or epsilon > 0 comes without a generator.
    """

    def __init__(
        self,
        values: ConfidenceValues,
        delta: SupportsFloat,
        *,
        epsilon: SupportsFloat = 0.0,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.values = values
        self.deltas = check_deltas(delta)
        self.epsilon = float(epsilon)
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability in [0, 1], {self.epsilon:g} given")
        if self.epsilon and generator is None:
            raise ValueError("epsilon > 0 draws random actions: give generator=numpy.random.default_rng(seed)")
        self.generator = generator

    def act(self, observations: np.ndarray) -> Int[np.ndarray, " envs"]:
        """The action of the highest value; the first of equals."""
        actions = self.values.q_values(observations, self.deltas)[:, 0].argmax(-1)
        if self.generator is not None and self.epsilon:
            strays = self.generator.random(len(actions)) < self.epsilon
            actions = np.where(strays, self.generator.integers(self.values.n_actions, size=len(actions)), actions)
        return actions


@final
class RandomPolicy(Policy):
    """Uniformly random actions.

    Args:
        n_actions: Number of actions.
        generator: Source of the actions.
    """

    def __init__(self, n_actions: int, generator: np.random.Generator) -> None:
        self.n_actions, self.generator = n_actions, generator

    def act(self, observations: np.ndarray) -> Int[np.ndarray, " envs"]:
        """Uniformly random actions."""
        return self.generator.integers(self.n_actions, size=len(observations))
