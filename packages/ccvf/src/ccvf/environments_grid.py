"""Finite Markov decision processes as gymnasium environments whose observations are state numbers."""

from typing import Any, SupportsFloat, SupportsInt, final

import gymnasium
import numpy as np

from ccvf.gridworlds import lava_world
from ccvf.mdp import TabularMDP

__all__ = ["MDPEnv", "grid_env"]


@final
class MDPEnv(gymnasium.Env[np.int64, np.int64]):
    """A finite process to act in.

    Args:
        mdp: The process.
        horizon: Time limit of an episode in steps, which truncates it.

    Raises:
        ValueError: If the horizon is below 1.
    """

    def __init__(self, mdp: TabularMDP, horizon: SupportsInt = 100) -> None:
        self.mdp, self.horizon = mdp, int(horizon)
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon}: an episode has at least 1 step")
        self.observation_space = gymnasium.spaces.Discrete(mdp.n_states)
        self.action_space = gymnasium.spaces.Discrete(mdp.n_actions)
        self._state, self._age = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Start an episode in a state drawn from the initial ones.

        Args:
            seed: Seed of the episode; None: goes on with the last one.
            options: Not used.

        Returns:
            The state, and nothing more.
        """
        super().reset(seed=seed)
        self._state, self._age = int(self.np_random.choice(self.mdp.n_states, p=self.mdp.initial)), 0
        return np.int64(self._state), {}

    def step(self, action: int | np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Act.

        Args:
            action: 0 to the number of actions - 1.

        Returns:
            State, reward, terminated, truncated, and nothing more.
        """
        moves = self.mdp.transition
        pair = self._state * self.mdp.n_actions + int(action)
        begin, end = moves.indptr[pair], moves.indptr[pair + 1]
        following = int(self.np_random.choice(moves.indices[begin:end], p=moves.data[begin:end]))
        reward = float(self.mdp.reward[self._state, int(action)] + self.mdp.entry_reward[following])
        if self.mdp.noise:
            reward += self.mdp.noise * float(self.np_random.choice((-1.0, 1.0)))
        self._state, self._age = following, self._age + 1
        terminated = bool(self.mdp.terminal[following])
        return np.int64(following), reward, terminated, self._age == self.horizon and not terminated, {}


def grid_env(name: str, *, slip: SupportsFloat = 0.1, horizon: SupportsInt = 100) -> MDPEnv:
    """A gridworld by name.

    Args:
        name: "lava".
        slip: Probability of a random action instead of the chosen one.
        horizon: Time limit of an episode in steps.

    Returns:
        The environment.

    Raises:
        ValueError: If there is no such gridworld.
    """
    if name != "lava":
        raise ValueError(f"there is no gridworld {name!r}; give 'lava'")
    return MDPEnv(lava_world(slip).mdp, horizon)
