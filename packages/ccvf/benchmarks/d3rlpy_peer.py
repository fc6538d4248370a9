"""d3rlpy's discrete CQL on a saved log, in an environment of its own: values and returns as JSON.

Needs d3rlpy (group d3rlpy). Only files are exchanged: a log that `ccvf.io.save_transitions` wrote, and the answer. The
network is ours (`ccvf.bodies.make_body`), so that losses and updates are what is compared.
"""

import harness  # isort: skip  (one thread: before numpy)

import argparse
import importlib.metadata
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccvf.bodies import make_body
from ccvf.environments import make_vector
from ccvf.evaluating import evaluate
from ccvf.io import load_transitions
from ccvf.policies import FixedPolicy
from ccvf.transitions import Transitions


def as_episodes(data: Transitions) -> dict[str, np.ndarray]:
    """Columns in which d3rlpy finds exactly these transitions.

    It takes the next row of an episode as the next observation and drops the last transition of an episode that did not
    terminate. So each run of rows that follow one another becomes an episode, with a row more where its last transition
    did not terminate; action and reward of that row are never used.

    Args:
        data: The log, of single steps.

    Returns:
        Arguments of `MDPDataset`.
    """
    if (data.steps != 1).any():
        raise ValueError("the log has steps of several frames; d3rlpy makes them itself: give the log before n_step")
    ends = ~data.linked
    extra = ends & ~data.terminated
    # place[i]: position of transition i among the rows, after the rows added for runs before it
    place = np.arange(len(data)) + np.concatenate([[0], np.cumsum(extra)[:-1]])
    total = len(data) + int(extra.sum())
    observations = np.zeros((total, *data.observation_shape), _dtype(data))
    observations[place] = data.observations()
    observations[place[extra] + 1] = data.next_observations(extra)
    actions, rewards = np.zeros((total, 1), np.int64), np.zeros((total, 1), np.float32)
    actions[place, 0], rewards[place, 0] = data.actions, data.rewards
    terminals, timeouts = np.zeros(total, np.float32), np.zeros(total, np.float32)
    terminals[place[data.terminated]] = 1
    timeouts[place[extra] + 1] = 1
    return {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
    }


def _dtype(data: Transitions) -> type:
    """Bits become bytes, which d3rlpy stores; it hands float32 to networks."""
    return np.uint8 if data.frames.dtype == bool else data.frames.dtype.type


class Values:
    """The peer's values as ours are asked for: the same at every confidence."""

    def __init__(self, algorithm: Any, n_actions: int) -> None:
        self.algorithm, self.n_actions = algorithm, n_actions

    def q_values(self, observations: np.ndarray, deltas: np.ndarray) -> np.ndarray:
        """Values of every action."""
        x = observations.astype(np.uint8) if observations.dtype == bool else observations
        columns = [self.algorithm.predict_value(x, np.full(len(x), action)) for action in range(self.n_actions)]
        return np.repeat(np.stack(columns, 1)[:, None], len(deltas), 1)


def encoder(seed: int) -> Any:
    """Our body as d3rlpy's encoder."""
    from d3rlpy.models.encoders import EncoderFactory

    @dataclass()
    class OurBody(EncoderFactory):
        """Made by `ccvf.bodies.make_body`."""

        options: dict[str, Any] = field(default_factory=dict)

        def create(self, observation_shape: Sequence[int]) -> torch.nn.Module:
            return make_body("auto", tuple(observation_shape), generator=torch.Generator().manual_seed(seed))

        @staticmethod
        def get_type() -> str:
            return "ccvf"

    return OurBody()


def train(data: Transitions, args: argparse.Namespace) -> tuple[Any, float]:
    """The trained algorithm and the seconds of an update, sampling included."""
    import d3rlpy
    import structlog
    from d3rlpy.dataset import MDPDataset
    from d3rlpy.logging import NoopAdapterFactory

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    d3rlpy.seed(args.seed)
    columns = as_episodes(data)
    dataset = MDPDataset(**columns, action_space=d3rlpy.ActionSpace.DISCRETE, action_size=data.n_actions)
    found = dataset.transition_count
    assert found == len(data), f"d3rlpy finds {found} transitions of {len(data)}"
    bytes_of_pictures = data.frames.dtype == np.uint8 and len(data.observation_shape) == 3
    algorithm = d3rlpy.algos.DiscreteCQLConfig(
        learning_rate=args.learning_rate,
        optim_factory=d3rlpy.optimizers.AdamFactory(clip_grad_norm=10.0),
        batch_size=args.batch_size,
        gamma=args.gamma,
        alpha=args.alpha,
        target_update_interval=args.target_period,
        encoder_factory=encoder(args.seed),
        observation_scaler=d3rlpy.preprocessing.PixelObservationScaler() if bytes_of_pictures else None,
    ).create(device=args.device)
    history = algorithm.fit(
        dataset,
        n_steps=args.updates,
        n_steps_per_epoch=args.updates,
        logger_adapter=NoopAdapterFactory(),
        show_progress=False,
        save_interval=args.updates + 1,
    )
    return algorithm, history[-1][1]["time_step"]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="d3rlpy_peer.py", description=__doc__)
    found.add_argument("log", type=Path, help="a log, of ccvf.io.save_transitions")
    found.add_argument("out", type=Path, help="JSON file to write")
    found.add_argument("--updates", type=int, default=10_000)
    found.add_argument("--batch-size", type=int, default=32)
    found.add_argument("--learning-rate", type=float, default=3e-4)
    found.add_argument("--target-period", type=int, default=500)
    found.add_argument("--gamma", type=float, default=0.99)
    found.add_argument("--alpha", type=float, default=1.0)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--device", default="cpu")
    found.add_argument("--rows", type=int, default=256, help="values are written of so many first rows of the log")
    found.add_argument("--environment", help="a name for ccvf.environments.make_vector: returns are written")
    found.add_argument("--episodes", type=int, default=20)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and write what came out."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    data = load_transitions(args.log)
    algorithm, seconds = train(data, args)
    values = Values(algorithm, data.n_actions)
    answer: dict[str, Any] = {
        "peer": "d3rlpy DiscreteCQL",
        "versions": {name: importlib.metadata.version(name) for name in ("d3rlpy", "torch", "ccvf")},
        "options": {name: value for name, value in vars(args).items() if name not in ("log", "out")},
        "log": data.fingerprint(),
        "seconds_per_update": seconds,
        "load": harness.load(),
        "values": values.q_values(data.observations(slice(args.rows)), np.ones(1))[:, 0].tolist(),
    }
    if args.environment is not None:
        stepper = make_vector(args.environment, 1, seed=args.seed)
        played = evaluate(FixedPolicy(values, 1.0), stepper, args.episodes, seed=args.seed, gamma=args.gamma)
        stepper.close()
        answer["returns"] = played.returns.tolist()
    args.out.write_text(json.dumps(answer))
    print(f"{args.out}: {seconds * 1e3:.2f} ms an update", file=sys.stderr)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        main()
