"""Time of one training update of confidence-conditioned values against plain discrete CQL, ours and torchrl's.

Needs torchrl (group peers) for its rows; without it they are left out.
"""

import harness  # isort: skip  (one thread: before numpy)

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ccvf.baselines import DiscreteCQL
from ccvf.batches import Batch
from ccvf.bonuses import make_bonus
from ccvf.ccvl import DeepCCVL
from ccvf.configs import CCVLConfig, CQLConfig
from ccvf.learners import Learner
from ccvf.transitions import Transitions

NAME = "bench_throughput"
DEVICES = ("cpu", "cuda")
ACTIONS = 6
CONFIDENCES = 8
GOAL = 2.0  # times the time of one update: half the throughput
NOTES = (
    f"One update on a batch of random observations, {ACTIONS} actions: forward, loss, backward, clipping of the "
    "gradient's norm, fused Adam and, every 500 updates, a copy into the target network. DeepCCVL trains "
    f"{CONFIDENCES} confidences a sample. All have the same body and a linear head on it, and choose next actions by "
    "the online network (double), but for torchrl's DiscreteCQLLoss, which has no such choice and values them by one "
    "network: its update makes one pass less over the next observations. MinAtar: 10 x 10 x 4 planes of bits, 16 "
    "filters and 128 features; MLP: 8 numbers, two layers of 256; Nature: 4 frames of 84 x 84. Ratios are of times, "
    "taken within interleaved pairs: 2 is half the throughput."
)


@dataclass(frozen=True)
class Case:
    """One size of problem.

    Args:
        name: As printed.
        shape: Of one observation.
        batch: Transitions an update.
        amp: Whether trunks compute in bfloat16.
    """

    name: str
    shape: tuple[int, ...]
    batch: int
    amp: bool = False


CASES = {
    "quick": (Case("MLP, batch 4", (8,), 4),),
    "cpu": (
        Case("MinAtar, batch 32", (10, 10, 4), 32),
        Case("MinAtar, batch 128", (10, 10, 4), 128),
        Case("MLP, batch 32", (8,), 32),
        Case("MLP, batch 128", (8,), 128),
    ),
    "cuda": (
        Case("MinAtar, batch 32", (10, 10, 4), 32),
        Case("Nature, batch 32", (4, 84, 84), 32),
        Case("Nature, batch 256", (4, 84, 84), 256),
        Case("Nature, batch 256, bfloat16", (4, 84, 84), 256, amp=True),
    ),
}


def observations(case: Case, rows: int, generator: torch.Generator) -> Tensor:
    """Random observations of the case's kind."""
    if len(case.shape) == 1:
        return torch.randn(rows, *case.shape, generator=generator)
    if case.shape[-1] < 36:
        return torch.rand(rows, *case.shape, generator=generator) < 0.1
    return torch.randint(256, (rows, *case.shape), generator=generator, dtype=torch.uint8)


def random_batch(case: Case, device: str) -> Batch:
    """A batch on the device."""
    generator = torch.Generator().manual_seed(0)
    here, there = (observations(case, case.batch, generator) for _ in range(2))
    actions = torch.randint(ACTIONS, (case.batch,), generator=generator)
    rewards = torch.randn(case.batch, generator=generator)
    terminated = torch.rand(case.batch, generator=generator) < 0.05
    columns = (here, actions, rewards, there, terminated, torch.ones(case.batch, dtype=torch.int64))
    return Batch(*(column.to(device) for column in columns))


def random_log(case: Case, rows: int) -> Transitions:
    """A log, for bonuses to be fitted on."""
    generator = torch.Generator().manual_seed(1)
    x = observations(case, rows, generator).numpy()
    actions = torch.randint(ACTIONS, (rows,), generator=generator).numpy()
    zeros = torch.zeros(rows)
    return Transitions.from_arrays(x, actions, zeros.numpy(), x, zeros.bool().numpy(), n_actions=ACTIONS)


def ours(case: Case, device: str, compiled: bool, **settings: Any) -> DeepCCVL:
    """Our learner; method "bonus" counts a random log by hashes."""
    config = CCVLConfig(confidences=CONFIDENCES, compile=compiled, amp=case.amp, **settings)
    bonus = None
    if config.method == "bonus":
        bonus = make_bonus("hash", device=device).fit(random_log(case, 4096), torch.Generator().manual_seed(2))
    return DeepCCVL(case.shape, ACTIONS, config, bonus=bonus, device=device)


def cql(case: Case, device: str, compiled: bool, **settings: Any) -> DiscreteCQL:
    """Plain discrete CQL of the same family."""
    return DiscreteCQL(case.shape, ACTIONS, CQLConfig(compile=compiled, amp=case.amp, **settings), device=device)


class Plain(nn.Module):
    """A network without the argument of the confidence, as torchrl calls it."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("one", torch.ones(1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self.one)[:, 0]


def torchrl_update(case: Case, batch: Batch, device: str, compiled: bool) -> Callable[[], Tensor]:
    """A call that makes one update by torchrl's loss on the network of `cql`."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import QValueModule
    from torchrl.objectives import DiscreteCQLLoss, HardUpdate, ValueEstimators

    network = Plain(copy.deepcopy(cql(case, device, False).online["q"]), device)
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])
    actor = TensorDictSequential(module, QValueModule(action_space="categorical"))
    loss = DiscreteCQLLoss(actor, action_space="categorical", loss_function="smooth_l1")
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    loss.to(device)
    follow = HardUpdate(loss, value_network_update_interval=500)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    terminated = batch.terminated.unsqueeze(1)
    following = {
        "observation": batch.next_observations,
        "reward": batch.rewards.unsqueeze(1),
        "terminated": terminated,
        "done": terminated,
    }
    columns = {"observation": batch.observations, "action": batch.actions, "next": following}
    table = TensorDict(columns, [case.batch], device=device)
    objective = torch.compile(loss) if compiled else loss

    def update() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=case.amp):
            found = objective(table.copy())
            total = found["loss_qvalue"] + found["loss_cql"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimiser.step()
        follow.step()
        return total.detach()

    return update


def step(learner: Learner, batch: Batch) -> Callable[[], Tensor]:
    """A call that makes one update."""
    return lambda: learner.update(batch)["loss"]


def rows_of(case: Case, device: str, compiled: bool, quick: bool) -> list[harness.Row]:
    """Every comparison of one case."""
    batch = random_batch(case, device)
    timing = {"repeats": 3, "min_time_s": 0.0} if quick else {"repeats": 20, "min_time_s": 0.2, "warmup": 5}
    label = f"{case.name}{', compiled' if compiled else ''}"
    goal = None if quick else GOAL
    plain = "our discrete CQL"
    found = []

    def compare(what: str, learner: Learner, peer: Callable[[], Tensor], peer_name: str, aim: float | None) -> None:
        found.append(harness.compare(f"{label}: {what}", step(learner, batch), peer, peer_name, aim, **timing))

    peer = step(cql(case, device, compiled), batch)
    compare("DeepCCVL", ours(case, device, compiled), peer, plain, goal)
    if find_spec("torchrl") is not None:
        rival = torchrl_update(case, batch, device, compiled)
        compare("DeepCCVL", ours(case, device, compiled), rival, "torchrl's DiscreteCQLLoss", goal)
        compare("our discrete CQL", cql(case, device, compiled), rival, "torchrl's DiscreteCQLLoss", None)
    if not compiled:
        compare("DeepCCVL, bonus, box", ours(case, device, compiled, method="bonus"), peer, plain, None)
        compare("DeepCCVL, bonus, sum", ours(case, device, compiled, method="bonus", budget="sum"), peer, plain, None)
        compare("DeepCCVL, cosine head", ours(case, device, compiled, head="cosine"), peer, plain, None)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv, devices=DEVICES)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for case in CASES["quick" if args.quick else args.device]:
        for compiled in (False,) if args.quick else (False, True):
            rows += rows_of(case, args.device, compiled, args.quick)
            torch.compiler.reset()
    harness.save(NAME, args, rows, NOTES, ["tensordict", "torchrl"])


if __name__ == "__main__":
    main()
