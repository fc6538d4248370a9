"""Gridworlds with lava: small problems with known values, on which no fixed conservatism is right for every log."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from ccvf.mdp import TabularMDP
from ccvf.transitions import Transitions

__all__ = ["ACTIONS", "LAVA_LAYOUT", "GridWorld", "behaviour", "grid_world", "gridworld_log", "lava_world"]

ACTIONS = MappingProxyType({"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)})
LAVA_LAYOUT = """
...S...
.......
...L...
.LLLLL.
...L...
.......
...G...
"""
_CELLS = ".SGL#"
_LOGS = MappingProxyType({"narrow": 0.3, "broad": 1.0})


@final
@dataclass(frozen=True, eq=False)
class GridWorld:
    """A gridworld: a finite process, and where its states lie.

    Args:
        mdp: The process; actions are up, right, down, left (see `ACTIONS`).
        cells: Row and column of each state.
        layout: Its map, one string a row: "S" start, "G" goal, "L" lava, "#" wall, "." free.
        gamma: Discount that its values are stated for.
    """

    mdp: TabularMDP
    cells: Int[np.ndarray, "states 2"]
    layout: tuple[str, ...]
    gamma: float

    def __repr__(self) -> str:
        return f"GridWorld({len(self.layout)}x{len(self.layout[0])}, n_states={self.mdp.n_states})"

    def picture(self, values: Float[np.ndarray, " states"]) -> Float[np.ndarray, "rows columns"]:
        """Values of the states laid out as the map, NaN in walls.

        Args:
            values: One number a state.

        Returns:
            The map of the values.
        """
        found = np.full((len(self.layout), len(self.layout[0])), np.nan)
        found[self.cells[:, 0], self.cells[:, 1]] = values
        return found


def grid_world(
    layout: str,
    *,
    slip: SupportsFloat = 0.1,
    goal_reward: SupportsFloat = 1.0,
    lava_reward: SupportsFloat = 0.0,
    step_reward: SupportsFloat = 0.0,
    gamma: SupportsFloat = 0.95,
) -> GridWorld:
    """A gridworld from a map.

    A step goes to the neighbouring cell; against a wall or the rim it stays. With probability `slip` the action is
    replaced by a uniformly random one. Goals and lava end the episode.

    Args:
        layout: One line a row of equal length: "S" start (at least one; even odds), "G" goal, "L" lava, "#" wall,
            "." free.
        slip: Probability of a random action instead.
        goal_reward: Reward for entering a goal.
        lava_reward: Reward for entering lava.
        step_reward: Reward of every step, added to the others.
        gamma: Discount that its values are stated for.

    Returns:
        The world.

    Raises:
        ValueError: If the map is not a rectangle of these letters with a start, or slip is not a probability.

    Example:
        >>> grid_world("S.G", slip=0.0).mdp.optimal(0.5).v.tolist()
        [0.5, 1.0, 0.0]
    """
    rows = tuple(line.strip() for line in layout.strip().splitlines())
    letters = np.array([list(row) for row in rows]) if rows and len({len(row) for row in rows}) == 1 else np.empty(0)
    if letters.size == 0 or not np.isin(letters, list(_CELLS)).all() or not (letters == "S").any():
        raise ValueError(f"a map is a rectangle of the letters {_CELLS!r} with at least one 'S', not {layout!r}")
    chance = float(slip)
    if not 0 <= chance <= 1:
        raise ValueError(f"slip is a probability in [0, 1], {chance:g} given")
    cells = np.argwhere(letters != "#")
    kinds = letters[cells[:, 0], cells[:, 1]]
    S, A = len(cells), len(ACTIONS)
    moves = sparse.csr_array((A * S, S))
    targets = _neighbours(letters, cells)
    for action in range(A):
        # the wanted action plus its share of the random ones
        weights = np.full(A, chance / A) + (1 - chance) * (np.arange(A) == action)
        for way, weight in enumerate(weights):
            moves += sparse.csr_array((np.full(S, weight), (np.arange(S) * A + action, targets[:, way])), (A * S, S))
    moves.eliminate_zeros()
    mdp = TabularMDP.from_arrays(
        moves,
        np.full((S, A), float(step_reward)),
        terminal=np.isin(kinds, ["G", "L"]),
        initial=(kinds == "S") / (kinds == "S").sum(),
        entry_reward=float(goal_reward) * (kinds == "G") + float(lava_reward) * (kinds == "L"),
    )
    return GridWorld(mdp, cells, rows, float(gamma))


def lava_world(slip: SupportsFloat = 0.1) -> GridWorld:
    """The 7 x 7 world in which a bar of lava lies between start and goal; discount 0.95.

    Args:
        slip: Probability of a random action instead of the wanted one.

    Returns:
        The world.

    Example:
        >>> world = lava_world()
        >>> round(float(world.mdp.initial @ world.mdp.optimal(world.gamma).v), 4)
        0.5203
    """
    return grid_world(LAVA_LAYOUT, slip=slip)


def behaviour(world: GridWorld, epsilon: SupportsFloat) -> Float[np.ndarray, "states actions"]:
    """The optimal policy with a share of uniformly random actions.

    Args:
        world: The world.
        epsilon: Share of random actions, in [0, 1].

    Returns:
        Probabilities of the actions.

    Raises:
        ValueError: If epsilon is not in [0, 1].
    """
    share = float(epsilon)
    if not 0 <= share <= 1:
        raise ValueError(f"epsilon is a probability in [0, 1], {share:g} given")
    A = world.mdp.n_actions
    return (1 - share) * np.eye(A)[world.mdp.optimal(world.gamma).policy] + share / A


def gridworld_log(
    world: GridWorld,
    kind: str | SupportsFloat,
    transitions: SupportsInt,
    rng: np.random.Generator,
    *,
    horizon: SupportsInt = 100,
) -> Transitions:
    """Log a behaviour policy; half of the episodes start at the start, half in any state that does not end them.

    Args:
        world: The world.
        kind: "narrow" (mostly optimal, 30 % random actions), "broad" (all random), or the share of random actions.
        transitions: Length of the log.
        rng: Source of randomness.
        horizon: Time limit of an episode in steps.

    Returns:
        The log; observations are state numbers.

    Raises:
        ValueError: If the kind is not one of these or a number is out of range.

    Example:
        >>> import numpy as np
        >>> len(gridworld_log(lava_world(), "narrow", 300, np.random.default_rng(0)))
        300
    """
    if isinstance(kind, str):
        if kind not in _LOGS:
            raise ValueError(f"a log is {', '.join(map(repr, _LOGS))} or a share of random actions, {kind!r} given")
        kind = _LOGS[kind]
    live = ~world.mdp.terminal
    starts = (world.mdp.initial + live / live.sum()) / 2
    return world.mdp.sample(behaviour(world, kind), transitions, rng, starts=starts, horizon=horizon)


def _neighbours(letters: np.ndarray, cells: Int[np.ndarray, "states 2"]) -> Int[np.ndarray, "states actions"]:
    numbers = np.full(letters.shape, -1)
    numbers[cells[:, 0], cells[:, 1]] = np.arange(len(cells))
    steps = cells[:, None] + np.array(list(ACTIONS.values()))
    inside = np.all((steps >= 0) & (steps < letters.shape), axis=-1, keepdims=True)
    found = numbers[tuple(np.moveaxis(np.where(inside, steps, 0), -1, 0))]
    return np.where(inside[..., 0] & (found >= 0), found, np.arange(len(cells))[:, None])
