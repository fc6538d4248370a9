"""MinAtar games as gymnasium environments."""

import functools
import importlib.util
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt, final

import gymnasium
import numpy as np
from jaxtyping import Bool

__all__ = ["GAMES", "MinAtarEnv"]

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


@final
class MinAtarEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A MinAtar game: 10 x 10 cells, one bool channel for each kind of thing, channels last.

    With probability `sticky` the last action of the episode is repeated instead of the chosen one. An episode depends
    on its seed and the actions alone: nothing of an earlier episode is left, neither a sticky action nor a
    difficulty.

    Args:
        game: One of `GAMES`.
        sticky: Probability that the last action is repeated.
        minimal_actions: Only the actions that matter in this game; all six otherwise.
        ramping: Whether the game becomes harder with time.
        max_steps: Time limit of an episode, which truncates it; None: none.

    Raises:
        ValueError: If there is no such game, or a number is out of range.
        ImportError: If MinAtar is not installed.

    Reference:
        Young and Tian (2019). MinAtar: an Atari-inspired testbed (arXiv:1903.03176).
    """

    def __init__(
        self,
        game: str,
        *,
        sticky: SupportsFloat = 0.1,
        minimal_actions: bool = True,
        ramping: bool = True,
        max_steps: SupportsInt | None = 5000,
    ) -> None:
        self.sticky = float(sticky)
        self.max_steps = None if max_steps is None else int(max_steps)
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky={self.sticky:g} is a probability in [0, 1)")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: give at least 1, or None for no time limit")
        self._game = _module(game).Env(ramping=ramping)
        self._actions = self._game.minimal_action_set() if minimal_actions else list(range(6))
        shape = tuple(self._game.state_shape())
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))
        box: Any = gymnasium.spaces.Box  # whose types know numbers only
        self.observation_space = box(0, 1, shape, dtype=np.bool_)
        self._random = np.random.RandomState(0)
        self._last, self._age = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Bool[np.ndarray, "10 10 channels"], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Everything in the episode depends on it and the actions; None: goes on with the last one.
            options: Not used.

        Returns:
            The first observation, and nothing more.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._random = np.random.RandomState(seed)
        self._game.random = self._random
        self._game.reset()
        self._last, self._age = 0, 0
        return self._game.state(), {}

    def step(
        self, action: int | np.int64
    ) -> tuple[Bool[np.ndarray, "10 10 channels"], float, bool, bool, dict[str, Any]]:
        """Act.

        Args:
            action: 0 to the number of actions - 1.

        Returns:
            Observation, reward, terminated, truncated, and nothing more.
        """
        if self._random.rand() >= self.sticky:
            self._last = self._actions[action]
        reward, terminal = self._game.act(self._last)
        self._age += 1
        cut = self._age == self.max_steps and not terminal
        return self._game.state(), float(reward), bool(terminal), cut, {}


@functools.cache
def _module(game: str) -> Any:
    """The module of a game, without the package around it, which imports plotting libraries and logs warnings."""
    if game not in GAMES:
        raise ValueError(f"there is no MinAtar game {game!r}; give one of {', '.join(GAMES)}")
    package = importlib.util.find_spec("minatar")
    if package is None or package.submodule_search_locations is None:
        raise ImportError('minatar is not installed; pip install "ccvf[minatar]" brings it')
    path = Path(package.submodule_search_locations[0]) / "environments" / f"{game}.py"
    spec = importlib.util.spec_from_file_location(f"ccvf._minatar_{game}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"minatar has no game at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
