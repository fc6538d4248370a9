"""What an exported ensemble computes is what PyTorch computes, at every batch size; failures write nothing."""

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dncc import exporting
from dncc.aggregation import aggregate_log_proba
from dncc.batch_ensemble import batch_ensemble
from dncc.branching import Branching
from dncc.ensembles import EnsembleModule
from dncc.exporting import EnsembleInference, ExportError, export_onnx
from dncc.multihead import MultiHead
from dncc.separate import LoopNetworks, SeparateNetworks


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))


def tail() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5))  # fmt: skip


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 5))


def whole() -> nn.Sequential:
    return nn.Sequential(*trunk(), *tail())


MODELS: dict[str, Any] = {
    "partition": lambda: MultiHead(trunk(), 5, 4),
    "full": lambda: MultiHead(trunk(), 5, 3, "full", hidden=(6,), norm="batch", dropout=0.5),
    "maps": lambda: MultiHead(trunk(), 5, 4, pool="none", hidden=(3,), kernel_size=3, norm="layer"),
    "branching": lambda: Branching(trunk(), tail(), 3),
    "separate": lambda: SeparateNetworks(perceptron, 3, execution="vmap"),
    "loop": lambda: LoopNetworks([perceptron(), whole()]),
    "rank one": lambda: batch_ensemble(whole(), 3),
}
X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def used(name: str) -> EnsembleModule:
    """A model whose batch norms have seen data."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 6, 6) + 1)
    return model


def test_outputs() -> None:
    model = used("partition").eval()
    for aggregate in ("arithmetic", "geometric"):
        proba = model.predict_proba(X, aggregate)
        torch.testing.assert_close(EnsembleInference(model, aggregate)(X), proba)
        torch.testing.assert_close(EnsembleInference(model, aggregate, "log_probabilities")(X), proba.log())
        torch.testing.assert_close(EnsembleInference(model, aggregate, "members")(X), model.members(X))
        both = EnsembleInference(model, aggregate, "all")
        assert both.output_names == ("probabilities", "members")
        torch.testing.assert_close(both(X), (proba, model.members(X)))
    with pytest.raises(ValueError, match="outputs is 'logits'; it must be one of 'probabilities'"):
        inspect.unwrap(EnsembleInference.__init__)(EnsembleInference.__new__(EnsembleInference), model, "arithmetic",
                                                   "logits")  # fmt: skip
    assert EnsembleInference(model).training is False


@pytest.mark.parametrize("name", ["maps", "separate"])
def test_onnx_computes_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    model = used(name)
    found = export_onnx(model, X, tmp_path / "model.onnx", outputs="all")
    assert all(module.training for module in model.modules())
    assert (found.input_name, found.output_names, found.batches) == ("x", ("probabilities", "members"), (1, 4, 5))
    assert found.largest_difference <= 1e-5
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    model.eval()
    for size in (1, 2, 9):
        x = torch.randn(size, 3, 6, 6, generator=torch.Generator().manual_seed(size))
        proba, members = session.run(["probabilities", "members"], {"x": x.numpy()})
        np.testing.assert_allclose(proba, model.predict_proba(x).numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(members, model.members(x).numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(members.mean(0), proba, rtol=0, atol=1e-6)


def test_onnx_of_the_geometric_mean_from_a_batch_of_one(tmp_path: Path) -> None:
    model = used("full").eval()
    inference = EnsembleInference(model, "geometric", "log_probabilities")
    found = export_onnx(inference, X[:1], tmp_path / "new" / "model.onnx")
    assert found.batches == (1, 2, 3)
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    expected = model.predict_log_proba(X, "geometric").numpy()
    np.testing.assert_allclose(session.run(None, {"x": X.numpy()})[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_torch_export_at_any_batch_size(name: str) -> None:
    inference = EnsembleInference(used(name)).eval()
    program = torch.export.export(inference, (X,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    for size in (2, 7):
        x = torch.randn(size, 3, 6, 6, generator=torch.Generator().manual_seed(size))
        torch.testing.assert_close(program.module()(x), inference(x), rtol=0, atol=1e-6)


def test_a_wrong_file_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = used("full")
    wrong = export_onnx(model, X, tmp_path / "other.onnx", aggregate="geometric").path.read_bytes()
    monkeypatch.setattr(exporting, "_onnx_bytes", lambda *_: wrong)
    target = tmp_path / "model.onnx"
    target.write_bytes(b"before")
    with pytest.raises(ExportError, match=r"differs from PyTorch by .*; nothing was written"):
        export_onnx(model, X, target)
    assert target.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "other.onnx"]
    lenient = export_onnx(model, X, target, tolerance=1)
    assert 1e-5 < lenient.largest_difference < 1
    assert target.read_bytes() == wrong
    unchecked = export_onnx(model, X, target, check=False)
    assert (unchecked.batches, unchecked.largest_difference) == ((), 0.0)


def test_models_that_cannot_be_exported(tmp_path: Path) -> None:
    class Choosing(EnsembleModule):
        num_members, num_classes = 1, 5

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[None, :, :5] * (2.0 if x.sum() > 0 else 1.0)

    with pytest.raises(ExportError, match=r"torch.onnx.export failed .* cannot be exported"):
        export_onnx(Choosing(), X, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="at least 1 input"):
        export_onnx(used("full"), X[:0], tmp_path / "model.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'{missing} is not installed: pip install "dncc\[onnx\]"'):
        export_onnx(used("full"), X, tmp_path / "model.onnx")


def test_the_inference_module_is_the_aggregate_of_the_members() -> None:
    model = used("separate").eval()
    expected = aggregate_log_proba(model(X).log_softmax(-1)).exp()
    torch.testing.assert_close(EnsembleInference(model)(X), expected)


def test_a_temperature_is_deployed_with_the_ensemble(tmp_path: Path) -> None:
    model = used("partition").eval()
    sharp = EnsembleInference(model, temperature=0.5)
    torch.testing.assert_close(sharp(X), torch.softmax(2 * model.predict_log_proba(X), -1))
    written = export_onnx(sharp, X, tmp_path / "sharp.onnx")
    assert written.largest_difference <= 1e-5
    with pytest.raises(ValueError, match="positive number"):
        EnsembleInference(model, temperature=0.0)
