"""Sufficient statistics: sums by brute force, labels, merging and forgetting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hieropo.statistics import TaskStatistics


def brute_force(features, rewards, ids):
    out = {}
    for phi, y, task in zip(features, rewards, ids, strict=True):
        count, gram, moment, square = out.get(task, (0, 0.0, 0.0, 0.0))
        out[task] = (count + 1, gram + np.outer(phi, phi), moment + phi * y, square + y * y)
    return out


def assert_same(stats, expected):
    assert stats.tasks.tolist() == sorted(expected)
    for s, task in enumerate(sorted(expected)):
        count, gram, moment, square = expected[task]
        assert stats.count[s] == count
        np.testing.assert_allclose(stats.gram[s], gram, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(stats.moment[s], moment, rtol=1e-12, atol=1e-12)
        assert stats.square[s] == pytest.approx(square, rel=1e-12)


def assert_close(a, b):
    assert a.tasks.tolist() == b.tasks.tolist()
    np.testing.assert_array_equal(a.count, b.count)
    for name in ("gram", "moment", "square"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labels", [[3, 7, 12], [-(10**18), 0, 10**18], ["b", "a", "zebra"], [5]])
@pytest.mark.parametrize("ordered", [False, True])
def test_equals_sums_over_rows(labels, ordered):
    rng = np.random.default_rng(0)
    ids = rng.choice(np.array(labels), 200)
    ids = np.sort(ids) if ordered else ids
    features, rewards = rng.standard_normal((200, 3)), rng.standard_normal(200)
    assert_same(TaskStatistics.from_rows(features, rewards, ids), brute_force(features, rewards, ids.tolist()))


def test_more_tasks_than_one_radix_digit():
    rng = np.random.default_rng(1)
    ids = rng.permutation(70_000)  # beyond 16 bits: two passes of the radix sort
    rewards = rng.standard_normal(70_000)
    stats = TaskStatistics.from_rows(np.ones((70_000, 1)), rewards, ids)
    np.testing.assert_array_equal(stats.moment[ids, 0], rewards)


def test_a_task_larger_than_the_cache_block():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((90_000, 4))
    rewards, ids = rng.standard_normal(90_000), np.where(rng.random(90_000) < 0.02, 1, 0)
    stats = TaskStatistics.from_rows(features, rewards, ids)
    for task in (0, 1):
        np.testing.assert_allclose(stats.gram[task], features[ids == task].T @ features[ids == task], rtol=1e-11)


def test_single_precision_is_promoted():
    features = np.full((3, 1), 1 + 2**-20, np.float32)
    stats = TaskStatistics.from_rows(features, np.ones(3, np.float32), [0, 0, 0])
    assert stats.gram.dtype == np.float64
    assert stats.gram[0, 0, 0] == 3 * (1 + 2**-20) ** 2


def test_listed_tasks_without_rows():
    stats = TaskStatistics.from_rows([[1.0]], [2.0], ["b"], tasks=["c", "a"])
    assert stats.tasks.tolist() == ["a", "b", "c"]
    assert stats.count.tolist() == [0, 1, 0]
    nothing = TaskStatistics.from_rows(np.empty((0, 2)), [], [], tasks=[4, 2])
    assert (nothing.m, nothing.n, nothing.d) == (2, 0, 2)


def test_select_drop_and_index():
    stats = TaskStatistics.from_rows(np.eye(3), [1.0, 2.0, 3.0], ["x", "y", "z"])
    assert stats.select(["z", "x"]).tasks.tolist() == ["x", "z"]
    assert stats.drop(["y"]).square.tolist() == [1.0, 9.0]
    assert stats.index("y") == 1
    assert stats.positions(["z", "w"]).tolist() == [2, -1]


def test_unknown_tasks_name_near_matches():
    stats = TaskStatistics.from_rows(np.eye(3), [1.0, 2.0, 3.0], ["alice", "bob", "carol"])
    with pytest.raises(KeyError, match="'alice'"):
        stats.index("alicia")
    with pytest.raises(KeyError, match="labels are strings"):
        stats.index(3)
    numbers = TaskStatistics.from_rows(np.eye(3), [1.0, 2.0, 3.0], [10, 20, 30])
    with pytest.raises(KeyError, match="near: 10, 20, 30"):
        numbers.index(19)
    with pytest.raises(KeyError, match="no task has been seen"):
        TaskStatistics.empty(2).index(1)


def test_arrays_are_read_only():
    stats = TaskStatistics.from_rows([[1.0]], [2.0], [0])
    with pytest.raises(ValueError, match="read-only"):
        stats.gram[0] = 1.0


rows = st.integers(0, 10**6).flatmap(lambda seed: st.tuples(st.just(seed), st.integers(0, 40), st.integers(1, 6)))


def random_log(seed, n, tasks):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)), rng.standard_normal(n), rng.integers(0, tasks, n)


@pytest.mark.property
@settings(max_examples=80, deadline=None, derandomize=True)
@given(a=rows, b=rows)
def test_merge_equals_concatenation(a, b):
    first, second = random_log(*a), random_log(*b)
    both = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    merged = TaskStatistics.from_rows(*first).merge(TaskStatistics.from_rows(*second))
    assert_close(merged, TaskStatistics.from_rows(*both))


@pytest.mark.property
@settings(max_examples=60, deadline=None, derandomize=True)
@given(log=rows, seed=st.integers(0, 10**6))
def test_order_of_rows_does_not_matter(log, seed):
    features, rewards, ids = random_log(*log)
    order = np.random.default_rng(seed).permutation(len(ids))
    shuffled = TaskStatistics.from_rows(features[order], rewards[order], ids[order])
    assert_close(TaskStatistics.from_rows(features, rewards, ids), shuffled)


@pytest.mark.property
@settings(max_examples=80, deadline=None, derandomize=True)
@given(log=rows, share=st.floats(0, 1))
def test_subtract_undoes_merge(log, share):
    features, rewards, ids = random_log(*log)
    gone = np.random.default_rng(log[0]).random(len(ids)) < share
    whole = TaskStatistics.from_rows(features, rewards, ids)
    left = whole.subtract(TaskStatistics.from_rows(features[gone], rewards[gone], ids[gone]))
    rest = TaskStatistics.from_rows(features[~gone], rewards[~gone], ids[~gone], tasks=whole.tasks)
    assert_close(left, rest)
    assert not left.gram[left.count == 0].any()


def test_forgetting_what_was_never_seen_is_refused():
    rng = np.random.default_rng(3)
    features, rewards, ids = rng.standard_normal((30, 3)), rng.standard_normal(30), np.repeat(["a", "b"], 15)
    stats = TaskStatistics.from_rows(features, rewards, ids)

    def forget(phi, y, task):
        return stats.subtract(TaskStatistics.from_rows(phi, y, task))

    with pytest.raises(KeyError, match="unknown task 'c'"):
        forget(features[:1], rewards[:1], ["c"])
    with pytest.raises(ValueError, match="cannot forget 16 rows of task 'a'"):
        forget(np.repeat(features[:1], 16, axis=0), np.repeat(rewards[:1], 16), ["a"] * 16)
    with pytest.raises(ValueError, match="cannot forget 1 rows"):  # larger than all that was seen in that direction
        forget(10 * features[:1], rewards[:1], ["a"])
    with pytest.raises(ValueError, match="cannot forget 15 rows"):  # right count and features, other rewards
        forget(features[:15], rewards[15:], ids[:15])
    with pytest.raises(ValueError, match="cannot forget 1 rows"):  # right features, impossible reward
        forget(features[:1], [1e3], ["a"])
    with pytest.raises(TypeError, match="strings on one side"):
        forget(features[:1], rewards[:1], [0])
    with pytest.raises(ValueError, match="2 features given"):
        forget(features[:1, :2], rewards[:1], ["a"])


@pytest.mark.parametrize(
    ("features", "rewards", "ids", "error", "message"),
    [
        ([[1.0], [np.nan]], [1.0, 1.0], [0, 1], ValueError, r"features\[1\] is not finite \(1 such rows\)"),
        ([[1.0], [1.0]], [1.0, np.inf], [0, 1], ValueError, r"rewards\[1\] is inf"),
        ([[1.0], [1e200]], [1.0, 1.0], [0, 1], ValueError, "overflow"),
        ([1.0, 2.0], [1.0, 1.0], [0, 1], ValueError, r"features has shape \(2,\)"),
        (np.empty((2, 0)), [1.0, 1.0], [0, 1], ValueError, "d >= 1"),
        ([[1.0], [1.0]], [1.0], [0, 1], ValueError, r"rewards has shape \(1,\)"),
        ([[1.0], [1.0]], [1.0, 1.0], [0], ValueError, r"task_ids has shape \(1,\)"),
        ([[1.0], [1.0]], [1.0, 1.0], [[0, 1]], ValueError, "one-dimensional"),
        ([[1.0], [1.0]], [1.0, 1.0], [0.0, 1.0], TypeError, "holds float"),
        ([[1.0], [1.0]], [1.0, 1.0], [0, "a"], TypeError, "holds int, str"),
        ([[1.0], [1.0]], [1.0, 1.0], [True, False], TypeError, "bool"),
        ([[1.0], [1.0]], [1.0, 1.0], [0, 2**70], (TypeError, ValueError), "int"),
        ([[1.0], [1.0]], [1.0, 1.0], np.array([0, 2**63], np.uint64), ValueError, "does not fit"),
        ([[1.0], [1.0]], [1.0, 1.0], ["a", "b\0"], ValueError, "NUL"),
        ([[1j], [1.0]], [1.0, 1.0], [0, 1], TypeError, "real numbers"),
    ],
)
def test_bad_rows_are_refused(features, rewards, ids, error, message):
    with pytest.raises(error, match=message):
        TaskStatistics.from_rows(features, rewards, ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": np.array([1, 0])}, "strictly increasing"),
        ({"count": np.array([1, -1])}, "negative"),
        ({"gram": np.zeros((2, 1, 2))}, "gram has shape"),
        ({"moment": np.zeros((2, 2))}, "moment has shape"),
        ({"square": np.array([1.0, np.nan])}, "square holds"),
    ],
)
def test_bad_statistics_are_refused(change, message):
    good = {"tasks": np.arange(2), "count": np.ones(2, int), "gram": np.ones((2, 1, 1))}
    good |= {"moment": np.ones((2, 1)), "square": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        TaskStatistics(**(good | change))


def test_merging_different_kinds_is_refused():
    a, b = TaskStatistics.from_rows([[1.0]], [1.0], [0]), TaskStatistics.from_rows([[1.0]], [1.0], ["x"])
    with pytest.raises(TypeError, match="cannot merge"):
        a.merge(b)
    with pytest.raises(ValueError, match="2 features given"):
        a.merge(TaskStatistics.empty(2))
    assert a.merge(TaskStatistics.empty(1)) is a


@pytest.mark.parametrize("entries", [1, 7, 64])
def test_long_tasks_are_summed_piece_by_piece(monkeypatch, entries):
    """Pieces shorter than a task, with tasks of equal and of different length, shuffled."""
    monkeypatch.setattr("hieropo.statistics._CHUNK_ENTRIES", entries)
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat(np.arange(5), [1, 30, 30, 7, 64]))
    features, rewards = rng.standard_normal((codes.size, 2)), rng.standard_normal(codes.size)
    stats = TaskStatistics.from_rows(features, rewards, codes)
    for task in range(5):
        phi, y = features[codes == task], rewards[codes == task]
        np.testing.assert_allclose(stats.gram[task], phi.T @ phi, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(stats.moment[task], phi.T @ y, rtol=1e-12, atol=1e-12)
        assert stats.square[task] == pytest.approx(y @ y, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"count": [1.5]}, TypeError, "count has dtype float64"),
        ({"gram": -np.ones((1, 1, 1))}, ValueError, "sum of squares"),
        ({"square": [-1.0]}, ValueError, "sum of squares"),
        ({"gram": 1j * np.ones((1, 1, 1))}, TypeError, "gram has dtype complex128"),
    ],
)
def test_impossible_statistics_are_refused(changes, error, message):
    parts = {"tasks": ["a"], "count": [1], "gram": np.ones((1, 1, 1)), "moment": np.ones((1, 1)), "square": [1.0]}
    with pytest.raises(error, match=message):
        TaskStatistics(**{name: np.asarray(value) for name, value in (parts | changes).items()})


def test_masked_entries_are_not_taken_for_data():
    rows = {"features": np.ones((2, 1)), "rewards": np.ones(2), "task_ids": np.arange(2)}
    for name, values in rows.items():
        with pytest.raises(TypeError, match=f"{name} is a masked array"):
            TaskStatistics.from_rows(**rows | {name: np.ma.masked_array(values)})


def test_integers_beyond_64_bits_are_named_as_such():
    for labels in ([2**63, 1], [2**63, -1], [2**64, 0]):
        with pytest.raises(ValueError, match="does not fit a signed 64-bit integer"):
            TaskStatistics.from_rows(np.ones((2, 1)), np.ones(2), labels)
