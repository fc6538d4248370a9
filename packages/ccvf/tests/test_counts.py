"""Counts are the sums they say they are, and refuse what cannot be counted."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from ccvf.counts import Counts
from ccvf.gridworlds import gridworld_log, lava_world
from ccvf.mdp import TabularMDP
from ccvf.transitions import Transitions


def columns() -> dict[str, np.ndarray]:
    return {
        "observations": np.array([0, 0, 1, 0]),
        "actions": np.array([1, 1, 0, 0]),
        "rewards": np.array([1.0, 3.0, -1.0, 0.5]),
        "next_observations": np.array([1, 0, 2, 1]),
        "terminated": np.array([False, False, True, False]),
    }


def counted(**changes: object) -> Counts:
    table = {**columns(), **changes}
    sizes = {name: table.pop(name) for name in ("n_states", "n_actions") if name in table}
    return Counts.from_arrays(**table, **sizes)  # pyrefly: ignore


def log(**changes: object) -> Transitions:
    table = columns()
    fields: dict = {
        "frames": np.arange(4), "index": table["observations"][:, None],
        "next_index": table["next_observations"][:, None],
        "actions": table["actions"], "rewards": table["rewards"], "terminated": table["terminated"],
        "truncated": np.array([False, True, False, True]), "episodes": np.array([0, 0, 1, 2]),
        "steps": np.ones(4, int), "n_actions": 3,
    }  # fmt: skip
    return Transitions(**(fields | changes))


def test_sums_by_hand() -> None:
    counts = counted()
    assert counts.visits.tolist() == [[1, 2], [1, 0]]  # state 2 was only entered by an end: it is not a state here
    assert counts.reward_sum.tolist() == [[0.5, 4], [-1, 0]]
    assert counts.mean_reward.tolist() == [[0.5, 2], [-1, 0]]
    assert counts.terminations.tolist() == [[0, 0], [1, 0]]
    assert counts.transitions.toarray().tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]
    assert counts.probabilities.toarray().tolist() == [[0, 1], [0.5, 0.5], [0, 0], [0, 0]]
    assert counts.survival.tolist() == [[1, 1], [0, 0]]
    assert counts.bonus.tolist() == [[1, 1 / np.sqrt(2)], [1, 1]]
    assert counts.seen.tolist() == [[True, True], [True, False]]
    assert counts.reward_range == (-1, 3)


def test_a_log_counts_like_its_columns_and_a_cut_is_no_end() -> None:
    counts = Counts.from_transitions(log())
    same = counted(n_states=4, n_actions=3)
    for name in ("visits", "reward_sum", "terminations"):
        assert getattr(counts, name).tolist() == getattr(same, name).tolist()
    assert counts.transitions.toarray().tolist() == same.transitions.toarray().tolist()
    assert counts.terminations.sum() == 1  # of three episodes' ends two were cuts
    assert Counts.from_transitions(log(), n_states=9).n_states == 9


def test_merging_parts_gives_the_whole() -> None:
    data = gridworld_log(lava_world(), "broad", 500, np.random.default_rng(0))
    whole = Counts.from_transitions(data)
    parts = Counts.from_transitions(data.select(slice(0, 123))).merge(
        Counts.from_transitions(data.select(slice(123, None)))
    )
    np.testing.assert_allclose(parts.reward_sum, whole.reward_sum, rtol=1e-14)
    assert (parts.visits == whole.visits).all()
    assert (parts.transitions != whole.transitions).nnz == 0
    assert parts.reward_range == whole.reward_range
    with pytest.raises(ValueError, match="do not add up"):
        whole.merge(counted())


def test_expected_counts_are_those_of_the_model() -> None:
    world = lava_world().mdp
    counts = Counts.from_model(world.transition, world.expected_reward, 10, world.terminal)
    np.testing.assert_allclose(counts.probabilities.toarray(), world.continuing.toarray(), atol=1e-15)
    np.testing.assert_allclose(counts.mean_reward, world.expected_reward, atol=1e-15)
    assert counts.visits[world.terminal].sum() == 0
    dense = Counts.from_model(
        world.transition.toarray().reshape(49, 4, 49), world.expected_reward, np.full((49, 4), 10), world.terminal
    )
    np.testing.assert_allclose(dense.terminations, counts.terminations)


def test_drawn_counts_have_the_visits_asked_for_and_the_models_averages() -> None:
    move = np.array([[[0.3, 0.7], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]]])
    mdp = TabularMDP.from_arrays(move, np.array([[1.0, 2.0], [3.0, 4.0]]), noise=0.5)
    visits = np.array([[40_000, 3], [0, 7]])
    counts = mdp.draw_counts(visits, np.random.default_rng(0))
    assert (counts.visits == visits).all()
    # Five standard deviations, 0.0115 and 0.0125: together false with probability below 1.2e-6.
    assert abs(counts.probabilities.toarray()[0, 0] - 0.3) < 0.0115
    assert abs(counts.mean_reward[0, 0] - 1) < 0.0125
    assert counts.reward_range == (0.5, 4.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.array([0.0, np.nan, 0.0, 0.0])}, "reward 1 is nan"),
        ({"actions": np.array([0, -1, 0, 0])}, "action -1 is outside 0 to 0"),
        ({"n_actions": 1}, "action 1 is outside 0 to 0: give n_actions"),
        ({"n_states": 1}, "state 1 is outside 0 to 0: give n_states"),
        ({"next_observations": np.array([1, 7, 2, 1]), "n_states": 3}, "next state 7"),
        ({name: values[:0] for name, values in columns().items()}, "no transition"),
    ],
)
def test_columns_that_cannot_be_counted(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        counted(**changes)


def test_observations_must_be_single_state_numbers() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        counted(observations=np.array([0.0, 0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="one state number"):
        Counts.from_transitions(log(frames=np.zeros((4, 2), int)))
    with pytest.raises(ValueError, match="several steps"):
        Counts.from_transitions(log(steps=np.full(4, 3)))
    with pytest.raises(ValueError, match="no transition"):
        Counts.from_transitions(log().select(slice(0, 0)))


def test_inconsistent_sums_are_refused() -> None:
    good = counted()
    bad = {
        "1 visits, but 0 transitions": {"terminations": np.zeros((2, 2))},
        "at least 0; one is -1": {"visits": np.array([[1.0, 2], [-1, 0]])},
        "shape": {"transitions": sparse.csr_array((4, 3))},
        "no transition": {
            "visits": np.zeros((2, 2)), "terminations": np.zeros((2, 2)), "transitions": sparse.csr_array((4, 2))
        },
        "finite": {"reward_range": (0.0, np.inf)},
    }  # fmt: skip
    for words, changes in bad.items():
        with pytest.raises(ValueError, match=words):
            replace(good, **changes)
