"""Claim on memory: bytes that one training step keeps for its backward pass, and the peak that follows from them."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, report_progress
from common_core.memory import PeakMeter
from gact.claims.models import Block, Decoder, Residual, resnet, seeded
from gact.compressor import ActivationCompressor

_MODES = {"quick": ("auto:4", "auto:2"), "full": ("8", "4", "auto:4", "2", "auto:2")}
_KEYS = {"8": "fixed8", "4": "fixed4", "auto:4": "auto4", "2": "fixed2", "auto:2": "auto2"}
_REPEATS = {"quick": 1, "full": 9}
_BATCH = {"quick": 2, "full": 8}
_LAYERS = {"quick": 2, "full": 4}
_LEAST = 8.0  # times smaller at an average of 2 bits


@dataclass(frozen=True, eq=False)
class Work:
    """A model with one batch; `blocks` is the kind of module that a user would checkpoint."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    blocks: type[nn.Module]


def workloads(scale: str, seed: int) -> tuple[Work, Work]:
    """A GELU transformer and a residual network, single precision."""
    layers = _LAYERS[scale]
    with seeded(seed):
        decoder, images = Decoder(256, 128, layers, 128, 4), resnet(16, layers // 2, 3, 10)
        batch = _BATCH[scale]
        tokens, pixels = torch.randint(256, (batch, 129)), torch.randn(batch, 3, 64, 64)
        labels = torch.randint(10, (batch,))

    def next_token() -> Tensor:
        return functional.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def classes() -> Tensor:
        return functional.cross_entropy(images(pixels), labels)

    return Work("transformer", decoder, next_token, Block), Work("cnn", images, classes, Residual)


def _key(mode: str) -> str:
    return _KEYS.get(mode, mode)


@final
class _Checkpointed(AbstractContextManager[None]):
    """Runs blocks again in the backward pass instead of keeping what they save."""

    def __init__(self, work: Work) -> None:
        self._blocks = [m for m in work.model.modules() if isinstance(m, work.blocks)]

    def __enter__(self) -> None:
        for block in self._blocks:
            block.__dict__["forward"] = self._again(type(block).forward.__get__(block))

    def __exit__(self, *error: object) -> None:
        for block in self._blocks:
            del block.__dict__["forward"]

    @staticmethod
    def _again(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        return lambda x: checkpoint(forward, x, use_reentrant=False)


def _step(work: Work, context: AbstractContextManager[Any]) -> None:
    work.model.zero_grad(set_to_none=True)
    with context:
        loss = work.loss()
    loss.backward()


def _peak(work: Work, context: AbstractContextManager[Any]) -> float:
    """Bytes of the peak of a step above parameters and batch."""
    work.model.zero_grad(set_to_none=True)
    with PeakMeter(alive=work.model) as meter:
        _step(work, context)
    return float(meter.reading().peak_added)


def run_memory(scale: str, seed: int, device: str) -> Outcome:
    """Saved bytes from the engine's ledger; peak and time of whole steps, in turns."""
    metrics: dict[str, float | Estimate] = {}
    for work in workloads(scale, seed):
        report_progress(0 if work.name == "transformer" else 1, 2, work.name)
        contexts: dict[str, AbstractContextManager[Any]] = {"plain": nullcontext(), "checkpoint": _Checkpointed(work)}
        for mode in _MODES[scale]:
            used = ActivationCompressor(work.model, int(mode) if mode.isdigit() else mode, seed=seed, min_bytes=1024)
            _step(work, used)  # an adaptive one learns in its first step
            used.step()
            _step(work, used)
            contexts[mode] = used
            key, report = f"{work.name}_{_key(mode)}", used.report()
            metrics[f"{key}_saved"] = float(report.saved_bytes)
            metrics[f"{key}_smaller"] = report.ratio
            metrics[f"{work.name}_plain_saved"] = float(report.plain_bytes)
        peaks = {mode: _peak(work, context) for mode, context in contexts.items()}
        times: dict[str, list[float]] = {mode: [] for mode in contexts}
        for _ in range(_REPEATS[scale]):
            for mode, context in contexts.items():
                start = time.process_time()
                _step(work, context)
                times[mode].append(time.process_time() - start)
        for mode in contexts:
            key = f"{work.name}_{_key(mode)}"
            metrics[f"{key}_peak"] = peaks[mode]
            metrics[f"{key}_peak_smaller"] = peaks["plain"] / peaks[mode]
            metrics[f"{key}_time_ratio"] = float(np.median(np.divide(times[mode], times["plain"])))
    return Outcome(metrics, {"Peak and time of a step, as a share of plain training": _figure(metrics)})


def _figure(metrics: Mapping[str, Any]) -> str:
    from gact.claims._figures import new_figure, style, svg, words

    figure, panels = new_figure(7.4, 3.4, cols=2)
    for panel, name in zip(panels, ("transformer", "cnn"), strict=True):
        for mode in ("plain", "checkpoint", *_MODES["full"]):
            key = f"{name}_{_key(mode)}"
            if f"{key}_peak" not in metrics:
                continue
            x, y = metrics[f"{key}_time_ratio"], 1 / metrics[f"{key}_peak_smaller"]
            label = mode if mode == "checkpoint" else words(mode)
            panel.plot([x], [y], marker="o", color=style(mode)["color"], linestyle="none", label=label)
        panel.set_title(name if name != "cnn" else "residual network")
        panel.set_xlabel("processor time of a step / plain")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("peak above parameters / plain")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return svg(figure)


def holds_memory(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Saved bytes at least 8 times smaller at an average of 2 bits, 4 times at 4; and the peak lower, not higher."""
    checks = []
    for name in ("transformer", "cnn"):
        checks.append(at_least(f"times smaller, {name}, 2 bits on average", metrics[f"{name}_auto2_smaller"], _LEAST))
        checks.append(
            at_least(f"times smaller, {name}, 4 bits on average", metrics[f"{name}_auto4_smaller"], _LEAST / 2)
        )
        checks.append(
            at_least(f"plain peak / ours, {name}, 2 bits on average", metrics[f"{name}_auto2_peak_smaller"], 1.0)
        )
    return checks


CLAIMS = (
    Claim(
        id="gact.memory",
        statement="At an average of 2 bits what is kept for the backward pass is at least 8 times smaller.",
        source="Abstract; Section 6, memory",
        paper="activation memory up to 8.1 times smaller",
        run=run_memory,
        holds=holds_memory,
        headline=(
            "transformer {transformer_auto2_smaller:.1f} and CNN {cnn_auto2_smaller:.1f} times smaller at 2 bits, "
            "{transformer_auto4_smaller:.1f} and {cnn_auto4_smaller:.1f} at 4; the peak of a whole step "
            "{transformer_auto2_peak_smaller:.1f} and {cnn_auto2_peak_smaller:.1f} times at 2 bits"
        ),
        differs=(
            "A small GELU transformer and residual network in single precision on the CPU. Every storage counts once, "
            "parameters, inputs and what is under 1 KiB apart; metadata and masks count. The peak contains gradients "
            "and temporaries, which compression does not shrink, and grows less different as models get small."
        ),
        requires={"matplotlib": "gact[claims]"},
    ),
)
