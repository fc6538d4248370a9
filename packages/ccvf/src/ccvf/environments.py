"""Environments that step together: one interface for collecting and for evaluation, made by name.

Nothing of a reset enters a transition: what `step` returns as next observation is, of an episode that ended, its own
last one; what to act on next is given apart.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, SupportsInt, final

import gymnasium
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ccvf.transitions import Transitions
from common_core.seeding import Streams

__all__ = ["GymnasiumStepper", "Step", "Stepper", "check_match", "imported", "make_vector"]


@final
@dataclass(frozen=True, eq=False)
class Step:
    """What one step of all environments led to.

    Args:
        rewards: Rewards of the actions.
        next_observations: What followed each action: of an episode that ended, its own last observation.
        terminated: The environment ended the episode: its future is worth 0.
        truncated: A time limit cut the episode: its future goes on unseen. Never together with terminated.
        observations: What to act on next: of an episode that ended, the first observation of a new one.
    """

    rewards: Float[np.ndarray, " envs"]
    next_observations: Shaped[np.ndarray, "envs ..."]
    terminated: Bool[np.ndarray, " envs"]
    truncated: Bool[np.ndarray, " envs"]
    observations: Shaped[np.ndarray, "envs ..."]

    @property
    def ended(self) -> Bool[np.ndarray, " envs"]:
        """Which environments start a new episode."""
        return self.terminated | self.truncated


class Stepper(ABC):
    """Environments of one kind that step together and start anew by themselves.

    Attributes:
        name: What `make_vector` makes it from.
        n: Number of environments.
        observation_shape: Shape of one observation.
        dtype: Dtype of observations.
        n_actions: Number of actions; actions are 0 to n_actions - 1.
        stack: How many of the last frames the first axis of an observation holds (1: observations are not stacks).
    """

    name: str
    n: int
    observation_shape: tuple[int, ...]
    dtype: np.dtype
    n_actions: int
    stack: int = 1

    @abstractmethod
    def reset(self, seed: SupportsInt | None = None) -> Shaped[np.ndarray, "envs ..."]:
        """Start a new episode everywhere.

        Args:
            seed: Everything from here on depends on this and the actions alone; None: episodes go on being drawn.

        Returns:
            First observations; the caller may keep them.
        """

    @abstractmethod
    def step(self, actions: Int[np.ndarray, " envs"]) -> Step:
        """Act in every environment.

        Args:
            actions: One action each.

        Returns:
            What followed; the arrays are new.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of what the environments hold."""


@final
class GymnasiumStepper(Stepper):
    """Steps gymnasium environments one after another in this process.

    Every episode is seeded by itself, from the seed, the environment's number and the episode's number: it depends on
    nothing that happened before or elsewhere.

    Args:
        name: What they are called.
        makers: Functions that each make an environment.
        seed: Seed until `reset` gives another.

    Raises:
        TypeError: If observations are no arrays or actions not discrete.
    """

    def __init__(
        self, name: str, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], seed: SupportsInt = 0
    ) -> None:
        self.name, self.n = name, len(makers)
        if not self.n:
            raise ValueError("no environment asked for; give at least one")
        self.envs = [make() for make in makers]
        actions, observations = self.envs[0].action_space, self.envs[0].observation_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise TypeError(f"{name} has actions {actions}; only discrete actions are supported")
        if observations.shape is None or observations.dtype is None or observations.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} has observations {observations}; only arrays of numbers and discrete states are supported "
                "(gymnasium.wrappers.FlattenObservation flattens dictionaries and tuples)"
            )
        self.n_actions, self._first_action = int(actions.n), int(actions.start)
        self.observation_shape, self.dtype = tuple(observations.shape), np.dtype(observations.dtype)
        self._seed = int(seed)
        self._episodes = [0] * self.n

    def reset(self, seed: SupportsInt | None = None) -> Shaped[np.ndarray, "envs ..."]:
        """Start a new episode everywhere (see `Stepper.reset`)."""
        if seed is not None:
            self._seed, self._episodes = int(seed), [0] * self.n
        found = self._room()
        for k in range(self.n):
            found[k] = self._begin(k)
        return found

    def step(self, actions: Int[np.ndarray, " envs"]) -> Step:
        """Act in every environment (see `Stepper.step`)."""
        rewards, after = np.zeros(self.n), self._room()
        terminated, truncated = np.zeros(self.n, dtype=bool), np.zeros(self.n, dtype=bool)
        for k, (env, action) in enumerate(zip(self.envs, actions.tolist(), strict=True)):
            after[k], rewards[k], terminated[k], truncated[k], _ = env.step(action + self._first_action)
        truncated &= ~terminated
        observations = after
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            observations = after.copy()
            for k in ended.tolist():
                observations[k] = self._begin(k)
        return Step(rewards, after, terminated, truncated, observations)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _room(self) -> np.ndarray:
        return np.empty((self.n, *self.observation_shape), dtype=self.dtype)

    def _begin(self, k: int) -> Any:
        self._episodes[k] += 1
        seed = Streams(self._seed, "episode", k, self._episodes[k]).env()
        return self.envs[k].reset(seed=seed)[0]


def make_vector(name: str, n: SupportsInt = 1, *, seed: SupportsInt = 0, **options: Any) -> Stepper:
    """Environments by name.

    Args:
        name: "gridworld:lava", "minatar:GAME" (breakout, asterix, freeway, seaquest, space_invaders), "atari:GAME"
            (pong, breakout, ...), or an id of gymnasium such as "CartPole-v1".
        n: How many.
        seed: Seed of their episodes.
        **options: What the kind takes: see `ccvf.environments_minatar.MinAtarEnv`,
            `ccvf.environments_atari.AtariStepper`, `ccvf.environments_grid.grid_env` or `gymnasium.make`.

    Returns:
        The environments; call `reset` first.

    Raises:
        ValueError: If there is no such environment.
        ImportError: If the extra it needs is not installed; the message names it.

    Example:
        >>> stepper = make_vector("CartPole-v1", 2, seed=0)
        >>> first = stepper.reset()
        >>> stepper.step(np.array([0, 1])).rewards.tolist()
        [1.0, 1.0]
    """
    count = int(n)
    if count < 1:
        raise ValueError(f"{count} environments asked for; give at least 1")
    kind, found, rest = name.partition(":")
    if found and kind == "minatar":
        from ccvf.environments_minatar import MinAtarEnv

        return GymnasiumStepper(name, [lambda: MinAtarEnv(rest, **options)] * count, seed)
    if found and kind == "gridworld":
        from ccvf.environments_grid import grid_env

        return GymnasiumStepper(name, [lambda: grid_env(rest, **options)] * count, seed)
    if found and kind == "atari":
        from ccvf.environments_atari import AtariStepper

        return AtariStepper(rest, count, seed=seed, **options)
    try:
        return GymnasiumStepper(name, [lambda: gymnasium.make(name, **options)] * count, seed)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{name} needs more than gymnasium: {error}") from None
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise ValueError(
            f"there is no environment {name!r} ({error}); give 'gridworld:lava', 'minatar:GAME', 'atari:GAME' or an id "
            "of gymnasium"
        ) from None


def check_match(data: Transitions, stepper: Stepper) -> None:
    """Make sure that a log and environments are of one kind.

    Args:
        data: The log.
        stepper: The environments.

    Raises:
        ValueError: If shape or dtype of observations or the number of actions differ; all differences are named.
    """
    wrong = []
    if data.observation_shape != stepper.observation_shape:
        wrong.append(f"observations are {data.observation_shape} in the log and {stepper.observation_shape} there")
    if not _alike(data.frames.dtype, stepper.dtype):
        wrong.append(f"their dtype is {data.frames.dtype} in the log and {stepper.dtype} there")
    if data.n_actions != stepper.n_actions:
        wrong.append(f"the log has {data.n_actions} actions and they have {stepper.n_actions}")
    if wrong:
        raise ValueError(
            f"the log is not of {stepper.name}: {'; '.join(wrong)}. Give the environment that the log is of"
            + ("" if data.n_actions >= stepper.n_actions else " (or say n_actions= where the log is made)")
        )


def imported(module: str, extra: str) -> Any:
    """A module that an extra brings.

    Args:
        module: Its import name.
        extra: The extra's name.

    Returns:
        The module.

    Raises:
        ImportError: If it is not there, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself lacks
        raise ImportError(f'{module} is not installed; pip install "ccvf[{extra}]" brings it') from None


def _alike(left: np.dtype, right: np.dtype) -> bool:
    """Networks scale bytes and take other numbers as they are, so bytes, flags and numbers must not be mixed up."""
    wide = left.kind == right.kind and left.kind in "if"
    return wide or left == right
