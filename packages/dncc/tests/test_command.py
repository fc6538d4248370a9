"""The command: its verbs, its answers as JSON, runs that are interrupted and resumed, and errors in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dncc import cli_demo, cli_train
from dncc.base_loss import EnsembleLoss
from dncc.cli import main
from dncc.cli_data import Reading, augmentation, fingerprint, load_parts, unknown
from dncc.cli_lambda import Stepping, find_lambda
from dncc.cli_models import Architecture, build, statistics
from dncc.cli_runs import Run
from dncc.controllers import LinearLambda
from dncc.evaluating import predict_logits
from dncc.guarding import GuardedLambda
from dncc.hypergradient import HyperGradientLambda
from dncc.io import load_predictions, load_tree, save_predictions
from dncc.losses import DNCCLoss
from dncc.outputs import Measured
from dncc.training import CHECKPOINT, fit

QUICK = ("--backbone", "mlp", "--width", 16, "--members", 4, "--lr", 0.01, "--batch-size", 32)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


def blobs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping clouds in eight dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    return (rng.normal(size=(rows, 8)) + 1.2 * np.eye(8)[y]).astype(np.float32), y


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of numbers with names of classes, a test part and unknown samples."""
    file = tmp_path_factory.mktemp("data") / "blobs.npz"
    names = np.array(["ash", "birch", "cedar"])
    (x, y), (x_test, y_test) = blobs(150, 0), blobs(60, 1)
    ood = np.random.default_rng(2).normal(size=(40, 8)) - 3
    np.savez(file, x=x, y=names[y], x_test=x_test, y_test=names[y_test], x_ood=ood)
    return file


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", str(table), "--out", str(folder), *map(str, QUICK), "--epochs", "3", "--json"]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright and dark pictures."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(12):
            values = rng.integers(low, low + 127, size=(10, 12, 3), dtype=np.uint8)
            image.fromarray(values).save(tmp_path / "pictures" / name / f"{k}.png")
    return tmp_path / "pictures"


def test_train_writes_a_run_that_can_be_read(table: Path, trained: Path) -> None:
    found = Run.load(trained)
    assert found.classes == ("ash", "birch", "cedar")
    assert found.complete
    assert {path.name for path in trained.iterdir()} == {
        "config.json", "checkpoint.safetensors", "model.safetensors", "predictions.npz", "history.json",
    }  # fmt: skip
    logits, y = load_predictions(trained / "predictions.npz")
    data = np.load(table)
    assert logits.shape == (4, 60, 3)
    assert torch.equal(predict_logits(found.model(), data["x_test"]), logits)
    assert y is not None
    assert [found.classes[k] for k in y] == data["y_test"].tolist()
    assert len(json.loads((trained / "history.json").read_text())["epochs"]) == 3


def test_report_of_one_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "report", trained)
    assert status == 0
    report = answer["reports"]["first"]
    assert report["samples"] == 60
    assert report["nll"]["value"] < np.log(3)  # better than knowing nothing
    assert report["test"]["arithmetic"]["ambiguity"] == pytest.approx(report["ambiguity"]["value"])
    assert report["gap"] is not None
    assert report["tempered"] is not None
    assert report["ood"]["entropy"]["auroc"] > 0
    assert main(["report", str(trained)]) == 0
    assert "first, judged on test data" in capsys.readouterr().out


def test_report_on_other_data(table: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = blobs(30, 5)
    few = tmp_path / "few.npz"
    np.savez(few, x=x[y > 0], y=np.array(["ash", "birch", "cedar"])[y[y > 0]])  # a class is missing: numbers are mapped
    status, answer, _ = run(capsys, "report", trained, "--data", few, "--ood", few)
    assert status == 0
    report = answer["reports"]["first"]
    assert report["samples"] == 20
    model = Run.load(trained).model()
    right = (predict_logits(model, x[y > 0]).softmax(-1).mean(0).argmax(-1).numpy() == y[y > 0]).mean()
    assert report["accuracy"]["value"] == pytest.approx(right)
    assert report["ood"]["entropy"]["auroc"] == pytest.approx(0.5)  # the very same samples
    again = run(capsys, "report", trained, "--data", table)[1]["reports"]["first"]
    assert again["nll"]["value"] == run(capsys, "report", trained)[1]["reports"]["first"]["nll"]["value"]


def test_runs_and_files_side_by_side(
    table: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    runs = [trained]
    for lam in ("0", "1"):
        runs.append(tmp_path / f"lambda-{lam}")
        assert run(capsys, "train", table, "--out", runs[-1], *QUICK, "--epochs", 3, "--lam", lam)[0] == 0
    page, drawn = tmp_path / "page.html", tmp_path / "drawn"
    status, answer, _ = run(capsys, "report", *runs, "--html", page, "--figures", drawn)
    assert status == 0
    assert list(answer["reports"]) == ["first", "lambda-0", "lambda-1"]
    assert answer["nll_difference"]["first"]["value"] == 0
    names = {"frontier", "pairs", "risk-coverage"}
    names |= {f"{run_.name}-{figure}" for run_ in runs for figure in ("reliability", "disagreement", "ambiguity")}
    assert {file.name for file in drawn.iterdir()} == {f"{name}.svg" for name in names}
    text = page.read_text("utf-8")
    assert text.count("<svg") == len(names)
    assert "NLL - first" in text
    copy = tmp_path / "predictions.npz"
    save_predictions(copy, *load_predictions(runs[1] / "predictions.npz"))
    status, answer, _ = run(capsys, "report", runs[1], copy)
    assert status == 0
    assert answer["nll_difference"]["predictions"]["value"] == 0


def test_an_interrupted_training_goes_on_to_the_same_bits(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--epochs", 4, "--lam", "hyper:0.3", "--mode", "full", "--patience", 4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(capsys, "train", table, "--out", whole, *QUICK, *words)[0] == 0

    def interrupted(*given: Any, on_epoch: Any, **options: Any) -> Any:
        def stop(record: Any) -> None:
            on_epoch(record)
            if record.epoch == 3:
                raise KeyboardInterrupt

        return fit(*given, on_epoch=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "fit", interrupted)
        status, answer, shown = run(capsys, "train", table, "--out", broken, *QUICK, *words)
    assert (status, answer) == (130, None)
    assert "--resume goes on from there" in shown
    assert len(load_tree(broken / "checkpoint.safetensors", CHECKPOINT)["history"]["epochs"]) == 2
    status, _, shown = run(capsys, "report", broken)
    assert status == 2
    assert "was interrupted" in shown
    status, _, shown = run(capsys, "train", table, "--out", broken, *QUICK, *words)
    assert status == 2
    assert "go on with --resume" in shown
    status, answer, _ = run(capsys, "train", table, "--out", broken, *QUICK, *words, "--resume")
    assert status == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    lam = [json.loads((folder / "history.json").read_text())["epochs"][-1]["lam"] for folder in (whole, broken)]
    assert lam[0] == lam[1] != 0.3


def test_resuming_with_something_else_is_refused(
    table: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    status, _, shown = run(capsys, "train", table, "--out", trained, *QUICK, "--epochs", 5, "--resume", "--seed", 0)
    assert status == 2
    assert "epochs was 3 and is now 5" in shown
    other = tmp_path / "other.npz"
    x, y = blobs(150, 9)
    np.savez(other, x=x, y=np.array(["ash", "birch", "cedar"])[y])
    status, _, shown = run(capsys, "train", other, "--out", trained, *QUICK, "--epochs", 3, "--resume")
    assert status == 2
    assert "the data are others" in shown
    assert run(capsys, "train", table, "--out", trained, *QUICK, "--epochs", 3, "--resume")[0] == 0  # nothing to do
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_a_folder_of_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ("--size", 8, "--width", 4, "--augment", "flip-crop", "--epochs", 12, "--lr", 0.02, "--lam", "guarded",
             "--batch-size", 4)  # fmt: skip
    status, answer, _ = run(capsys, "train", pictures, "--out", out, *words, "--validation-share", 0.2)
    assert status == 0
    assert answer["validation"]["ensemble_ce"] < np.log(2) / 2  # half of knowing nothing
    status, answer, _ = run(capsys, "report", out, "--data", pictures, "--ood", pictures / "dark")
    assert status == 0
    assert answer["reports"]["run"]["samples"] == 24
    assert answer["reports"]["run"]["accuracy"]["value"] == 1
    (pictures / "dark" / "torn.png").write_bytes(b"no picture")
    status, _, shown = run(capsys, "train", pictures, "--out", tmp_path / "other")
    assert status == 2
    assert "torn.png" in shown
    assert "give --skip-unreadable" in shown
    assert not (tmp_path / "other").exists()
    words = ("--skip-unreadable", "--epochs", 1, "--size", 8, "--width", 2)
    status, _, shown = run(capsys, "train", pictures, "--out", tmp_path / "other", *words)
    assert status == 0
    assert "1 of 25 files cannot be read" in shown


@pytest.mark.parametrize("mode", ["separate", "batch-ensemble", "branch:3"])
def test_other_modes(mode: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    status, answer, _ = run(capsys, "train", table, "--out", out, *QUICK, "--mode", mode, "--epochs", 2)
    assert status == 0
    assert answer["members"] == 4
    assert run(capsys, "report", out, "--data", table)[0] == 0


def test_demo_shows_the_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(cli_demo, "_DRAWS", 1)
    picture = tmp_path / "trade.svg"
    status, answer, _ = run(capsys, "demo", "--figure", picture)
    assert status == 0
    ways = [answer["ways"][f"lambda {lam}"] for lam in ("0", "0.5", "0.9", "1")]
    disagreement = [way["disagreement"] for way in ways]
    assert disagreement == sorted(disagreement)
    assert ways[-1]["member_nll"] > 1.5 * ways[0]["member_nll"]
    assert min(ways[1]["ensemble_nll"], ways[2]["ensemble_nll"]) < min(ways[0]["ensemble_nll"], ways[3]["ensemble_nll"])
    assert ways[0]["collusion_share"] < ways[-1]["collusion_share"]
    assert picture.read_text("utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "(members, samples"),
        (("--lam", "1.5"), "1.5"),
        (("--lam", "steep"), "linear:START:END"),
        (("--lam", "linear:0"), "linear:START:END"),
        (("--lam", "guarded", "--validation-share", "0"), "validation share above 0"),
        (("--lam", "hyper", "--objective", "adp"), "not of adp"),
        (("--objective", "adp"), "at most 2 members"),
        (("--objective", "adp", "--aggregate", "geometric"), "arithmetic"),
        (("--mode", "shared"), "give one of partition, full"),
        (("--mode", "separate", "--head-hidden", "4"), "leave them out"),
        (("--members", "5"), "16 features cannot be split evenly among 5 members"),
        (("--backbone", "small-cnn"), "takes pictures"),
        (("--backbone", "alexnet"), "is no backbone"),
        (("--augment", "flip"), "is for pictures"),
        (("--epochs", "0"), "epochs is 0"),
        (("--lr", "nan"), "lr is nan"),
        (("--test-share", "1"), "test share is 1.0"),
        (("--weights", "absent.safetensors"), "absent.safetensors: no such file"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    words: tuple[str, ...], message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    if not words:  # a file that is no run
        status, answer, shown = run(capsys, "report", table)
        message = "predictions"
    else:
        status, answer, shown = run(capsys, "train", table, "--out", out, *QUICK, *words)
    assert status == 2
    assert answer is None
    assert message in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_data_that_cannot_be_used(
    table: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = blobs(12, 0)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "one-class": ({"x": x, "y": np.zeros(12, dtype=int)}, "has one class only"),
        "no-labels": ({"x": x}, "lacks the array 'y'"),
        "fewer": ({"x": x, "y": y[:5]}, "one label for each of 12 samples"),
        "other-class": ({"x": x, "y": y, "x_test": x, "y_test": y + 1}, "y_test has the label 3"),
        "nan": ({"x": x * np.nan, "y": y}, "NaN"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        status, _, shown = run(capsys, "train", tmp_path / f"{name}.npz", "--out", tmp_path / "run", *QUICK)
        assert status == 2
        assert message in shown
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "wide.npz", x=np.ones((6, 9)), y=np.arange(6) % 2)
    assert "was trained on (8,)" in run(capsys, "report", trained, "--ood", tmp_path / "wide.npz")[2]
    np.savez(tmp_path / "foreign.npz", x=x, y=np.array(["ash", "oak", "elm"])[y])
    status, _, shown = run(capsys, "report", trained, "--data", tmp_path / "foreign.npz")
    assert status == 2
    assert "class 'elm', which the training had not" in shown
    for words, message in (
        ((tmp_path / "absent",), "no such file"),
        ((tmp_path,), "no folder that dncc train wrote"),
        ((trained / "predictions.npz", "--data", table), "need a folder"),
        ((trained, "--html", tmp_path / "nowhere" / "page.html"), "does not exist"),
        ((trained, "--figures", table), "is a file"),
    ):
        status, _, shown = run(capsys, "report", *words)
        assert status == 2
        assert message in shown


def test_weights_of_a_backbone(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = Architecture("mlp", 16, 4, "full", (), (8,), 3)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    file = tmp_path / "trunk.safetensors"
    save_file({**trunk.state_dict(), "classifier.weight": torch.zeros(7, 16)}, file)  # a classifier is left out
    loaded = build(what, 0, weights=file)
    assert torch.equal(
        loaded.get_submodule("ensemble.backbone.model").get_parameter("1.weight"), trunk.get_parameter("1.weight")
    )
    several = build(replace(what, mode="separate"), 0, weights=file)
    x = torch.randn(2, 8)
    assert several(x).std(0).max() > 0  # equal trunks, each with a classifier of its own
    save_file({"1.weight": torch.zeros(16, 8), "1.bias": torch.zeros(16)}, file)
    with pytest.raises(ValueError, match=r"2 of 4 tensors do not fit, 3\.weight is missing"):
        build(what, 0, weights=file)
    file.write_bytes(b"nothing")
    status, _, shown = run(capsys, "train", table, "--out", tmp_path / "run", *QUICK, "--weights", file)
    assert status == 2
    assert "is no safetensors file" in shown


@pytest.mark.parametrize("backbone", ["timm:resnet18", "torchvision:resnet18"])
@pytest.mark.parametrize("mode", ["partition", "branch:layer4"])
def test_backbones_of_libraries(backbone: str, mode: str) -> None:
    pytest.importorskip(backbone.partition(":")[0])
    model = build(Architecture(backbone, 0, 2, mode, (), (3, 32, 32), 5), 0).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2, 5)


def test_lambda_by_name() -> None:
    assert find_lambda("1", 10) == 1.0
    line, guard = find_lambda("linear:0:0.8", 10), find_lambda("guarded:0.9", 10)
    assert isinstance(line, LinearLambda)
    assert (line.start, line.end, line.steps) == (0.0, 0.8, 10)
    assert isinstance(guard, GuardedLambda)
    assert guard.value == 0.9
    assert find_lambda("hyper:0.2", 10) is None
    for wrong in ("", "hyper:2", "linear:0:1:2", "guarded:x", "-0.1", "nan"):
        with pytest.raises(ValueError, match=r"lambda is|lam|start"):
            find_lambda(wrong, 10)


def test_stepping_is_the_hypergradient_by_hand() -> None:
    torch.manual_seed(0)
    what = Architecture("mlp", 8, 2, "full", (), (8,), 3)
    models = [build(what, 3) for _ in range(2)]
    x, y = (torch.as_tensor(part) for part in blobs(24, 0))
    val = tuple(torch.as_tensor(part) for part in blobs(18, 1))
    stepping = Stepping(models[0], DNCCLoss(0.0), (val[0], val[1]), 0.4, batch_size=10, seed=7)
    optimiser = stepping.optimiser(models[0].parameters(), lr=0.01, weight_decay=0.0)
    parameters = list(models[1].parameters())
    own = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    lam = HyperGradientLambda(parameters, 0.4, optimiser=own)
    loss: EnsembleLoss = DNCCLoss(lam, fused=False)
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        optimiser.zero_grad()
        stepping(models[0](x), y).loss.backward()
        optimiser.step()
        out = loss(models[1](x), y)
        lam.before(out)
        own.zero_grad()
        out.loss.backward()
        own.step()
        rows = torch.randint(18, (10,), generator=generator)
        assert stepping.step() == lam.after(loss(models[1](val[0][rows]), val[1][rows]).ensemble_ce)
    assert stepping.value == stepping.observe(Measured(1.0, 1.0, 0.0), Measured(1.0, 1.0, 0.0)) == lam.value != 0.4


def test_augmentation_keeps_pictures_whole() -> None:
    x = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    assert augmentation("none", (3, 16, 16)) is None
    flip, crop = augmentation("flip", (3, 16, 16)), augmentation("crop", (3, 16, 16))
    assert flip is not None
    assert crop is not None
    many = x[:1].expand(64, -1, -1, -1)  # that all or none of 64 are mirrored has probability 2^-63
    flipped = flip(many, torch.Generator().manual_seed(0))
    kinds = {bool(torch.equal(one, x[0])) for one in flipped}
    assert kinds == {True, False}
    assert all(torch.equal(one, x[0]) or torch.equal(one, x[0].flip(-1)) for one in flipped)
    moved = crop(many, torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")[0]
    windows = [wide[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    places = {next(k for k, window in enumerate(windows) if torch.equal(one, window)) for one in moved}
    assert len(places) > 1  # all at one of 25 places: probability 25^-63


def test_standardised_by_the_training_data(table: Path) -> None:
    data = load_parts(table, Reading(), test_share=0.2, validation_share=0.1, seed=0)
    mean, std = statistics(data.x_train, pretrained=False)
    assert torch.allclose(mean, torch.as_tensor(data.x_train).mean(0), atol=1e-6)
    assert torch.allclose(std, torch.as_tensor(data.x_train).std(0, correction=0), atol=1e-6)
    flat = np.concatenate([data.x_train, np.ones((len(data.x_train), 1), dtype=np.float32)], 1)
    assert statistics(flat, pretrained=False)[1][-1] == 1  # a constant column
    assert statistics(np.zeros((2, 3, 4, 4), dtype=np.float32), pretrained=True)[0][0] == pytest.approx(0.485)
    assert fingerprint(data) == fingerprint(load_parts(table, Reading(), test_share=0.2, validation_share=0.1, seed=0))
    assert fingerprint(data) != fingerprint(load_parts(table, Reading(), test_share=0.2, validation_share=0.1, seed=1))


def test_unknown_samples(table: Path, pictures: Path, tmp_path: Path) -> None:
    assert unknown(table, Reading(), (8,)).shape == (40, 8)
    assert unknown(pictures, Reading(6), (3, 6, 6)).shape == (24, 3, 6, 6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        unknown(tmp_path / "empty", Reading(), (8,))
    np.savez(tmp_path / "logits.npz", logits=np.zeros(3))
    with pytest.raises(ValueError, match="neither x_ood nor x"):
        unknown(tmp_path / "logits.npz", Reading(), (8,))
