"""The tabular solver against closed forms, limits and the plainest solver; what it does with gaps in a log."""

import itertools
import math

import numpy as np
import pytest

from ccvf import theory
from ccvf.confidence import delta_grid
from ccvf.counts import Counts
from ccvf.gridworlds import gridworld_log, lava_world
from ccvf.mdp import TabularMDP
from ccvf.splits import Budget
from ccvf.tabular import TabularCCVL
from ccvf.tabular_values import NotConvergedError, TabularValues
from ccvf.transitions import Transitions
from ccvf.values import ConfidenceValues

BUDGETS: tuple[Budget, ...] = ("box", "sum", "product")
REWARDS, VISITS = [0.5, 0.0, 1.0, 0.2, 0.7, 0.1], [20, 3, 50, 8, 1, 12]


def chain(rewards: list[float] = REWARDS, visits: list[int] = VISITS) -> Counts:
    """Steps in a row that end after the last; every visit earned the mean."""
    steps = np.repeat(np.arange(len(rewards)), visits)
    return Counts.from_arrays(
        steps, np.zeros(len(steps), int), np.array(rewards, float)[steps], steps + 1, steps == len(rewards) - 1
    )


def gridlog(kind: str = "broad", size: int = 1000, seed: int = 0) -> Counts:
    return Counts.from_transitions(gridworld_log(lava_world(), kind, size, np.random.default_rng(seed)))


def empirical(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    return counts.probabilities.toarray().reshape(*counts.visits.shape, counts.n_states), counts.mean_reward


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("budget", BUDGETS)
def test_chains_meet_their_closed_form(budget: Budget, upper: bool) -> None:
    bound = "upper" if upper else "lower"
    deltas = delta_grid(800, 1e-8)
    solver = TabularCCVL(0.95, alpha=0.3, budget=budget, bound=bound, deltas=deltas, return_range=(-50, 50), tol=1e-10)
    found = solver.fit(chain()).unwrap()
    for k in (500, 650, 770):  # 2e-4, 0.01, 0.25
        best = theory.chain_bound(REWARDS, VISITS, deltas[k], 0.95, 0.3, budget, upper)
        slack = (found.q[0, 0, k] - best) * (1 if upper else -1)
        # Certified splits are never better than the best of all; the grid's steps of 2.3 % cost little.
        assert -1e-9 <= slack <= (1e-9 if budget == "box" else 6e-4)


def test_the_specified_chain() -> None:
    deltas = np.unique(np.append(delta_grid(800, 1e-8), 0.05))
    for budget, value in (("sum", -2.591), ("box", -2.051)):
        solver = TabularCCVL(0.95, alpha=1.0, budget=budget, deltas=deltas, return_range=(-50, 50))
        assert solver.fit(chain([0.0] * 6, [20] * 6)).values(0.05)[0] == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("budget", ["sum", "product"])
def test_interpolation_comes_closer_on_a_coarse_grid(budget: Budget) -> None:
    deltas = delta_grid(40, 1e-8)
    args = {"alpha": 0.3, "budget": budget, "deltas": deltas, "return_range": (-50, 50)}
    certified = TabularCCVL(0.95, **args).fit(chain()).q
    between = TabularCCVL(0.95, **args, splits="interpolated").fit(chain()).unwrap().q
    assert (between >= certified - 1e-8).all()  # the tolerance
    for k in (30, 34, 37):
        best = theory.chain_bound(REWARDS, VISITS, deltas[k], 0.95, 0.3, budget)
        assert certified[0, 0, k] <= best
        assert abs(between[0, 0, k] - best) < 0.1 * (best - certified[0, 0, k])


@pytest.mark.parametrize("budget", BUDGETS)
def test_without_sampling_error_every_confidence_gives_the_optimum(budget: Budget) -> None:
    world = lava_world()
    counts = Counts.from_model(world.mdp.transition, world.mdp.expected_reward, 1e14, world.mdp.terminal)
    for bound in ("lower", "upper"):
        found = (
            TabularCCVL(world.gamma, alpha=1.0, budget=budget, bound=bound, return_range=(0, 1)).fit(counts).unwrap()
        )
        truth = world.mdp.optimal(world.gamma).q
        live = ~world.mdp.terminal
        # 0.01 and more, from which more than 500 steps can be taken before the grid ends
        for delta in (0.01, 0.1, 1.0):
            np.testing.assert_allclose(found.q[live][..., found.deltas <= delta][..., -1], truth[live], atol=5e-6)


def every_pair_drawn() -> tuple[Counts, np.ndarray]:
    """Counts of a log that saw every action of every state, and the states that do not end episodes."""
    mdp, rng = lava_world().mdp, np.random.default_rng(0)
    return mdp.draw_counts(rng.integers(1, 30, mdp.reward.shape), rng), np.flatnonzero(~mdp.terminal)


def test_the_box_is_penalised_value_iteration_at_each_confidence() -> None:
    counts, kept = every_pair_drawn()
    found = TabularCCVL(0.95, alpha=0.3, deltas=[0.01, 0.3, 1], tol=1e-10).fit(counts).unwrap()
    p, r = empirical(counts)
    for k, delta in enumerate(found.deltas):
        visits = counts.visits[kept]
        expected = theory.penalised_values(p[kept][:, :, kept], r[kept], visits, 0.95, 0.3, delta)
        np.testing.assert_allclose(found.q[kept][..., k], expected, atol=2e-10)


@pytest.mark.parametrize("budget", ["box", "product"])
def test_at_confidence_one_it_is_plain_value_iteration(budget: Budget) -> None:
    counts, kept = every_pair_drawn()
    p, r = empirical(counts)
    found = TabularCCVL(0.95, alpha=5.0, budget=budget, tol=1e-10).fit(counts).unwrap()
    expected = theory.optimal_values(p[kept][:, :, kept], r[kept], 0.95)
    np.testing.assert_allclose(found.q[kept][..., -1], expected, atol=2e-10)


@pytest.mark.parametrize("gamma", [0.5, 0.999])
def test_short_and_long_horizons_are_solved_as_exactly_as_said(gamma: float) -> None:
    counts, kept = every_pair_drawn()
    p, r = empirical(counts)
    inside = p[kept][:, :, kept]
    known = np.concatenate([inside, np.maximum(1 - inside.sum(-1, keepdims=True), 0)], axis=-1)
    to_end = np.zeros((1, 4, len(kept) + 1))
    to_end[..., -1] = 1
    mdp = TabularMDP.from_arrays(
        np.concatenate([known, to_end]), np.concatenate([r[kept], np.zeros((1, 4))]),
        terminal=np.arange(len(kept) + 1) == len(kept),
    )  # fmt: skip
    found = TabularCCVL(gamma, deltas=[0.1, 1]).fit(counts).unwrap()
    assert found.error <= 1e-8
    np.testing.assert_allclose(found.q[kept][..., -1], mdp.optimal(gamma).q[:-1], atol=1.1e-8)


def test_in_the_sum_confidence_one_still_pays() -> None:
    counts = chain()
    plain = float(0.95 ** np.arange(6) @ np.array(REWARDS))
    assert TabularCCVL(0.95, budget="sum").fit(counts).values(1)[0] < plain - 0.01


@pytest.mark.parametrize(
    ("budget", "splits"), [("box", "certified"), ("product", "certified"), ("sum", "interpolated")]
)
def test_any_start_leads_to_the_same_values(budget: Budget, splits: str) -> None:
    counts = gridlog()
    solver = TabularCCVL(0.95, budget=budget, splits=splits, deltas=delta_grid(20), tol=1e-9)  # pyrefly: ignore
    usual = solver.fit(counts).unwrap()
    far = TabularValues(**{**vars(usual), "q": usual.q + np.random.default_rng(0).normal(size=usual.q.shape) * 50})
    np.testing.assert_allclose(solver.fit(counts, start=far).unwrap().q, usual.q, atol=2e-9)
    again = solver.fit(counts, start=usual)
    assert again.sweeps < usual.sweeps
    with pytest.raises(ValueError, match="start has shape"):
        TabularCCVL(0.95, deltas=delta_grid(21)).fit(counts, start=usual)


def test_a_backup_brings_values_together_by_gamma() -> None:
    rng = np.random.default_rng(0)
    counts = Counts.from_arrays(*_few(rng), n_states=4, n_actions=2)
    p, r = empirical(counts)
    deltas = delta_grid(6)
    for budget in BUDGETS:
        first, second = rng.normal(size=(2, 4, 6)) * 10
        backups = [theory.naive_backup(v, p, r, counts.visits, deltas, 0.9, 0.5, budget, 0.0) for v in (first, second)]
        assert np.nanmax(np.abs(backups[0] - backups[1])) <= 0.9 * np.abs(first - second).max() + 1e-12


def _few(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    size = 30
    return (
        rng.integers(4, size=size), rng.integers(2, size=size), rng.normal(size=size), rng.integers(4, size=size),
        rng.random(size) < 0.2,
    )  # fmt: skip


def test_too_few_sweeps_are_a_status_that_says_how_far_off() -> None:
    counts = gridlog()
    solved = TabularCCVL(0.95, deltas=[0.1, 1], max_sweeps=3).fit(counts)
    exact = TabularCCVL(0.95, deltas=[0.1, 1], tol=1e-11).fit(counts).unwrap()
    assert solved.status == "not_converged"
    assert 0 < np.abs(solved.values(1) - exact.values(1)).max() <= solved.error
    with pytest.raises(NotConvergedError, match="raise max_sweeps"):
        solved.unwrap()


@pytest.mark.parametrize("budget", BUDGETS)
def test_unseen_actions_rank_last_below_and_first_above(budget: Budget) -> None:
    counts = gridlog("narrow", 300)
    partly = counts.seen.any(1) & ~counts.seen.all(1)
    assert partly.sum() > 5
    for alpha in (0.01, 10.0):  # with the second, seen values fall far below any possible return
        low = TabularCCVL(0.95, alpha=alpha, budget=budget).fit(counts).unwrap()
        unseen = np.where(counts.seen[..., None], -np.inf, low.q)[partly].max(axis=(0, 1))
        assert (unseen < low.q[counts.seen].min(axis=0)).all()
        assert np.isfinite(low.q).all()
        assert (np.diff(low.q, axis=-1) >= 0).all()
        for delta in (1e-4, 0.1, 1):
            assert counts.seen[np.flatnonzero(partly), low.policy(delta)[partly]].all()
        high = TabularCCVL(0.95, alpha=alpha, budget=budget, bound="upper").fit(counts).unwrap()
        assert (high.q[~counts.seen].min(axis=0) >= high.q[counts.seen].max(axis=0) - 1e-12).all()
        assert not counts.seen[np.flatnonzero(partly), high.policy(0.1)[partly]].any()
        assert (high.bounds(0.1)[~counts.seen] == high.return_range[1]).all()
        assert (low.bounds(0.1)[~counts.seen] == low.return_range[0]).all()


def test_equal_actions_stay_equal_whatever_the_sweeps_leave() -> None:
    for seed in range(4):  # logs in which many states never lead to a reward
        counts = gridlog("narrow", 300, seed)
        found = TabularCCVL(0.95, deltas=delta_grid(30)).fit(counts).unwrap()
        p, r = empirical(counts)
        q = theory.naive_values(p, r, counts.visits, np.ones(1), 0.95, 0.1, "box", 0.0, False)[..., 0]
        acting = counts.seen.any(1)
        q = np.where(counts.seen, q, -np.inf)[acting]
        first = (q >= q.max(1, keepdims=True) - 1e-10).argmax(1)  # of actions that are equal but for rounding
        assert (found.policy(1)[acting] == first).all()


def test_states_without_any_action_attract_nobody() -> None:
    # From state 0, action 0 leads to a well-known loop and action 1 into the unknown; neither ever paid.
    states, actions = np.array([0] * 20 + [1] * 50), np.array([0] * 10 + [1] * 10 + [0] * 50)
    following = np.array([1] * 10 + [2] * 10 + [1] * 50)
    log = states, actions, np.zeros(70), following, np.zeros(70, bool)
    counts = Counts.from_arrays(*log)
    for budget in BUDGETS:
        found = TabularCCVL(0.95, budget=budget, reward_range=(0, 1)).fit(counts).unwrap()
        for delta in (1e-3, 0.1, 0.9):
            assert found.policy(delta)[0] == 0
            assert found.values(delta)[2] < found.values(delta)[1]


def test_an_end_is_worth_nothing_more_and_a_cut_goes_on() -> None:
    def log(terminated: bool) -> Transitions:
        flag = np.full(10, terminated)
        return Transitions(
            frames=np.arange(1), index=np.zeros((10, 1), int), next_index=np.zeros((10, 1), int),
            actions=np.zeros(10, int), rewards=np.ones(10), terminated=flag, truncated=~flag,
            episodes=np.arange(10), steps=np.ones(10, int), n_actions=1,
        )  # fmt: skip

    solver = TabularCCVL(0.9, alpha=1.0, deltas=[math.exp(-1), 1])
    penalty = math.sqrt(1 / 10)
    np.testing.assert_allclose(solver.fit(log(True)).q[0, 0], [1 - penalty, 1], atol=1e-8)
    np.testing.assert_allclose(solver.fit(log(False)).q[0, 0], [10 * (1 - penalty), 10], atol=1e-7)


def test_hoeffdings_alpha_and_the_range_of_returns() -> None:
    counts = chain()  # rewards from 0 to 1
    for ranges, expected in (
        ({}, (0, 20)), ({"reward_range": (-1, 2)}, (-20, 40)), ({"reward_range": (0, 1)}, (0, 20)),
        ({"return_range": (0, 3)}, (0, 3)),
    ):  # fmt: skip
        solver = TabularCCVL(0.95, alpha="hoeffding", **ranges)
        assert solver.returns(counts) == pytest.approx(expected)
        assert solver.penalty(counts) == pytest.approx(theory.hoeffding_alpha(*expected))
    # an episode may end at once: rewards of 0.5 to 1 imply no more than 0.5, costs of 0.5 to 1 at most -0.5
    positive = chain([0.5, 1.0], [2, 2])
    assert TabularCCVL(0.95).returns(positive) == pytest.approx((0.5, 20))
    assert TabularCCVL(0.95).returns(chain([-0.5, -1.0], [2, 2])) == pytest.approx((-20, -0.5))
    with pytest.raises(ValueError, match=r"outside reward_range=\(0\.0, 0\.5\)"):
        TabularCCVL(0.95, reward_range=(0, 0.5)).fit(counts)
    with pytest.raises(ValueError, match="give the reward_range"):
        TabularCCVL(0.5, alpha="hoeffding").fit(chain([0.0], [4]))


def test_a_union_lowers_the_confidence_of_each_event() -> None:
    counts = gridlog()
    pairs, log = counts.visits.size, counts.visits.size * 1000
    plain = TabularCCVL(0.95, deltas=[0.1 / log, 0.1 / pairs]).fit(counts).unwrap()
    for union, k in (("pairs_and_counts", 0), ("pairs", 1)):
        together = TabularCCVL(0.95, deltas=[0.1], union=union).fit(counts).unwrap()  # pyrefly: ignore
        np.testing.assert_allclose(together.q[counts.seen][..., 0], plain.q[counts.seen][..., k], atol=1e-7)


def test_values_at_any_confidence() -> None:
    counts = gridlog()
    found = TabularCCVL(0.95, deltas=delta_grid(5, 1e-4)).fit(counts).unwrap()
    assert isinstance(found, ConfidenceValues)
    assert found.n_actions == 4
    states, deltas = np.array([3, 3, 40]), np.array([1e-4, 0.05, 0.1, 1.0])
    q = found.q_values(states, deltas)
    assert q.shape == (3, 4, 4)
    np.testing.assert_array_equal(q[1, 1], found.q[3, :, 2])  # 0.05 counts as the grid's 0.01
    np.testing.assert_array_equal(q[2, 2], found.q[40, :, 3])
    np.testing.assert_array_equal(
        found.q_values(states, np.float32(found.deltas).astype(float))[0, 3], found.q[3, :, 3]
    )
    np.testing.assert_array_equal(found.values(0.05), found.q[..., 2].max(1))
    np.testing.assert_array_equal(found.policy(0.05), found.q[..., 2].argmax(1))
    low, high = found.return_range
    assert ((found.bounds(1e-4) >= low) & (found.bounds(1e-4) <= high)).all()
    assert found.q.min() < low
    for bad, words in ((1e-5, "below the grid, which starts at 0.0001"), (0.0, "outside"), (1.5, "outside")):
        with pytest.raises(ValueError, match=words):
            found.policy(bad)
    with pytest.raises(ValueError, match="outside 0 to 48"):
        found.q_values(np.array([49]), deltas)
    with pytest.raises(TypeError, match="whole numbers"):
        found.q_values(np.array([0.5]), deltas)


def test_single_precision_and_progress() -> None:
    counts, calls = gridlog(), []
    for budget in BUDGETS:
        double = TabularCCVL(0.95, budget=budget, deltas=delta_grid(50)).fit(counts).unwrap()
        solver = TabularCCVL(0.95, budget=budget, deltas=delta_grid(50), dtype="float32")
        single = solver.fit(counts, progress=lambda done, total: calls.append((done, total))).unwrap()
        assert single.q.dtype == np.float32
        assert (np.diff(single.q, axis=-1) >= 0).all()
        np.testing.assert_allclose(single.q[counts.seen], double.q[counts.seen], atol=2e-4)
    assert calls == [(k + 1, 50) for k in range(50)] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": 1.0}, "gamma"),
        ({"alpha": 0.0}, "ask the box at delta = 1"),
        ({"alpha": "bernstein"}, "hoeffding"),
        ({"budget": "cube"}, "'box', 'sum', 'product'"),
        ({"deltas": [0.1, 0.1]}, "ascend"),
        ({"deltas": [0.0, 0.1]}, "outside"),
        ({"budget": "sum", "trivial": False}, "needs the trivial bound"),
        ({"reward_range": (1, 0)}, "reward_range is"),
        ({"reward_range": (0, 1), "return_range": (0, 1)}, "not both"),
        ({"tol": 0.0}, "tol=0"),
        ({"max_sweeps": 0}, "max_sweeps=0"),
    ],
)
def test_settings_out_of_range(changes: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        TabularCCVL(**({"gamma": 0.9} | changes))


def test_what_single_precision_leaves_is_in_the_error() -> None:
    shifted = chain([reward + 1000 for reward in REWARDS])
    for budget, counts in itertools.product(BUDGETS, (gridlog("broad", 300), shifted)):
        kinds = {"alpha": 0.3, "budget": budget, "tol": 1e-4, "deltas": delta_grid(100, 1e-8)}
        exact = TabularCCVL(0.95, **kinds).fit(counts)
        rough = TabularCCVL(0.95, **kinds, dtype="float32").fit(counts)
        off = np.abs(rough.q - exact.q)[counts.seen].max()
        assert 0 < off <= rough.error + exact.error


@pytest.mark.parametrize("gamma", [0.0, 0.9])
@pytest.mark.parametrize("reward", [1e8, -1e8])
@pytest.mark.parametrize("budget", BUDGETS)
def test_unseen_actions_rank_last_where_values_are_large_and_equal(budget: Budget, reward: float, gamma: float) -> None:
    never = np.zeros(2, dtype=bool)
    counts = Counts.from_arrays(np.zeros(2, int), np.ones(2, int), np.full(2, reward), np.zeros(2, int), never)
    solver = TabularCCVL(gamma, alpha=0.1, budget=budget, deltas=[1e-3, 1.0], tol=1e3, dtype="float32")
    found = solver.fit(counts).unwrap()
    assert (found.q[0, 0] < found.q[0, 1]).all()


def test_confidences_next_to_zero_give_finite_values() -> None:
    solver = TabularCCVL(0.9, alpha=0.3, deltas=[5e-324, 1e-300, 1.0])
    found = solver.fit(chain()).unwrap()
    assert np.isfinite(found.q).all()
    expected = [theory.chain_bound(REWARDS, VISITS, delta, 0.9, 0.3, "box") for delta in found.deltas]
    np.testing.assert_allclose(found.q[0, 0], expected, atol=1e-8)
