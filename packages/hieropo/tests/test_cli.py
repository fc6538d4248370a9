"""The command: verbs, files, clear errors, nothing half-written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hieropo import HierOPO, TaskStatistics, fit_hyperparameters, load
from hieropo.cli import main

ROWS, ACTIONS, FEATURES, TASKS = 300, 4, 3, 6


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A log, contexts with a mask, and a log with propensities; and the arrays behind them."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=FEATURES) + 0.4 * rng.normal(size=(TASKS, FEATURES))
    code = rng.integers(TASKS, size=2 * ROWS)
    names = np.array([f"user-{k}" for k in code])
    phi = rng.uniform(-1, 1, (2 * ROWS, ACTIONS, FEATURES))
    action = rng.integers(ACTIONS, size=2 * ROWS)
    taken = phi[np.arange(2 * ROWS), action]
    reward = np.sum(taken * theta[code], axis=1) + 0.3 * rng.normal(size=2 * ROWS)
    mask = rng.random((ROWS, ACTIONS)) < 0.7
    mask[:, 0] = True
    arrays = {
        "features": taken[:ROWS], "rewards": reward[:ROWS], "task_ids": names[:ROWS], "mask": mask,
        "contexts": phi[ROWS:], "where": np.where(np.arange(ROWS) < 3, "nobody", names[ROWS:]),
    }  # fmt: skip
    np.savez(tmp_path / "log.npz", **{name: arrays[name] for name in ("features", "rewards", "task_ids")})
    np.savez(tmp_path / "contexts.npz", action_features=phi[ROWS:], task_ids=arrays["where"], mask=mask)
    np.savez(
        tmp_path / "judge.npz", action_features=phi[ROWS:], task_ids=names[ROWS:], actions=action[ROWS:],
        rewards=reward[ROWS:], propensities=np.full(ROWS, 1 / ACTIONS),
    )  # fmt: skip
    return arrays


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


def test_fit_learns_the_prior_and_saves_the_policy(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer, shown = run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz", "--delta", 0.05)
    assert status == 0
    assert "learning the prior" in shown
    stats = TaskStatistics.from_rows(data["features"], data["rewards"], data["task_ids"])
    prior = fit_hyperparameters(stats, tolerance=1e-6).prior
    assert answer["sigma"] == pytest.approx(prior.sigma, rel=1e-9)
    saved = load(tmp_path / "policy.npz")
    assert (saved.delta, saved.statistics.n) == (0.05, ROWS)
    assert answer["alpha"] == saved.alpha == HierOPO(prior, delta=0.05).alpha


def test_fit_takes_a_given_prior(data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--sigma", 0.3, "--sigma-0", 0.4, "--sigma-q", 1.0, "--alpha", 0)
    status, answer, _ = run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz", *words)
    assert (status, answer["prior"], answer["alpha"]) == (0, "given", 0.0)
    np.testing.assert_allclose(answer["Sigma_0"], 0.16 * np.eye(FEATURES))


def test_predict_writes_the_choices(data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz")
    status, answer, _ = run(capsys, "predict", tmp_path / "policy.npz", tmp_path / "contexts.npz", tmp_path / "out.npz")
    assert (status, answer["contexts"], answer["of_new_tasks"]) == (0, ROWS, 3)
    policy, out = load(tmp_path / "policy.npz"), np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(out["actions"], policy.predict(data["contexts"], data["where"], data["mask"]))
    assert np.isnan(out["mean"][~data["mask"]]).all()
    bounds = policy.lower_bound(data["contexts"], data["where"])
    np.testing.assert_allclose(out["lower_bound"][data["mask"]], bounds[data["mask"]])
    assert answer["mean_lower_bound"] == pytest.approx(np.where(data["mask"], bounds, -np.inf).max(axis=1).mean())


def test_evaluate_gives_all_estimators(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz")
    status, answer, _ = run(capsys, "evaluate", tmp_path / "policy.npz", tmp_path / "judge.npz")
    assert status == 0
    assert set(answer) == {"logged", "dm", "ips", "snips", "dr"}
    file = np.load(tmp_path / "judge.npz")
    chosen = load(tmp_path / "policy.npz").predict(file["action_features"], file["task_ids"])
    by_hand = np.mean((chosen == file["actions"]) * ACTIONS * file["rewards"])
    assert answer["ips"]["value"] == pytest.approx(by_hand)
    assert answer["dr"]["low"] > answer["logged"]  # the policy is far better than uniform logging


def test_info_shows_the_policy_and_a_task(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz")
    status, answer, _ = run(capsys, "info", tmp_path / "policy.npz")
    policy = load(tmp_path / "policy.npz")
    assert (status, answer["class"], answer["tasks"], answer["rows"]) == (0, "HierOPO", TASKS, ROWS)
    np.testing.assert_allclose(answer["hyper_mean"], policy.hyper_posterior.mean)
    _, answer, _ = run(capsys, "info", tmp_path / "policy.npz", "--task", "user-2")
    assert answer["rows"] == np.sum(data["task_ids"] == "user-2")
    np.testing.assert_allclose(answer["mean"], policy.posterior("user-2").mean)


def test_integer_labels(data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = np.array([int(name[5:]) for name in data["task_ids"]])
    np.savez(tmp_path / "log.npz", features=data["features"], rewards=data["rewards"], task_ids=codes)
    run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz")
    status, answer, _ = run(capsys, "info", tmp_path / "policy.npz", "--task", "2")
    assert (status, answer["task"]) == (0, 2)


def test_tables_for_people(data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (("fit", "log.npz", "policy.npz"), "Saved to"),
        (("info", "policy.npz"), "mean of tasks"),
        (("info", "policy.npz", "--task", "user-1"), "± own rows"),
        (("predict", "policy.npz", "contexts.npz", "out.npz"), "mean lower bound"),
        (("evaluate", "policy.npz", "judge.npz"), "effective rows"),
    ):
        paths = [str(tmp_path / word) if word.endswith(".npz") else word for word in words]
        assert main(paths) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "absent.npz", "policy.npz"), "absent.npz"),
        (("fit", "text.npz", "policy.npz"), "not an .npz file"),
        (("fit", "contexts.npz", "policy.npz"), "lacks features, rewards; it holds"),
        (("fit", "nan.npz", "policy.npz"), "rewards[1] is nan"),
        (("fit", "log.npz", "policy.npz", "--sigma-0", "0.4"), "give --sigma and --sigma-q too"),
        (("fit", "log.npz", "policy.npz", "--alpha", "-1"), "give alpha >= 0"),
        (("fit", "log.npz", "policy.npz", "--alpha", "1", "--delta", "0.1"), "give one of them"),
        (("fit", "thin.npz", "policy.npz"), "the prior cannot be learned"),
        (("info", "log.npz"), "not a file that hieropo saved"),
        (("evaluate", "saved.npz", "log.npz"), "lacks action_features, actions, propensities"),
        (("info", "saved.npz", "--task", "user-9"), "unknown task 'user-9'"),
        (("fit", "log.npz", "log.npz"), "is read and would be written over"),
        (("predict", "saved.npz", "contexts.npz", "saved.npz"), "is read and would be written over"),
        (("predict", "saved.npz", "contexts.npz", "contexts.npz"), "is read and would be written over"),
        (("fit", "log.npz", "absent/policy.npz"), "does not exist"),
        (("fit", "log.npz", "policy.npz", "--kind", "paper"), "give --delta with it"),
        (("fit", "objects.npz", "policy.npz"), "array 'features' holds Python objects"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.npz").write_text("no arrays here")
    np.savez(tmp_path / "objects.npz", features=np.array([{}]), rewards=np.zeros(1), task_ids=np.zeros(1, int))
    np.savez(tmp_path / "nan.npz", features=np.ones((2, 1)), rewards=np.array([1.0, np.nan]), task_ids=np.zeros(2, int))
    np.savez(tmp_path / "thin.npz", features=np.eye(2)[:1], rewards=np.ones(1), task_ids=np.zeros(1, int))
    assert main(["fit", str(tmp_path / "log.npz"), str(tmp_path / "saved.npz")]) == 0
    capsys.readouterr()
    before = {path.name for path in tmp_path.iterdir()}
    status = main([str(tmp_path / word) if word.endswith(".npz") else word for word in words])
    captured = capsys.readouterr()
    assert status == 2
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_failed_fit_leaves_the_old_policy(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz")
    before = (tmp_path / "policy.npz").read_bytes()
    status, _, _ = run(capsys, "fit", tmp_path / "log.npz", tmp_path / "policy.npz", "--alpha", "-1")
    assert status == 2
    assert (tmp_path / "policy.npz").read_bytes() == before


def test_demo_shows_the_effect(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "demo")
    assert status == 0
    losses = answer["suboptimality"]
    assert losses["Hier"] < min(losses["Flat"], losses["Global"])
    assert main(["demo"]) == 0
    assert "As Hier sees it".lower() in capsys.readouterr().out.lower()
