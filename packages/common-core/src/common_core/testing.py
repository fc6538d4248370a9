"""The pytest plugin of the workspace, loaded by ``-p common_core.testing``, and assertions for stochastic methods.

Markers (tests of every kind run unless ``-m`` deselects them):

- ``property``: hypothesis properties;
- ``peer``: compares with another library, which only the dependency group ``peers`` installs;
- ``gpu``: needs a CUDA device and is skipped, with the reason, where there is none;
- ``slow``: longer than a few seconds.

Fixtures: ``seed`` (the value of ``--seed``, 0 by default) and ``rng`` (a NumPy generator for this test and seed). A
failing test that used them shows the seed. Every process keeps to one thread. Where hypothesis is installed, a profile
without deadline is loaded, derandomised if the variable ``CI`` is set.

The plugin needs numpy and pytest only, and imports neither torch nor jax before a test does or a ``gpu`` test runs.
"""

# ruff: noqa: E402 (the variables below must be set first)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load, so before any import that brings numpy

import functools
import importlib
import importlib.util
import sys
from collections.abc import Generator

import numpy as np
import pytest
from numpy.typing import ArrayLike

from common_core import stats
from common_core.seeding import numpy_rng

MARKERS = {
    "property": "checks a property over examples drawn by hypothesis",
    "peer": "compares with another library, installed by the dependency group `peers`",
    "gpu": "needs a CUDA device; skipped where there is none",
    "slow": "takes longer than a few seconds",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--seed``."""
    parser.addoption("--seed", type=int, default=0, help="seed of the fixtures `seed` and `rng` (default: 0)")


@pytest.hookimpl(tryfirst=True)  # before hypothesis's own plugin, so that --hypothesis-profile still decides
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and the hypothesis profile."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if importlib.util.find_spec("hypothesis") is not None:
        settings = importlib.import_module("hypothesis").settings
        settings.register_profile("repertory", deadline=None, derandomize=bool(os.environ.get("CI")))
        settings.load_profile("repertory")


def pytest_report_header(config: pytest.Config) -> str:
    """Show the seed."""
    return f"seed: {config.getoption('--seed')}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip ``gpu`` tests where there is no device; keep torch to one thread."""
    if item.get_closest_marker("gpu") is not None and (reason := _why_no_gpu()):
        pytest.skip(reason)
    if "torch" in sys.modules:
        _one_torch_thread()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the seed to the report of a failing test that used it."""
    report = yield
    if report.failed and {"seed", "rng"} & set(getattr(item, "fixturenames", ())):
        report.sections.append(("Seed", f"--seed={item.config.getoption('--seed')}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run, from ``--seed``."""
    return request.config.getoption("--seed")


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> np.random.Generator:
    """A generator of this test's own: it depends on the seed and the test's name, not on the order of the tests."""
    return numpy_rng(seed, request.node.path.stem, request.node.name)


@functools.cache
def _why_no_gpu() -> str | None:
    """None with a CUDA device, else why there is none; torch decides, or jax where there is no torch."""
    if importlib.util.find_spec("torch") is not None:
        cuda = importlib.import_module("torch").cuda
        return None if cuda.is_available() else "no CUDA device: torch.cuda.is_available() is false"
    if importlib.util.find_spec("jax") is not None:
        backend = importlib.import_module("jax").default_backend()
        return None if backend == "gpu" else f"no CUDA device: the backend of jax is {backend!r}"
    return "no CUDA device that could be found: neither torch nor jax is installed"


@functools.cache
def _one_torch_thread() -> None:
    torch = sys.modules["torch"]
    if hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


def assert_unbiased(samples: ArrayLike, expected: ArrayLike, *, false_alarm: float = 1e-6) -> None:
    """Assert that independent samples have the expected mean, coordinate by coordinate.

    Student's t test of each coordinate at level ``false_alarm / coordinates``: for an unbiased estimator the assertion
    fails with at most that probability, exactly so for normal samples and by the central limit theorem for others.

    Args:
        samples: Independent draws along the first axis, shape ``[n, ...]``, n at least 30.
        expected: Their mean, shape ``[...]`` or one that broadcasts to it.
        false_alarm: Probability that the assertion fails although the mean is right.

    Raises:
        AssertionError: If some coordinate is too far away; says which, and by how many standard errors.
        ValueError: If there are fewer than 30 samples, or `false_alarm` is not in (0, 1).

    Example:
        >>> draws = np.random.default_rng(0).normal(2.0, 1.0, size=(1000, 3))
        >>> assert_unbiased(draws, 2.0)
    """
    __tracebackhide__ = True
    x = np.asarray(samples, dtype=np.float64)
    n = len(x) if x.ndim else 0
    if n < 30 or x.size == 0 or not 0 < false_alarm < 1:
        raise ValueError(f"samples of shape {x.shape}, false_alarm={false_alarm}: need n >= 30 and a level in (0, 1)")
    mean = x.mean(axis=0)
    target = np.broadcast_to(np.asarray(expected, dtype=np.float64), mean.shape)
    rounding = 8 * np.finfo(np.float64).eps * np.abs(x).max(axis=0)  # for coordinates that do not vary
    error = x.std(axis=0, ddof=1) / np.sqrt(n) + rounding
    limit = stats.student_t_quantile(1 - false_alarm / mean.size / 2, n - 1)
    away = np.abs(mean - target)
    if not np.all(away <= limit * error):  # so that NaN fails
        score = np.divide(away, error, out=np.where(away == 0, 0.0, np.inf), where=error != 0)
        worst = np.unravel_index(np.argmax(np.nan_to_num(score, nan=np.inf)), score.shape)
        where = f" at {tuple(int(i) for i in worst)}" if worst else ""
        raise AssertionError(
            f"biased{where}: mean {mean[worst]:.6g} of {n} samples, expected {target[worst]:.6g}, "
            f"{score[worst]:.1f} standard errors away (limit {limit:.1f} for a false alarm of {false_alarm:g})"
        )


def assert_rate(sizes: ArrayLike, errors: ArrayLike, expected: float, *, tolerance: float) -> None:
    """Assert that errors shrink (or costs grow) as ``size ** expected``.

    Compares the slope of `stats.fit_rate` with the expected one. For deterministic errors there is no false alarm;
    for stochastic ones it is the probability that the fitted slope strays by `tolerance`, which the test must state.

    Args:
        sizes: Positive sizes, shape ``[n]``.
        errors: Positive errors, shape ``[n]``.
        expected: The exponent.
        tolerance: Largest accepted distance between the exponents.

    Raises:
        AssertionError: If the slope is further away than `tolerance`.
        ValueError: As `stats.fit_rate`.

    Example:
        >>> assert_rate([10, 100, 1000], [1.0, 0.11, 0.01], -1.0, tolerance=0.05)
    """
    __tracebackhide__ = True
    slope = stats.fit_rate(sizes, errors)
    if not abs(slope.value - expected) <= tolerance:
        raise AssertionError(f"rate {slope:.3f}, expected {expected:g} within {tolerance:g}")


def assert_improvement(new: ArrayLike, old: ArrayLike, *, p: float = 0.01, seed: int = 0) -> None:
    """Assert that `new` scores are greater than `old` ones by a paired permutation test.

    If `new` is no better, the assertion passes by chance with probability at most `p`.

    Args:
        new: Scores, shape ``[n]``; greater is better.
        old: Scores of the same seeds or tasks, shape ``[n]``.
        p: Level of the test.
        seed: Seed of the random sign patterns (used for more than 16 pairs).

    Raises:
        AssertionError: If the p-value is above `p`.
        ValueError: If so few pairs could never reach `p`, or as `stats.permutation_test`.

    Example:
        >>> assert_improvement([2, 3, 3, 4, 5, 6, 7], [1, 2, 1, 2, 3, 5, 5])
    """
    __tracebackhide__ = True
    if np.size(new) < 1 or 2.0 ** -min(np.size(new), 60) > p:
        raise ValueError(f"{np.size(new)} pairs cannot reach p={p:g}; use at least {int(np.ceil(-np.log2(p)))}")
    value = stats.permutation_test(new, old, rng=np.random.default_rng(seed), resamples=1 << 16)
    if value > p:
        gain = float(np.mean(np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)))
        raise AssertionError(f"no improvement: mean gain {gain:.6g} over {np.size(new)} pairs, p = {value:.3g} > {p:g}")
