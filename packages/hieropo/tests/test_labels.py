"""Factorising labels: counted, sorted and digested labels give what sorting gives."""

import numpy as np
import pytest

from hieropo import labels
from hieropo.labels import factorise


def assert_as_sorted(given: np.ndarray) -> None:
    tasks, codes = factorise(given)
    expected, positions = np.unique(given, return_inverse=True)
    np.testing.assert_array_equal(tasks, expected)
    np.testing.assert_array_equal(codes, positions)
    assert tasks.dtype == given.dtype


# Many enough for digests, and not a whole number of blocks.
N = 3 * 4096 + 17


@pytest.mark.parametrize("distinct", [1, 50, N])
def test_many_strings(distinct):
    rng = np.random.default_rng(0)
    texts = np.array(["", "a", "aa", "b\x7f", "é", "日本", "𝛉", *(f"user-{k:x}" for k in range(distinct))])
    assert_as_sorted(rng.choice(texts, N))


def test_strings_in_other_layouts():
    texts = np.random.default_rng(0).choice(np.array(["x", "yy", "zzz"]), 2 * N)
    assert_as_sorted(texts[::2])
    assert_as_sorted(texts.astype(">U5"))


def test_colliding_digests_are_noticed(monkeypatch):
    monkeypatch.setattr(labels, "_digest", lambda given: np.zeros(given.size, np.uint64))
    assert_as_sorted(np.random.default_rng(0).choice(np.array(["a", "b", "c"]), N))


@pytest.mark.parametrize("low", [-5, 0, 10**12])
@pytest.mark.parametrize("gap", [1, 7, 10**9])
def test_integers(low, gap):
    assert_as_sorted(low + gap * np.random.default_rng(0).integers(0, 30, 500))
