"""Sensitivities without probing: how well they rank and predict the measured noise, and what collecting them costs."""

import harness  # isort: skip  (one thread: before numpy and torch)

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tape
import torch
import workloads
from scipy.stats import spearmanr

from common_core.stats import Estimate
from common_core.timing import paired_timing
from gact import kernels, sensitivity
from gact.affine import AffineCodes
from gact.contributions import Saved, contributions
from gact.gains import ParameterGains

NAME = "bench_sensitivity"
BITS = 4
LEAST = 1024  # elements of a tensor that is quantised
NOTES = (
    "Truth: each saved tensor alone is quantised at 4 bits and the squared distance of the whole gradient from the "
    "exact one averaged over draws of the rounding; batch fixed, model trained for a few steps on it. Ours: closed "
    "forms and mean-field gains from one backward pass. Peer: the energy of the incoming gradient times the mean "
    "squared range, from the same pass. Rows on ranks give Spearman's correlation over the tensors of a model, rows on "
    "factors the median of predicted / measured with the 10th and 90th percentile as interval. Time: a training step "
    "with all float activations at 4 bits in saved-tensor hooks, with and without collecting c of every linear layer "
    "and convolution ('closed form'), or of every tensor with the gains of the whole graph ('everything'), in every "
    "step; processor time. Finding out what each node saved is part of the time."
)


def models(scale: str, device: str) -> list[workloads.Workload]:
    """The models whose tensors are measured one by one."""
    if scale == "quick":
        return [workloads.decoder(1, 32, 2, 64, 32, 8, device)]
    return [
        workloads.decoder(4, 128, 4, 256, 64, 8, device),
        workloads.vision_transformer(3, 64, 4, 32, 4, 10, 16, device),
        workloads.resnet(16, 2, 3, 64, 10, 16, device),
        workloads.mlp(6, 256, 10, 256, device),
    ]


def trained(workload: workloads.Workload, steps: int) -> workloads.Workload:
    """After some steps of Adam on its batch."""
    optimiser = torch.optim.Adam(workload.model.parameters(), 1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        workload.loss().backward()
        optimiser.step()
    return workload


def accuracy(workload: workloads.Workload, draws: int) -> list[harness.Row]:
    """Ranks and factors over the tensors of a model."""
    run = tape.Tape(workload.model, workload.loss, LEAST)
    ours, simple = run.estimates(), run.simple_estimates()
    table = []
    for key, entry in run.entries.items():
        truth, shape = run.truth(key, BITS, draws), run.shape(key, BITS)
        if truth > 0:  # some operations read a shape alone
            closed = {user[0].name() for user in entry.users} <= {
                "AddmmBackward0",
                "MmBackward0",
                "ConvolutionBackward0",
            }
            table.append((truth, ours[key] * shape, simple[key] * shape, closed))
    figures = np.array([row[:3] for row in table])
    closed = np.array([row[3] for row in table])
    both = [float(spearmanr(figures[:, 0], figures[:, column])[0]) for column in (1, 2)]
    rule, count = "incoming energy times range", {"tensors": len(figures)}
    rows = [harness.row(f"{workload.name}: rank correlation", *both, rule, unit="Spearman", **count)]
    for label, chosen in (("closed forms", closed), ("estimates", ~closed)):
        if chosen.any():
            spread = [_middle(figures[chosen, column] / figures[chosen, 0]) for column in (1, 2)]
            name = f"{workload.name}: predicted / measured, {label}"
            rows.append(harness.row(name, *spread, rule, unit="ratio", tensors=int(chosen.sum())))
    return rows


def _middle(ratios: np.ndarray) -> Estimate:
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return Estimate(float(middle), low=float(low), high=float(high), n=len(ratios))


class Coded:
    """A saved tensor as codes."""

    def __init__(self, x: torch.Tensor) -> None:
        self.size, self.order = tuple(x.shape), sensitivity.memory_order(x.shape, x.stride())
        memory = x.permute(self.order)
        self.back = [self.order.index(d) for d in range(x.dim())]
        self.codes: AffineCodes = kernels.quantise(memory.reshape(-1), BITS, key=1, group_size=tape.GROUP_SIZE)
        self.shape = memory.shape

    def decode(self) -> torch.Tensor:
        """The noisy numbers."""
        return kernels.dequantise(self.codes).view(self.shape).permute(self.back)


def step(workload: workloads.Workload, collect: str) -> None:
    """One forward and backward pass with everything at 4 bits; `collect` is "", "closed form" or "everything"."""
    owned = {p.untyped_storage().data_ptr() for p in workload.model.parameters()}
    known: dict[Any, Coded] = {}
    seen: list[Any] = [None, False]

    def pack(x: torch.Tensor) -> Any:
        if not x.is_floating_point() or not x.requires_grad or x.numel() < LEAST:
            return x
        storage = x.untyped_storage().data_ptr()
        if storage in owned:
            return x
        key = (storage, x._version, x.storage_offset(), x.shape, x.stride())
        if key not in known:
            known[key] = Coded(x.detach())
        return known[key]

    def unpack(held: Any) -> torch.Tensor:
        if not isinstance(held, Coded):
            return held
        if seen[1]:
            seen[0] = held
            return torch.empty(1).expand(held.size)
        return held.decode()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = workload.loss()
    found: list[torch.Tensor] = []
    if collect:
        seen[1] = True
        watch(loss.grad_fn, seen, collect == "everything", found)
        seen[1] = False
    torch.autograd.grad(loss, [p for p in workload.model.parameters() if p.requires_grad])
    if collect and not sum(float(c) for c in found) > 0:
        raise RuntimeError("nothing was collected")


CLOSED = {"AddmmBackward0": ("mat1",), "MmBackward0": ("self",), "ConvolutionBackward0": ("input",)}


def watch(root: Any, seen: list[Any], everything: bool, found: list[torch.Tensor]) -> None:
    """Hooks on the nodes whose saved tensors are stored as codes."""
    gains = ParameterGains()
    stack, visited = [root], {None}
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        stack += [parent for parent, _ in node.next_functions]
        if everything:
            names: Sequence[str] = [n[7:] for n in dir(node) if n.startswith("_saved_") and "_sym_" not in n]
        else:
            names = CLOSED.get(node.name(), ())
        for name in names:
            seen[0] = None
            getattr(node, f"_saved_{name}")
            if seen[0] is not None:
                node.register_hook(_hook(node, name, seen[0], gains if everything else None, found))


def _hook(node: Any, name: str, held: Coded, gains: ParameterGains | None, found: list[torch.Tensor]) -> Callable:
    codes = held.codes
    saved = Saved(name, held.size, held.order, codes.low, codes.high, tape.GROUP_SIZE)

    def hook(sent: Any, received: Any) -> None:
        entries = contributions(node, saved, sent, received)
        found.extend(e.c if gains is None else e.c * gains.along(node, e.edge) for e in entries)

    return hook


def overhead(workload: workloads.Workload, repeats: int, clock: Callable[[], float]) -> list[harness.Row]:
    """Steps that collect against steps that do not, in turns."""
    rows = []
    for collect, goal in (("closed form", 1.03), ("everything", None)):
        measured = paired_timing(
            lambda collect=collect: step(workload, collect), lambda: step(workload, ""), repeats=repeats, clock=clock
        )
        name = f"{workload.name}: a step that collects, {collect}"
        rows.append(harness.row(name, measured.ours_s, measured.peer_s, "a step that does not", measured.ratio, goal))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    draws, repeats = (2, 3) if args.quick else (16, 9)
    rows = [row for w in models(args.scale, args.device) for row in accuracy(trained(w, 50), draws)]
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    for workload in workloads.suite("quick" if args.quick else args.scale, args.device):
        rows += overhead(workload, repeats, clock)
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()
