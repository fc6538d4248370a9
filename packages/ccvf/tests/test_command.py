"""The command: its verbs, its answers as JSON, what is interrupted and goes on, and errors in one line."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccvf import cli_collect, cli_demo, training
from ccvf.cli import main
from ccvf.cli_evaluate import labels
from ccvf.cli_logs import n_states_of, read_log
from ccvf.cli_runs import Run
from ccvf.cli_settings import settings_of
from ccvf.cli_tabular import counts_of, load_values, solver_of
from ccvf.collecting import collect
from ccvf.coverage import coverage_of
from ccvf.datasets import lava_log
from ccvf.gridworlds import lava_world
from ccvf.io import load_checkpoint, load_transitions, save_transitions
from ccvf.saving import load_learner
from ccvf.transitions import Transitions

SMALL = ("--hidden", 16, "--batch", 8, "--confidences", 2)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


def quietly(*words: object) -> None:
    """A verb that ends well, and whose answer does not matter."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*map(str, words), "--json"]) == 0


@pytest.fixture(scope="module")
def lava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the gridworld."""
    file = tmp_path_factory.mktemp("logs") / "lava.npz"
    quietly("collect", "gridworld:lava", "--behaviour", "broad", "--frames", 1500, "--seed", 1, "--out", file)
    return file


@pytest.fixture(scope="module")
def poles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of numbers."""
    file = tmp_path_factory.mktemp("logs") / "poles.npz"
    quietly("collect", "CartPole-v1", "--frames", 400, "--envs", 2, "--out", file)
    return file


@pytest.fixture(scope="module")
def solved(lava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "solved"
    quietly("train", lava, "--out", folder, "--method", "tabular", "--gamma", 0.95)
    return folder


@pytest.fixture(scope="module")
def trained(poles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    quietly("train", poles, "--out", folder, *SMALL, "--updates", 30)
    return folder


def test_demo_and_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs ccvf[plot]")
    monkeypatch.setattr(cli_demo, "_DRAWS", 1)
    status, answer, _ = run(capsys, "demo", "--figure", tmp_path / "demo.svg")
    assert status == 0
    narrow, broad = answer["logs"]["narrow"], answer["logs"]["broad"]
    assert len(narrow["fixed"]) == len(answer["deltas"]) == 6
    # Exact values of policies, of one draw of each log that the seed fixes.
    assert narrow["fixed"][0] > 0.9 > narrow["fixed"][-1]
    assert broad["fixed"][-1] > 0.8 > 0.1 > broad["fixed"][0]
    # 160 episodes scatter by .35 each: a standard error of .03; the figures lie 5 of them above these.
    assert min(narrow["adaptive"], broad["adaptive"]) > 0.75
    assert (tmp_path / "demo.svg").read_text("utf-8").startswith("<svg")
    assert main(["demo"]) == 0
    assert "worse of the two" in capsys.readouterr().out


def test_collect_of_the_gridworld_is_the_library_s(lava: Path) -> None:
    data = load_transitions(lava)
    assert data.fingerprint() == lava_log("broad", 1500, 1).fingerprint()
    assert data.metadata["n_states"] == 49


def test_collect_takes_parts_that_lie_in_each_other(lava: Path, tmp_path: Path) -> None:
    for fraction in (0.1, 0.5):
        quietly("collect", lava, "--fraction", fraction, "--out", tmp_path / f"{fraction}.npz")
    small, large = (load_transitions(tmp_path / f"{fraction}.npz") for fraction in (0.1, 0.5))
    assert (len(small), len(large)) == (150, 750)
    rows = [
        {(int(s), int(a), float(r)) for s, a, r in zip(d.observations(), d.actions, d.rewards, strict=True)}
        for d in (small, large)
    ]
    assert rows[0] <= rows[1]
    whole = tmp_path / "direct.npz"
    quietly("collect", "gridworld:lava", "--behaviour", "broad", "--frames", 1500, "--seed", 1, "--fraction", 0.1,
            "--out", whole)  # fmt: skip
    assert len(load_transitions(whole)) == 150
    assert not (tmp_path / "direct.npz.whole").exists()


def test_collect_with_a_learner_that_learns(tmp_path: Path) -> None:
    out = tmp_path / "replay.npz"
    quietly("collect", "CartPole-v1", "--behaviour", "dqn", "--frames", 200, "--envs", 2, "--parts", 2, "--out", out)
    data = load_transitions(out)
    assert len(data) == 200
    assert data.metadata["collected"] == "DQN"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay.npz"]


def test_collect_with_what_was_trained(solved: Path, trained: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "again.npz"
    quietly(
        "collect", "gridworld:lava", "--behaviour", solved, "--delta", 0.5, "--frames", 60, "--envs", 2, "--out", out
    )
    data = load_transitions(out)
    values = Run.load(solved).values()
    wanted = values.q_values(np.arange(49), np.array([0.5]))[:, 0].argmax(-1)
    assert (data.actions == wanted[data.observations()]).all()
    status, _, shown = run(capsys, "collect", "gridworld:lava", "--behaviour", trained, "--out", tmp_path / "no.npz")
    assert status == 2
    assert "observations are (4,) in the log and () there" in shown


def test_an_interrupted_log_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("collect", "CartPole-v1", "--frames", 90, "--parts", 3, "--envs", 2)
    whole, broken = tmp_path / "whole.npz", tmp_path / "broken.npz"
    quietly(*words, "--out", whole)
    calls = []

    def interrupted(*given: Any, **options: Any) -> Transitions:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ccvf.collecting.collect", interrupted)
        status, answer, shown = run(capsys, *words, "--out", broken)
    assert (status, answer) == (130, None)
    assert "the same command goes on after them" in shown
    assert not broken.exists()
    status, _, shown = run(capsys, *words, "--seed", 5, "--out", broken)
    assert status == 2
    assert "holds parts of another log (other seed)" in shown
    quietly(*words, "--out", broken)
    assert load_transitions(broken).fingerprint() == load_transitions(whole).fingerprint()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.npz", "broken.npz"}
    status, _, shown = run(capsys, *words, "--out", broken)
    assert status == 2
    assert "is there already" in shown


def test_a_part_whose_drawing_was_interrupted_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("collect", "CartPole-v1", "--frames", 50, "--fraction", 0.2, "--out", tmp_path / "part.npz")

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transitions, "subsample", stop)
        assert run(capsys, *words)[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["part.npz.whole"]
    monkeypatch.setattr(cli_collect, "make_vector", stop)  # nothing is played again
    quietly(*words)
    assert len(load_transitions(tmp_path / "part.npz")) == 11  # a fifth of 56: 7 steps of 8 environments


def test_a_tabular_run(lava: Path, solved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in solved.iterdir()} == {"config.json", "values.npz", "history.json"}
    found, config = load_values(solved / "values.npz"), Run.load(solved).settings.config
    again = solver_of(config).fit(counts_of(load_transitions(lava), config))
    assert np.array_equal(found.q, again.q)
    assert found.q.shape == (49, 4, 60)
    status, answer, _ = run(capsys, "evaluate", solved, "--episodes", 12, "--deltas", 0.001, 1)
    assert status == 0
    (one,) = answer["runs"].values()
    assert [row["delta"] for row in one["fixed"]] == [0.001, 1.0]
    assert one["fixed"][1]["return"]["value"] > 0.4  # at random about .06 of the episodes reach the goal
    assert 0 <= one["adaptive"]["return"]["value"] <= 1
    assert sum(one["adaptive"]["belief"]["weights"]) == pytest.approx(1, abs=1e-5)


def test_calibrate_a_tabular_run(lava: Path, solved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs ccvf[plot]")
    other, curve = tmp_path / "other.npz", tmp_path / "curve.svg"
    quietly("collect", "gridworld:lava", "--behaviour", "broad", "--frames", 1500, "--seed", 2, "--out", other)
    words = ("calibrate", solved, "--env", "gridworld:lava", "--episodes", 4, "--sets", 3, "--figure", curve)
    status, answer, _ = run(capsys, *words, "--log", other, "--deltas", 0.01, 1)
    assert status == 0
    assert answer["notes"] == []
    values = [row["value"] for row in answer["estimates"]["rows"]]
    assert answer["chosen"] == (0.01, 1.0)[int(np.argmax(values))]
    shares = [row["share"] for row in answer["calibration"]["rows"]]
    assert shares[0] >= shares[1]
    assert [row["delta"] for row in answer["coverage"]["rows"]] == pytest.approx([0.01, 1.0])
    assert answer["coverage"]["rows"][0]["mean"] > answer["coverage"]["rows"][1]["mean"]
    assert curve.read_text("utf-8").startswith("<svg")
    status, answer, _ = run(capsys, "calibrate", solved, "--log", lava)
    assert "learnt from" in answer["notes"][0]
    assert "calibration" not in answer
    status, _, shown = run(capsys, "calibrate", solved, "--log", lava, "--rule", "lower")
    assert status == 2
    assert "no lower ends" in shown


def test_hoeffding_with_a_union_certifies(lava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "certified"
    quietly("train", lava, "--out", folder, "--method", "tabular", "--gamma", 0.95, "--alpha", "hoeffding", "--union",
            "pairs", "--reward-range", 0, 1)  # fmt: skip
    truth = lava_world().mdp.optimal(0.95).q
    assert coverage_of(load_values(folder / "values.npz"), truth).everywhere.all()


@pytest.mark.parametrize("method", ["dqn", "cql", "rem", "iql", "bc"])
def test_baselines_are_trained_and_played(
    method: str, poles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, more = tmp_path / method, ("--heads", 5) if method == "rem" else ()
    quietly("train", poles, "--out", folder, "--method", method, "--updates", 3, "--hidden", 8, *more)
    status, answer, _ = run(capsys, "evaluate", folder, "--episodes", 2, "--envs", 2)
    assert status == 0
    (one,) = answer["runs"].values()
    assert [row["delta"] for row in one["fixed"]] == [None]
    assert "adaptive" not in one
    status, _, shown = run(capsys, "calibrate", folder, "--log", poles)
    assert status == 2
    assert f"is of method {method}, which knows no confidence" in shown


def test_trainings_side_by_side(poles: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs ccvf[plot]")
    second, cql = tmp_path / "second", tmp_path / "cql"
    quietly("train", poles, "--out", second, *SMALL, "--updates", 30, "--seed", 1)
    quietly("train", poles, "--out", cql, "--method", "cql", "--alpha", 4, "--updates", 3, "--hidden", 16)
    figure, belief = tmp_path / "returns.svg", tmp_path / "belief.svg"
    words = ("--episodes", 4, "--envs", 2, "--deltas", 0.01, 1, "--figure", figure, "--belief", belief)
    status, answer, _ = run(capsys, "evaluate", trained, second, cql, *words)
    assert status == 0
    assert set(answer["runs"]) == {"trained", "second", "cql"}
    assert answer["iqm"]["ccvl"]["adaptive"]["runs"] == 2
    means = [answer["runs"][name]["fixed"][0]["return"]["value"] for name in ("trained", "second")]
    assert answer["iqm"]["ccvl"]["delta 0.01"]["value"] == pytest.approx(np.mean(means))
    assert figure.exists()
    assert belief.exists()
    named = labels({name: Run.load(path) for name, path in (("a", trained), ("b", second), ("c", cql))})
    assert named == {"a": "ccvl", "b": "ccvl", "c": "cql"}
    status, _, shown = run(capsys, "evaluate", cql, "--figure", figure)
    assert status == 2
    assert "none of these trainings has a confidence" in shown


def test_labels_tell_settings_apart(trained: Path) -> None:
    first = Run.load(trained)
    config = {**first.settings.config, "alpha": 4.0}
    other = replace(first, settings=replace(first.settings, config=config))
    assert labels({"a": first, "b": other}) == {"a": "ccvl alpha=1.0", "b": "ccvl alpha=4.0"}


def test_the_paper_s_belief_and_shared_ones(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--evidence",
        "paper",
        "--act",
        "sample",
        "--persist",
        "shared",
        "--beta",
        2,
        "--no-guard",
        "--forget",
        0.9,
    )
    status, answer, _ = run(capsys, "evaluate", trained, "--episodes", 2, "--envs", 2, "--deltas", 0.5, *words)
    assert status == 0
    assert answer["runs"]["trained"]["adaptive"]["episodes"] == 2


def test_calibrate_by_fitted_q_evaluation(poles: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("calibrate", trained, "--log", poles, "--updates", 20, "--rule", "lower", "--deltas", 0.01, 1)
    status, answer, _ = run(capsys, *words, "--env", "CartPole-v1", "--episodes", 2, "--envs", 2)
    assert status == 0
    rows = answer["estimates"]["rows"]
    assert answer["chosen"] == max(rows, key=lambda row: row["low"])["delta"]
    assert len(answer["calibration"]["rows"]) == 2
    assert "coverage" not in answer


def test_an_interrupted_training_goes_on_to_the_same_bits(
    poles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", poles, *SMALL, "--updates", 24, "--penalty", "hash", "--n-step", 2, "--out")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    quietly(*words, whole)

    calls: list[int] = []
    real = training.Sampler.next

    def next_batch(self: Any) -> Any:
        if len(calls) == 15:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Sampler, "next", next_batch)
        status, answer, shown = run(capsys, *words, broken, "--checkpoint-every", 10)
    assert (status, answer) == (130, None)
    assert "--resume goes on from there" in shown
    kept = load_checkpoint(broken / "checkpoint.safetensors")[1]["learner"]["updates"]
    assert kept == 10
    status, _, shown = run(capsys, "evaluate", broken)
    assert status == 2
    assert "was interrupted" in shown
    status, _, shown = run(capsys, *words, broken)
    assert status == 2
    assert "go on with --resume" in shown
    quietly(*words, broken, "--resume")
    assert (broken / "learner.safetensors").read_bytes() == (whole / "learner.safetensors").read_bytes()


def test_a_training_can_be_made_longer_but_not_another(
    poles: Path, lava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = tmp_path / "longer", ("train", poles, *SMALL, "--out")
    quietly(*words, folder, "--updates", 10)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for more, why in (
        (("--updates", 10, "--alpha", 2), "alpha was 1.0 and is now 2.0"),
        (("--updates", 10, "--seed", 2), "seed was 0 and is now 2"),
        (("--updates", 5), "10 updates were made already and 5 are asked for"),
    ):
        status, _, shown = run(capsys, *words, folder, *more, "--resume")
        assert status == 2
        assert why in shown
    status, _, shown = run(capsys, "train", lava, *SMALL, "--out", folder, "--updates", 10, "--resume")
    assert status == 2
    assert "the log is another" in shown
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    quietly(*words, folder, "--updates", 20, "--resume")
    quietly(*words, tmp_path / "at-once", "--updates", 20)
    assert load_learner(folder / "learner.safetensors")[0].updates == 20
    first, second = (load_checkpoint(tmp_path / name / "learner.safetensors")[0] for name in ("longer", "at-once"))
    assert all(bool((first[key] == second[key]).all()) for key in first)


def arrays(path: Path, **changed: Any) -> Path:
    """A file of plain arrays."""
    columns: dict[str, Any] = {
        "observations": np.eye(4, dtype=np.float32)[:3], "actions": np.array([0, 1, 1]), "rewards": np.ones(3),
        "next_observations": np.eye(4, dtype=np.float32)[1:4], "terminated": np.array([0, 0, 1]),
    }  # fmt: skip
    np.savez(path, **{name: value for name, value in {**columns, **changed}.items() if value is not None})
    return path


def test_plain_arrays_are_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_log(arrays(tmp_path / "own.npz", n_actions=np.array(3)))
    assert (len(data), data.n_actions, data.observation_shape) == (3, 3, (4,))
    quietly("train", tmp_path / "own.npz", "--out", tmp_path / "run", *SMALL, "--updates", 2)
    assert Run.load(tmp_path / "run").log["n_actions"] == 3
    status, _, shown = run(capsys, "evaluate", tmp_path / "run")
    assert status == 2
    assert "give --env" in shown


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": np.array([0, np.nan, 1])}, "the reward of transition 1 is nan"),
        ({"actions": np.array([0, -1, 1])}, "action -1 of transition 1 is not one of 0 to 1"),
        ({"actions": np.array([0, 5, 1]), "n_actions": np.array(2)}, "action 5 of transition 1"),
        ({"terminated": None}, "but not terminated"),
        ({name: np.zeros((0, 4)) for name in ("observations", "next_observations")}, "there is no transition"),
        ({"observations": np.full((3, 4), np.inf, dtype=np.float32)}, "not finite"),
    ],
)
def test_logs_that_cannot_be_learnt_from(
    changed: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = arrays(tmp_path / "own.npz", **changed), tmp_path / "run"
    status, answer, shown = run(capsys, "train", log, "--out", out)
    assert (status, answer) == (2, None)
    assert message in shown
    assert shown.startswith("ccvf: ")
    assert not out.exists()


def test_saved_logs_that_cannot_be_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = lava_log("broad", 20), tmp_path / "run"
    bad = replace(good, rewards=np.where(np.arange(20) == 7, np.nan, good.rewards))
    for k, (data, message) in enumerate(
        [
            (bad, "the reward of transition 7 is nan"),
            (replace(good, n_actions=2), "is not one of 0 to 1"),
            (good.select(slice(0, 0)), "has no transition"),
        ]
    ):
        save_transitions(tmp_path / f"{k}.npz", data)
        status, _, shown = run(capsys, "train", tmp_path / f"{k}.npz", "--out", out, "--method", "tabular")
        assert status == 2
        assert message in shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "none.npz", "--out", "o"), "none.npz: no such file"),
        (("train", "text.npz", "--out", "o"), "is not a log that ccvf saved"),
        (("train", "{poles}", "--out", "o", "--method", "tabular"), "needs a log whose observations are state numbers"),
        (("train", "{poles}", "--out", "o", "--method", "cql", "--penalty", "hash"), "--penalty is of ccvl and not of"),
        (("train", "{poles}", "--out", "o", "--penalty", "magic"), "--penalty 'magic' is unknown"),
        (("train", "{poles}", "--out", "o", "--budget", "sum"), "splits a penalty"),
        (("train", "{poles}", "--out", "o", "--alpha", "much"), "--alpha is a number and not 'much'"),
        (("train", "{poles}", "--out", "o", "--gamma", "1"), "gamma is 1.0"),
        (("train", "{poles}", "--out", "o", "--smallest", "2"), "smallest is 2"),
        (("train", "{poles}", "--out", "o", "--updates", "0"), "--updates is 0"),
        (("train", "{poles}", "--out", "text.npz"), "is a file; give a folder"),
        (("train", "{lava}", "--out", "o", "--states", "5"), "outside 0 to 4"),
        (("evaluate", "nowhere"), "nowhere is no folder that ccvf train wrote"),
        (("evaluate", "{solved}", "--env", "CartPole-v1"), "observations are () in the log and (4,) there"),
        (("evaluate", "{solved}", "--env", "Nothing-v0"), "there is no environment"),
        (("evaluate", "{solved}", "--deltas", "0"), "outside (0, 1]"),
        (("evaluate", "{solved}", "--deltas", "0.5", "1.5"), "outside (0, 1]"),
        (("evaluate", "{solved}", "--episodes", "0"), "must be at least 1"),
        (("evaluate", "{solved}", "{solved}"), "is given twice"),
        (("evaluate", "{solved}", "--figure", "missing/f.svg"), "the folder missing of f.svg does not exist"),
        (("evaluate", "{solved}", "--belief", "b.svg", "--no-adaptive"), "no adaptive policy is played"),
        (("calibrate", "{solved}", "--log", "{poles}"), "give a log of the same kind"),
        (("calibrate", "{solved}", "--log", "{lava}", "--env", "CartPole-v1"), "observations are ()"),
        (("collect", "gridworld:water", "--out", "l.npz"), "there is no gridworld 'water'"),
        (("collect", "CartPole-v1", "--out", "l.npz", "--behaviour", "narrow"), "is known of gridworld:lava only"),
        (("collect", "CartPole-v1", "--out", "l.npz", "--frames", "0"), "give at least 1"),
        (("collect", "CartPole-v1", "--out", "l.npz", "--fraction", "2"), "it lies in (0, 1]"),
        (("collect", "CartPole-v1", "--out", "l.npz", "--behaviour", "nobody"), "is no folder that ccvf train wrote"),
        (("collect", "gridworld:lava", "--out", "l.npz", "--behaviour", "{solved}", "--delta", "7"), "outside (0, 1]"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    words: tuple[str, ...], message: str, poles: Path, lava: Path, solved: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    status, answer, shown = run(capsys, *(word.format(poles=poles, lava=lava, solved=solved) for word in words))
    assert (status, answer) == (2, None)
    assert message in shown
    assert [path.name for path in tmp_path.iterdir()] == ["text.npz"]


def test_damaged_runs_are_named(solved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "history.json", "values.npz"):
        (tmp_path / name).write_bytes((solved / name).read_bytes())
    whole = (tmp_path / "values.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        (tmp_path / "values.npz").write_bytes(content)
        status, _, shown = run(capsys, "evaluate", tmp_path)
        assert status == 2
        assert "damaged" in shown
    (tmp_path / "config.json").write_text("{}")
    status, _, shown = run(capsys, "evaluate", tmp_path)
    assert status == 2
    assert "is no folder that ccvf train wrote" in shown


def test_missing_extras_are_said_before_any_work(
    solved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ccvf.plots", None)
    monkeypatch.setitem(sys.modules, "minari", None)
    status, _, shown = run(capsys, "train", "minari:a/b-v0", "--out", tmp_path / "o")
    assert status == 2
    assert 'pip install "ccvf[minari]"' in shown
    for words in (("demo",), ("evaluate", solved)):
        status, _, shown = run(capsys, *words, "--figure", tmp_path / "f.svg")
        assert status == 2
        assert list(tmp_path.iterdir()) == []


def test_a_loss_that_diverges_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = arrays(tmp_path / "own.npz", rewards=np.full(3, 1e38))
    status, _, shown = run(
        capsys, "train", log, "--out", tmp_path / "run", "--method", "dqn", "--updates", 5, "--lr", 9
    )
    assert status == 2
    assert "try a learning rate" in shown
    assert not (tmp_path / "run" / "config.json").exists()


def test_states_are_known_from_the_log_or_its_world() -> None:
    log = lava_log("broad", 30)
    assert n_states_of(log, None) == 49
    assert n_states_of(replace(log, metadata={}), None) == int(log.frames.max()) + 1
    assert n_states_of(log, 60) == 60


def test_a_value_is_of_its_method_only() -> None:
    with pytest.raises(ValueError, match="--expectile is of iql and not of rem"):
        settings_of("rem", 0.9, 0, {"expectile": 0.5}, None)
    assert settings_of("tabular", 0.9, 0, {"budget": "sum"}, 3).config["confidences"] == 800
