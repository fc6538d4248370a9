import os
import subprocess
import sys

import numpy as np
import pytest

from common_core.testing import assert_improvement, assert_rate, assert_unbiased

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test file under the plugin in a process of its own."""
    monkeypatch.delenv("CI", raising=False)

    def runner(code: str, *options: str, config: str = ""):
        pytester.makeini(
            f"[pytest]\naddopts = -p common_core.testing --strict-markers\nfilterwarnings = error\n{config}"
        )
        pytester.makepyfile(test_it=code)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return runner


def test_markers_are_registered_and_everything_runs_unless_deselected(run):
    code = """
        import pytest
        @pytest.mark.parametrize("x", [0])
        def test_unit(x): pass
        @pytest.mark.property
        def test_property(): pass
        @pytest.mark.peer
        def test_peer(): pass
        @pytest.mark.slow
        def test_slow(): pass
    """
    run(code).assert_outcomes(passed=4)
    run(code, "-m", "not peer and not slow").assert_outcomes(passed=2, deselected=2)
    run(code, "--markers").stdout.fnmatch_lines(["@pytest.mark.peer: *", "@pytest.mark.gpu: *"])


def test_gpu_tests_are_skipped_with_the_reason(run):
    code = """
        import sys, types, pytest
        sys.modules["torch"] = torch = types.ModuleType("torch")
        torch.__spec__ = sys.__spec__
        torch.cuda = types.SimpleNamespace(is_available=lambda: {available})
        @pytest.mark.gpu
        def test_device(): pass
        def test_other(): pass
    """
    result = run(code.format(available=False), "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*no CUDA device: torch.cuda.is_available() is false*"])
    run(code.format(available=True)).assert_outcomes(passed=2)


def test_gpu_tests_without_any_framework_say_so(run):
    code = """
        import importlib.util, pytest
        importlib.util.find_spec = lambda name: None
        @pytest.mark.gpu
        def test_device(): pass
    """
    run(code, "-rs").stdout.fnmatch_lines(["*neither torch nor jax is installed*"])


def test_nothing_heavy_is_imported_for_plain_tests(run):
    code = """
        import sys
        def test_it(rng):
            assert not {"torch", "jax", "ray", "matplotlib", "scipy"} & set(sys.modules)
    """
    run(code).assert_outcomes(passed=1)


def test_the_plugin_needs_only_numpy_and_pytest(pytester):
    pytester.makepyfile(test_it="def test_it(rng): rng.random()")
    hide = "import sys; sys.modules.update(dict.fromkeys(('hypothesis', 'torch', 'jax', 'rich')))\n"
    # Hidden modules have no spec to find, as where they are not installed.
    hide += "import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda n, *a: None if n in ('hypothesis', 'torch', 'jax', 'rich') else find(n, *a)\n"
    hide += (
        "import pytest; sys.exit(pytest.main(['-p', 'common_core.testing', '-p', 'no:cacheprovider', 'test_it.py']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide],
        cwd=pytester.path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_thread_by_default(run, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    code = """
        import os, sys, types
        def test_environment():
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            assert [os.environ[n] for n in names] == ["1", "1", "3"]  # what the user set stays
            sys.modules["torch"] = types.SimpleNamespace(set_num_threads=lambda n: setattr(os, "threads", n))
        def test_torch():
            assert os.threads == 1
    """
    run(code).assert_outcomes(passed=2)


SEEDED = """
    import pytest
    def test_a(rng, seed):
        assert False, f"numbers {seed} {rng.integers(2**40)}"
    @pytest.mark.parametrize("k", [1, 2])
    def test_b(rng, k):
        assert False, f"numbers {k} {rng.integers(2**40)}"
    def test_without(): assert False
"""


def numbers(result) -> list[str]:
    return sorted(
        {line.partition("AssertionError: ")[2] for line in result.outlines if "E  " in line and "numbers" in line}
    )


def test_seeds_are_shown_and_decide(run):
    first = run(SEEDED)
    first.stdout.fnmatch_lines(["seed: 0"])
    assert first.outlines.count("--seed=0") == 3  # not for the test that used no seed
    assert numbers(first) == numbers(run(SEEDED, "-k", "not without"))
    other = run(SEEDED, "--seed", "5")
    assert other.outlines.count("--seed=5") == 3
    assert not set(numbers(first)) & set(numbers(other))
    assert len({line.split()[-1] for line in numbers(first)}) == 3  # each test has numbers of its own


@pytest.mark.parametrize("ci", ["", "1"])
def test_hypothesis_gets_a_profile(run, monkeypatch, ci):
    monkeypatch.setenv("CI", ci)
    code = f"""
        from hypothesis import settings
        def test_it():
            assert settings.default.deadline is None
            assert settings.default.derandomize is {bool(ci)}
    """
    run(code).assert_outcomes(passed=1)


def test_another_hypothesis_profile_can_be_chosen(run):
    code = """
        from hypothesis import settings
        def test_it(): assert settings.default.deadline is not None
    """
    run(code, "--hypothesis-profile", "default").assert_outcomes(passed=1)


def test_assert_unbiased_accepts_the_mean_and_notices_a_shift():
    draws = np.random.default_rng(0).normal([0.0, 5.0], [1.0, 3.0], size=(2000, 2))
    assert_unbiased(draws, [0.0, 5.0])
    assert_unbiased(np.full((40, 3), 0.1), 0.1)
    with pytest.raises(AssertionError, match=r"biased at \(1,\): .* expected 6"):
        assert_unbiased(draws, [0.0, 6.0])
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(np.full(40, 0.1), 0.1001)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(np.full(40, np.nan), 0.0)


def test_assert_unbiased_keeps_its_false_alarm():
    # At level 5 % over 1000 normal samples the alarms are binomial: outside of [20, 85] with probability below 1e-5.
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        try:
            assert_unbiased(rng.normal(size=(30, 4)), 0.0, false_alarm=0.05)
        except AssertionError:
            alarms += 1
    assert 20 <= alarms <= 85


def test_assert_rate():
    sizes = np.array([10, 100, 1000])
    assert_rate(sizes, 3 / sizes, -1, tolerance=1e-9)
    with pytest.raises(AssertionError, match=r"rate -1.000 .* expected -0.5 within 0.1"):
        assert_rate(sizes, 3 / sizes, -0.5, tolerance=0.1)


def test_assert_improvement():
    old = np.random.default_rng(0).normal(size=20)
    assert_improvement(old + 0.5, old)
    with pytest.raises(AssertionError, match=r"no improvement: mean gain 0 over 20 pairs"):
        assert_improvement(old, old)
    with pytest.raises(AssertionError, match="no improvement"):
        assert_improvement(old - 0.5, old)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assert_unbiased(np.zeros(29), 0.0), "n >= 30"),
        (lambda: assert_unbiased(np.zeros(50), 0.0, false_alarm=0.0), "level in"),
        (lambda: assert_improvement([1.0, 2.0], [0.0, 0.0]), "use at least 7"),
        (lambda: assert_improvement([], []), "0 pairs"),
    ],
)
def test_assertions_that_could_not_decide_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
