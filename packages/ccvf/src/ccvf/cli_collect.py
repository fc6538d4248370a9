"""What `ccvf collect` does: logs by acting, by a learner that learns, or as a part of another log; resumable."""

import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

from ccvf.cli_logs import n_states_there, read_log, with_metadata
from ccvf.environments import Stepper, make_vector
from ccvf.io import FormatError, load_transitions, save_transitions
from ccvf.policies import FixedPolicy, Policy, RandomPolicy
from ccvf.transitions import Transitions
from common_core.console import progress
from common_core.records import RecordError, read_json, write_json_atomic
from common_core.seeding import Streams

__all__ = ["Wanted", "collected", "part_of"]

SCHEMA = "repertory.ccvf.collecting/1"
_KINDS = ("narrow", "broad")
_PART = 10_000  # frames of a part, where nothing is learnt


@final
@dataclass(frozen=True)
class Wanted:
    """What is to be collected.

    Attributes:
        name: Environment, or a log to take a part of.
        behaviour: Who acts.
        frames: Transitions of the whole log.
        fraction: Share that is kept.
        by: How it is drawn.
        seed: Of everything.
        envs: Environments side by side.
        delta: Confidence of a saved learner.
        epsilon: Share of random actions.
        parts: Parts of the whole log.
    """

    name: str
    behaviour: str
    frames: int
    fraction: float
    by: str
    seed: int
    envs: int
    delta: float
    epsilon: float | None
    parts: int | None

    def recipe(self) -> dict[str, Any]:
        """What the whole log depends on, as JSON values."""
        found = {key: value for key, value in vars(self).items() if key not in ("fraction", "by")}
        return json.loads(json.dumps(found))


def collected(wanted: Wanted, out: Path) -> Transitions:
    """Collect, and write the log.

    Args:
        wanted: What.
        out: The npz file.

    Returns:
        The log that was written.

    Raises:
        ValueError: If the settings do not fit, or parts on disk are of another recipe.
        KeyboardInterrupt: As it came, after a word on how to go on.
    """
    whole = out if wanted.fraction == 1 else out.with_name(f"{out.name}.whole")
    data = _kept(whole, wanted)
    if data is None:
        try:
            data = _whole(wanted, whole)
        except KeyboardInterrupt:
            kept = whole.with_name(f"{whole.name}.parts").is_dir()
            word = "whole parts are kept; the same command goes on after them" if kept else "no part was complete"
            progress().print(word, soft_wrap=True)
            raise
    if wanted.fraction != 1:
        rng = None if wanted.by == "shards" else Streams(wanted.seed, "ccvf.cli").numpy("subsample")
        data = data.subsample(wanted.fraction, rng, wanted.by)
        save_transitions(out, data)
        whole.unlink(missing_ok=True)
    return data


def _kept(whole: Path, wanted: Wanted) -> Transitions | None:
    """The whole log of a part, if only the drawing was interrupted."""
    if wanted.fraction == 1 or not whole.exists():
        return None
    try:
        data = load_transitions(whole)
    except FormatError:
        return None
    return data if data.metadata.get("command") == wanted.recipe() else None


def _whole(wanted: Wanted, path: Path) -> Transitions:
    if wanted.behaviour in _KINDS:
        from ccvf.datasets import lava_log

        if wanted.name != "gridworld:lava":
            raise ValueError(f"behaviour {wanted.behaviour!r} is known of gridworld:lava only; give random, dqn or a "
                             "learner's folder")  # fmt: skip
        found = lava_log(wanted.behaviour, wanted.frames, wanted.seed)
        return _saved(path, with_metadata(found, n_states=49, command=wanted.recipe()))
    stepper = make_vector(wanted.name, wanted.envs, seed=wanted.seed)
    try:
        if wanted.behaviour == "dqn":
            return _replay(wanted, stepper, path)
        return _acted(wanted, stepper, path)
    finally:
        stepper.close()


def _saved(path: Path, data: Transitions) -> Transitions:
    save_transitions(path, data)
    return data


def _about(wanted: Wanted, stepper: Stepper) -> dict[str, Any]:
    states = n_states_there(stepper)
    return {"command": wanted.recipe(), **({} if states is None else {"n_states": states})}


def _replay(wanted: Wanted, stepper: Stepper, path: Path) -> Transitions:
    """Everything that a double DQN goes through."""
    from ccvf.baselines import DQN
    from ccvf.collecting import ReplayOptions, collect_replay
    from ccvf.configs import DQNConfig
    from ccvf.datasets import ATARI, ATARI_OPTIONS, MINATAR, MINATAR_OPTIONS
    from common_core.devices import best_device

    kind = wanted.name.partition(":")[0]
    config, usual = {"minatar": (MINATAR, MINATAR_OPTIONS), "atari": (ATARI, ATARI_OPTIONS)}.get(
        kind, (DQNConfig(n_states=n_states_there(stepper), learning_rate=1e-3, target_period=250), ReplayOptions())
    )
    options = ReplayOptions(
        epsilon=usual.epsilon if wanted.epsilon is None else wanted.epsilon,
        warmup=min(usual.warmup, wanted.frames // 10),
        parts=usual.parts if wanted.parts is None else wanted.parts,
    )
    device = best_device("torch") if kind == "atari" else "cpu"
    weights = Streams(wanted.seed, "ccvf.cli").torch("weights")
    learner = DQN(stepper.observation_shape, stepper.n_actions, config, generator=weights, device=device)
    return collect_replay(
        stepper, learner, wanted.frames, options, seed=wanted.seed, path=path, metadata=_about(wanted, stepper),
        progress=progress().is_terminal,
    )  # fmt: skip


def _acted(wanted: Wanted, stepper: Stepper, path: Path) -> Transitions:
    """A policy as it is, part by part; each begins with new episodes and random streams of its own."""
    from ccvf.collecting import collect

    count = -(-wanted.frames // _PART) if wanted.parts is None else wanted.parts
    if wanted.frames < 1 or count < 1:
        raise ValueError(f"{wanted.frames} frames in {count} parts; give at least 1 of both")
    edges = [k * wanted.frames // count for k in range(count + 1)]
    sizes = [b - a for a, b in pairwise(edges) if b > a]
    make_policy = _actor(wanted, stepper)
    folder, about, parts = path.with_name(f"{path.name}.parts"), _about(wanted, stepper), []
    _claim(folder, wanted)
    for k, size in enumerate(sizes):
        file = folder / f"part-{k:04d}.npz"
        if file.exists():
            parts.append(load_transitions(file))
            continue
        tree = Streams(wanted.seed, "ccvf.cli", k)
        policy = make_policy(tree)
        part = collect(stepper, policy, size, seed=tree.env(), progress=progress().is_terminal)
        if len(sizes) > 1:
            _begin(folder, wanted)
            save_transitions(file, part)
        parts.append(part)
    about |= {"env": stepper.name, "collected": wanted.behaviour, "seed": wanted.seed, "envs": stepper.n}
    data = _saved(path, Transitions.concatenate(parts, about))
    shutil.rmtree(folder, ignore_errors=True)
    return data


def _actor(wanted: Wanted, stepper: Stepper) -> Any:
    """A function that makes the policy of a part from its random streams."""
    if wanted.behaviour == "random":
        return lambda tree: RandomPolicy(stepper.n_actions, tree.numpy("policy"))
    from ccvf.cli_runs import Run

    run = Run.load(Path(wanted.behaviour))
    run.check_environment(stepper)
    values, epsilon = run.values(), wanted.epsilon or 0.0

    def make(tree: Streams) -> Policy:
        return FixedPolicy(values, wanted.delta, epsilon=epsilon, generator=tree.numpy("policy"))

    make(Streams(wanted.seed))  # what is wrong with delta or epsilon is said before any frame
    return make


def _claim(folder: Path, wanted: Wanted) -> None:
    """Refuse a folder with parts of another recipe."""
    if not folder.exists():
        return
    try:
        found = read_json(folder / "recipe.json", SCHEMA)["recipe"]
    except (RecordError, KeyError):
        found = None
    if found != wanted.recipe():
        known = found if isinstance(found, dict) else {}
        differ = ", ".join(key for key, value in wanted.recipe().items() if known.get(key) != value)
        raise ValueError(f"{folder} holds parts of another log (other {differ}); finish that one as it was begun, give "
                         "another file, or remove the folder")  # fmt: skip


def _begin(folder: Path, wanted: Wanted) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        write_json_atomic(folder / "recipe.json", {"schema": SCHEMA, "recipe": wanted.recipe()})


def part_of(name: str, fraction: float, by: str, seed: int) -> Transitions:
    """A part of a log, or the whole of it.

    Args:
        name: The log.
        fraction: Share to keep, in (0, 1].
        by: How it is drawn.
        seed: Of the draw; parts of one seed lie in each other.

    Returns:
        The log.

    Raises:
        ValueError: If the log cannot be read, or the fraction is out of range.
    """
    data = read_log(name)
    if fraction == 1:
        return data
    return data.subsample(fraction, None if by == "shards" else Streams(seed, "ccvf.cli").numpy("subsample"), by)
