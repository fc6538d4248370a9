"""Gridworlds move as drawn, and on the lava world no fixed conservatism is right for every log."""

import numpy as np
import pytest

from ccvf.counts import Counts
from ccvf.gridworlds import behaviour, grid_world, gridworld_log, lava_world
from ccvf.tabular import TabularCCVL

DELTAS = [1e-4, 0.01, 0.1, 0.46, 1]


def test_moves_walls_and_slips_by_hand() -> None:
    world = grid_world("S.\n#G", slip=0.2)
    assert world.cells.tolist() == [[0, 0], [0, 1], [1, 1]]
    move = world.mdp.transition.toarray().reshape(3, 4, 3)  # up, right, down, left
    np.testing.assert_allclose(move[0, 1], [0.15, 0.85, 0])  # right; the three others stay
    np.testing.assert_allclose(move[0, 2], [0.95, 0.05, 0])  # down is a wall
    np.testing.assert_allclose(move[1, 2], [0.05, 0.1, 0.85])
    assert world.mdp.terminal.tolist() == [False, False, True]
    picture = world.picture(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(picture, [[1, 2], [np.nan, 3]])


def test_the_lava_world_is_the_specified_one() -> None:
    world = lava_world()
    cells = [tuple(cell) for cell in world.cells[world.mdp.terminal].tolist()]
    assert sorted(cells) == sorted([(3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (2, 3), (4, 3), (6, 3)])
    assert world.cells[world.mdp.initial.argmax()].tolist() == [0, 3]
    assert world.mdp.expected_return(world.mdp.optimal(0.95).policy, 0.95) == pytest.approx(0.5203, abs=5e-5)
    assert world.mdp.reward_range == (0, 1)
    # a mirror image of itself: so are its values
    v = world.picture(world.mdp.optimal(0.95).v)
    np.testing.assert_allclose(v, v[:, ::-1], atol=1e-12)


def test_rewards_and_several_starts() -> None:
    world = grid_world("SLS\n..G", slip=0, goal_reward=5, lava_reward=-7, step_reward=-1, gamma=0.5)
    assert world.mdp.initial.tolist() == [0.5, 0, 0.5, 0, 0, 0]
    assert world.mdp.expected_reward[0].tolist() == [-1, -8, -1, -1]
    assert world.mdp.optimal(world.gamma).v.tolist() == [-0.5, 0, 4, 1, 4, 0]


def test_logs_are_of_their_kind() -> None:
    world, rng = lava_world(), np.random.default_rng(0)
    best = behaviour(world, 0.0)
    assert (best.max(1) == 1).all()
    assert (behaviour(world, 1.0) == 0.25).all()
    narrow, broad = (gridworld_log(world, kind, 4000, rng) for kind in ("narrow", "broad"))
    followed = [best[log.observations(), log.actions].mean() for log in (narrow, broad)]
    # Shares 0.775 and 0.25 of 4000: five standard deviations are below 0.035, false with probability below 1.2e-6.
    assert abs(followed[0] - 0.775) < 0.035
    assert abs(followed[1] - 0.25) < 0.035
    again = [gridworld_log(world, 0.3, 50, np.random.default_rng(1)).actions.tolist() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("narrow", 300, [0.984, 0.984, 0.984, 0.987, 0.804]),
        ("narrow", 1000, [0.996, 0.999, 0.999, 0.999, 0.837]),
        ("broad", 2000, [0.004, 0.735, 0.981, 0.976, 0.955]),
    ],
)
def test_no_fixed_confidence_is_right_for_both_kinds_of_log(kind: str, size: int, expected: list[float]) -> None:
    world = lava_world()
    best = world.mdp.expected_return(world.mdp.optimal(world.gamma).policy, world.gamma)
    shares = []
    for seed in range(15):
        log = gridworld_log(world, kind, size, np.random.default_rng(seed))
        values = TabularCCVL(world.gamma, alpha=0.1, deltas=DELTAS).fit(Counts.from_transitions(log)).unwrap()
        shares.append([world.mdp.expected_return(values.policy(delta), world.gamma) / best for delta in DELTAS])
    found, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
    # Both tables are means over 15 data sets: five standard errors of their difference, and 0.02 where all sets agree.
    # Five of one normal variable: 6e-7; the seeds are fixed.
    assert (np.abs(found - expected) < 5 * np.sqrt(2) * error + 0.02).all(), found
    if kind == "broad":
        assert found[0] < 0.05
        assert found[2] > 0.9
    else:
        assert found[:4].min() - found[4] >= 0.1


def test_what_is_no_world_is_refused() -> None:
    for layout in ("", "S.\n.", "..", "SX"):
        with pytest.raises(ValueError, match="a map is"):
            grid_world(layout)
    with pytest.raises(ValueError, match="slip"):
        grid_world("S", slip=1.5)
    world, rng = lava_world(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="a log is 'narrow', 'broad'"):
        gridworld_log(world, "wide", 5, rng)
    with pytest.raises(ValueError, match="epsilon"):
        gridworld_log(world, -0.1, 5, rng)
