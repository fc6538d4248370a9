"""Small random problems with every awkward case in them."""

from typing import NamedTuple

import numpy as np
import pytest

from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics


class Problem(NamedTuple):
    prior: GaussianHierarchy
    features: np.ndarray
    rewards: np.ndarray
    codes: np.ndarray
    m: int

    @property
    def stats(self) -> TaskStatistics:
        return TaskStatistics.from_rows(self.features, self.rewards, self.codes, tasks=np.arange(self.m))

    @property
    def raw(self) -> tuple:
        return self.prior.mu_q, self.prior.Sigma_q, self.prior.Sigma_0, self.prior.sigma


def _cov(rng: np.random.Generator, d: int, rank: int) -> np.ndarray:
    root = rng.standard_normal((d, rank))
    return root @ root.T / max(d, 1)


def make_problem(
    seed: int = 0, d: int = 3, counts: tuple[int, ...] = (0, 1, 2, 7, 7, 12), rank_q: int = 3, rank_0: int = 3
) -> Problem:
    """Tasks without rows, with fewer rows than features and with more; covariances of the ranks asked for."""
    rng = np.random.default_rng(seed)
    prior = GaussianHierarchy(rng.standard_normal(d), _cov(rng, d, rank_q), _cov(rng, d, rank_0), 0.3 + rng.random())
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = rng.uniform(-1, 1, (codes.size, d))
    theta = prior.sample(len(counts), rng)[1]
    rewards = np.sum(features * theta[codes], axis=1) + prior.sigma * rng.standard_normal(codes.size)
    return Problem(prior, features, rewards, codes, len(counts))


@pytest.fixture(scope="session")
def problem():
    """The factory of problems."""
    return make_problem
