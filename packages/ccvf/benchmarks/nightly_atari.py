"""One Atari game from nothing to an adaptive policy: collect a log, learn at all confidences, play.

    python nightly_atari.py --device cuda                    Pong: 500,000 steps logged, 200,000 updates
    python nightly_atari.py --quick                          toy sizes: shows that it runs, on a CPU too

The stages are timed one by one; the goal on one GPU is 600 s for all of them together.
"""

import sys
import time
from collections.abc import Sequence

import harness
import numpy as np
import torch

from ccvf.adaptive import AdaptivePolicy
from ccvf.baselines import DQN
from ccvf.bonuses import make_bonus
from ccvf.ccvl import DeepCCVL
from ccvf.collecting import ReplayOptions, collect_replay
from ccvf.configs import CCVLConfig
from ccvf.datasets import ATARI, ATARI_OPTIONS
from ccvf.environments import make_vector
from ccvf.evaluating import evaluate
from ccvf.policies import FixedPolicy
from ccvf.training import train
from common_core.benchmarks import Row, row


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages, write their times and the returns."""
    own = harness.parser("atari", ("cpu", "cuda"))
    own.add_argument("--game", default="pong")
    own.add_argument("--steps", type=int, default=500_000, help="length of the log")
    own.add_argument("--updates", type=int, default=200_000)
    own.add_argument("--batch", type=int, default=32)
    own.add_argument("--envs", type=int, default=16)
    own.add_argument("--episodes", type=int, default=16)
    args = harness.options("atari", argv, own)
    options, longest = ATARI_OPTIONS, 27_000
    if args.quick:
        args.steps, args.updates, args.envs, args.episodes, longest = 400, 5, 2, 2, 50
        options = ReplayOptions(warmup=100)
    name, seconds = f"atari:{args.game}", {}
    stepper = make_vector(name, args.envs, seed=0)
    start = time.perf_counter()
    behaviour = DQN(stepper.observation_shape, stepper.n_actions, ATARI, device=args.device)
    log = collect_replay(stepper, behaviour, args.steps, options, seed=0, progress=True)
    seconds["collect"] = time.perf_counter() - start
    start = time.perf_counter()
    bonus = make_bonus("behaviour", device=args.device, steps=5 if args.quick else 3000)
    bonus = bonus.fit(log, torch.Generator().manual_seed(0))
    config = CCVLConfig(
        method="bonus", relative=True, body="nature", clip_rewards=True, learning_rate=1e-4, adam_epsilon=1.5e-4,
        target_period=2000, amp=args.device == "cuda", compile=args.device == "cuda",
    )  # fmt: skip
    learner = DeepCCVL(log.observation_shape, log.n_actions, config, bonus=bonus, device=args.device)
    train(learner, log, updates=args.updates, batch_size=args.batch, progress=True)
    seconds["learn"] = time.perf_counter() - start
    start, returns = time.perf_counter(), {}
    policies = {"adaptive": AdaptivePolicy(learner, gamma=learner.gamma), "delta = 1": FixedPolicy(learner, 1.0)}
    for policy, acting in policies.items():
        found = evaluate(acting, make_vector(name, args.envs), args.episodes, seed=1, max_steps=longest)
        returns[policy] = harness.mean(found.returns)
    seconds["play"] = time.perf_counter() - start
    rows: list[Row] = [row(stage, value, None, "none") for stage, value in seconds.items()]
    rows.append(row("all stages", float(np.sum(list(seconds.values()))), None, "none", goal=600.0))
    rows += [
        row(f"return, {policy}", value, None, "none", unit="return of an episode") for policy, value in returns.items()
    ]
    notes = f"{args.game}: {args.steps:,} steps logged, {args.updates:,} updates of {args.batch}, {args.envs} games"
    harness.save("atari", args, rows, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
