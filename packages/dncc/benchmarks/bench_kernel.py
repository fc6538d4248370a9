"""The fused loss against torch's eager and compiled plain formula and against a copy of the logits."""

import harness  # isort: skip  (one thread: before numpy)

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the meter below reads the profiler, which talks

import torch
from torch import Tensor

from common_core.memory import CudaPeakMeter
from dncc.fused import Backend, fused_dncc

NAME = "bench_kernel"
LAM = 0.5
TIME_GOAL = 1 / 3  # of the time of eager and of compiled, from 10^7 logits on
COPY_GOAL = 1 / 0.7  # times a copy: 70 % of its bandwidth
JUDGED = 10**7  # logits: below it launches weigh more than memory
CPU_GOAL = 1.0  # at least as lean as eager autograd
NOTES = (
    "One call is the loss and its gradient by the logits (lambda = 0.5, arithmetic mean, hard labels, mean over the "
    "batch), without a network. The plain formula is log_softmax in at least float32, gather, logsumexp over members, "
    "and autograd; compiled is torch.compile of it with its default settings. A copy is out.copy_(logits), which moves "
    "as many bytes as the kernel has to: each logit read once, its gradient written once; loads that loop over many "
    "classes read them twice. Wall time with the launches in it on a GPU, processor time of one thread on a CPU, in "
    "interleaved pairs. Peak memory is what a call allocates at most beyond what existed, the gradient included. "
    "Goals: a third of the time of eager and compiled and 70 % of a copy's bandwidth, from 10^7 logits on. No row of a "
    "GPU is made without one."
)


@dataclass(frozen=True)
class Problem:
    """Logits and labels.

    Args:
        members: M.
        batch: Samples.
        classes: C.
        dtype: Type of the logits.
    """

    members: int
    batch: int
    classes: int
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Logits."""
        return self.members * self.batch * self.classes

    @property
    def name(self) -> str:
        """For the rows."""
        return f"{self.members} x {self.batch} x {self.classes}, {str(self.dtype)[6:]}"

    def data(self, device: str) -> tuple[Tensor, Tensor]:
        """Random logits, which want a gradient, and labels."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.empty(self.members, self.batch, self.classes, dtype=self.dtype, device=device)
        part = torch.randn(self.batch, self.classes, generator=generator)
        for member in range(self.members):  # members differ, and nothing of the whole size is made on the host
            logits[member] = part.roll(member, 0).to(device=device, dtype=self.dtype)
        target = torch.randint(0, self.classes, (self.batch,), generator=generator).to(device)
        return logits.requires_grad_(), target


SIZES = {
    "quick": [(3, 20, 30)],
    "cpu": [(8, 125, 1000), (8, 1250, 1000), (8, 1250, 100), (4, 25_000, 10)],
    "cuda": [
        (8, 125, 1000),
        (8, 1250, 1000),
        (8, 12_500, 1000),
        (8, 12_500, 100),
        (4, 250_000, 100),
        (4, 1024, 30_522),
    ],
}


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """The loss as one writes it down."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = torch.log_softmax(logits, -1, dtype=wide)
    likelihood = log_p.gather(-1, target.expand(logits.shape[:2]).unsqueeze(-1)).squeeze(-1)
    ensemble = torch.logsumexp(likelihood, 0) - math.log(logits.shape[0])
    return -((1 - LAM) * likelihood.mean(0) + LAM * ensemble).mean()


def step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Loss and gradient as one call."""
    return lambda: torch.autograd.grad(loss(logits, target), logits)[0]


def fused(backend: Backend) -> Callable[[Tensor, Tensor], Tensor]:
    """The fused loss with one backend."""
    return lambda logits, target: fused_dncc(logits, target, LAM, backend=backend).loss


def on_gpu(problem: Problem, repeats: int) -> list[harness.Row]:
    """Time against eager, compiled and a copy; memory against eager."""
    logits, target = problem.data("cuda")
    ours, eager = (step(loss, logits, target) for loss in (fused("triton"), plain))
    compiled = step(torch.compile(plain, dynamic=False), logits, target)
    source, out = logits.detach(), torch.empty_like(logits)
    judged = problem.numel >= JUDGED
    rows = []
    for peer_name, peer, goal in (
        ("torch, eager", eager, TIME_GOAL),
        ("torch.compile", compiled, TIME_GOAL),
        ("out.copy_(logits)", lambda: out.copy_(source), COPY_GOAL),
    ):
        name = f"loss and gradient, {problem.name}"
        entry = harness.compare(name, ours, peer, peer_name, goal if judged else None, repeats=repeats)
        rows.append(entry | {"backend": "triton", "logits": problem.numel})
    mine, theirs = cuda_peak(ours), cuda_peak(eager)
    entry = harness.row(f"peak memory, {problem.name}", mine, theirs, "torch, eager", mine / theirs, None, "bytes")
    return [*rows, entry | {"backend": "triton", "gradient_bytes": logits.nbytes}]


def on_cpu(problem: Problem, repeats: int) -> list[harness.Row]:
    """Time and memory of the torch path against eager autograd."""
    logits, target = problem.data("cpu")
    ours, eager = (step(loss, logits, target) for loss in (fused("torch"), plain))
    row = harness.compare(
        f"loss and gradient, {problem.name}", ours, eager, "torch, eager", CPU_GOAL, repeats=repeats,
        clock=time.process_time,
    )  # fmt: skip
    mine, theirs = cpu_peak(ours), cpu_peak(eager)
    ratio = mine / theirs
    memory = harness.row(f"peak memory, {problem.name}", mine, theirs, "torch, eager", ratio, CPU_GOAL, "bytes")
    return [
        row | {"backend": "torch", "logits": problem.numel},
        memory | {"backend": "torch", "gradient_bytes": logits.nbytes},
    ]


def cuda_peak(call: Callable[[], object]) -> int:
    """Most bytes that a call adds, by the allocator."""
    call()
    torch.cuda.synchronize()
    with CudaPeakMeter() as meter:
        call()
        torch.cuda.synchronize()
    return meter.reading().peak_added


def cpu_peak(call: Callable[[], object]) -> int:
    """Most bytes that a call adds, by the allocator's events as the profiler records them."""
    call()
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        call()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv, devices=("cpu", "cuda"))
    torch.set_num_threads(1)
    measure = on_gpu if args.device == "cuda" else on_cpu
    repeats = 3 if args.quick else 40 if args.device == "cuda" else 16
    rows = [
        row
        for dtype in (torch.bfloat16, torch.float32)
        for shape in SIZES["quick" if args.quick else args.device]
        for row in measure(Problem(*shape, dtype), repeats)
    ]
    if args.quick:  # toy sizes judge nothing
        rows = [row | {"goal": None, "met": None} for row in rows]
    harness.save(NAME, args, rows, NOTES, ["triton"])


if __name__ == "__main__":
    main()
