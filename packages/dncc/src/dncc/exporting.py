"""An ensemble as one function from inputs to its prediction, and that function as a checked ONNX file."""

import importlib
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from common_core.records import write_bytes_atomic
from dncc.aggregation import Aggregate, aggregate_log_proba, checked_aggregate, log_softmax
from dncc.ensembles import EnsembleModule

__all__ = ["EnsembleInference", "ExportError", "Exported", "InferenceOutputs", "export_onnx"]

InferenceOutputs = Literal["probabilities", "log_probabilities", "members", "all"]


class ExportError(RuntimeError):
    """An export failed, or does not compute what PyTorch computes."""


@final
class EnsembleInference(nn.Module):
    """An ensemble's prediction as a module: what is deployed, exported and compiled.

    Args:
        model: Used as it is, not copied. Call `eval()` on this module before predicting, as for any other.
        aggregate: How members are averaged; take what the loss was trained with.
        outputs: "probabilities" (batch, classes), "log_probabilities" of the same shape, "members" (probabilities of
            shape (members, batch, classes)), or "all" for the pair (probabilities, members).
        temperature: Divides the ensemble's log-probabilities before they are normalised again, as `fit_temperature`
            finds it on validation data; the members stay as they are.

    Raises:
        ValueError: If an option is none of these, or the temperature is not positive.

    Example:
        >>> from dncc.multihead import MultiHead
        >>> model = MultiHead(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), num_classes=3, members=4)
        >>> EnsembleInference(model)(torch.randn(5, 6)).sum(1).round(decimals=4).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        model: EnsembleModule,
        aggregate: Aggregate = "arithmetic",
        outputs: InferenceOutputs = "probabilities",
        temperature: SupportsFloat = 1.0,
    ) -> None:
        super().__init__()
        if outputs not in get_args(InferenceOutputs):
            allowed = ", ".join(map(repr, get_args(InferenceOutputs)))
            raise ValueError(f"outputs is {outputs!r}; it must be one of {allowed}")
        self.model = model
        self.aggregate = checked_aggregate(aggregate)
        self.outputs = outputs
        self.temperature = float(temperature)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {temperature}; it must be a positive number")
        self.training = model.training

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` gives, in order."""
        return ("probabilities", "members") if self.outputs == "all" else (self.outputs,)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The prediction.

        Args:
            x: A batch as the ensemble takes it.

        Returns:
            What `outputs` says, at least float32.
        """
        log_p = log_softmax(self.model(x))
        if self.outputs == "members":
            return log_p.exp()
        log_q = aggregate_log_proba(log_p, self.aggregate)
        if self.temperature != 1:
            log_q = torch.log_softmax(log_q / self.temperature, -1)
        if self.outputs == "log_probabilities":
            return log_q
        return (log_q.exp(), log_p.exp()) if self.outputs == "all" else log_q.exp()


@final
@dataclass(frozen=True)
class Exported:
    """An exported ensemble.

    Attributes:
        path: The file.
        input_name: Name of its input.
        output_names: Names of its outputs.
        batches: Batch sizes at which it was run and compared with PyTorch.
        largest_difference: Between the two, over all entries and batches; 0 when nothing was compared.
    """

    path: Path
    input_name: str
    output_names: tuple[str, ...]
    batches: tuple[int, ...]
    largest_difference: float


def export_onnx(
    model: EnsembleModule | EnsembleInference,
    example: Tensor,
    path: str | Path,
    *,
    aggregate: Aggregate = "arithmetic",
    outputs: InferenceOutputs = "probabilities",
    tolerance: SupportsFloat = 1e-5,
    check: bool = True,
) -> Exported:
    """Write an ensemble's prediction as ONNX with a free batch size, after checking that it computes the same.

    The model is exported in evaluation mode and gets its own mode back. The file is written whole or not at all; it
    holds the weights, which limits it to 2 GB.

    Args:
        model: An ensemble, or an `EnsembleInference` (which then decides aggregate and outputs).
        example: A batch; its shape apart from the batch size becomes that of the input.
        path: File to write.
        aggregate: How members are averaged.
        outputs: What the file computes, see `EnsembleInference`.
        tolerance: Largest accepted difference from PyTorch, of probabilities or log-probabilities.
        check: Run the file in onnxruntime at batch sizes other than the example's, and compare.

    Returns:
        Where it is, its names, and the largest difference found.

    Raises:
        ImportError: If onnx, onnxscript or (for the check) onnxruntime is not installed.
        ExportError: If the exporter fails, or the outputs differ by more than `tolerance`; nothing is written then.
        ValueError: If the example is an empty batch.
    """
    if example.ndim < 1 or len(example) < 1:
        raise ValueError(f"example has shape {tuple(example.shape)}; give a batch of at least 1 input")
    _import_extra("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    inference = model if isinstance(model, EnsembleInference) else EnsembleInference(model, aggregate, outputs)
    batch = example.detach()
    if len(batch) == 1:  # the exporter would take a length of 1 for a constant
        batch = batch.repeat(2, *[1] * (batch.ndim - 1))
    with _evaluating(inference), torch.no_grad():
        data = _onnx_bytes(inference, batch)
        sizes = (1, len(batch), len(batch) + 1) if check else ()
        difference = max((_difference(inference, data, _resized(batch, size)) for size in sizes), default=0.0)
    if not difference <= float(tolerance):
        raise ExportError(f"the exported model differs from PyTorch by {difference:.3g}, more than {tolerance}; "
                          "nothing was written")  # fmt: skip
    write_bytes_atomic(path, data)
    return Exported(Path(path), "x", inference.output_names, sizes, difference)


def _onnx_bytes(inference: EnsembleInference, batch: Tensor) -> bytes:
    names = list(inference.output_names)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter reports its progress
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                inference, (batch,), dynamo=True, dynamic_shapes=shapes, input_names=["x"], output_names=names,
                verbose=False,
            )  # fmt: skip
        return program.model_proto.SerializeToString()
    except Exception as error:  # the exporter has errors of many kinds
        first = "".join(str(error).strip().splitlines()[:1])[:300]
        raise ExportError(
            f"torch.onnx.export failed ({type(error).__name__}: {first}); a backbone whose forward depends on values "
            "or fixes the batch size cannot be exported"
        ) from error


def _difference(inference: EnsembleInference, data: bytes, batch: Tensor) -> float:
    """Largest difference between PyTorch and onnxruntime on a batch; infinite where one is not finite."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"x": batch.cpu().numpy()})
    ours = inference(batch)
    pairs = zip((ours,) if isinstance(ours, Tensor) else ours, theirs, strict=True)
    differences = [np.abs(a.cpu().numpy() - b).max() if a.shape == b.shape else np.inf for a, b in pairs]
    return float(np.nan_to_num(max(differences), nan=np.inf))


def _resized(batch: Tensor, size: int) -> Tensor:
    """A batch of another size, of the same inputs over and over."""
    return batch[torch.arange(size, device=batch.device) % len(batch)]


def _import_extra(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'{name} is not installed: pip install "dncc[onnx]"') from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
