"""Logs to learn from and to compare on, made here: seeded, kept on disk, with a fingerprint; nothing is downloaded.

A maker gives the same log for the same arguments on one machine and one set of library versions; elsewhere rounding in
the behaviour's training may lead it another way. What was made is told by ``metadata["fingerprint"]``.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

import torch

from ccvf.baselines import DQN
from ccvf.collecting import ReplayOptions, collect_replay
from ccvf.configs import DQNConfig
from ccvf.environments import Stepper, make_vector
from ccvf.gridworlds import gridworld_log, lava_world
from ccvf.io import FormatError, load_transitions
from ccvf.transitions import Transitions
from common_core.records import to_jsonable
from common_core.seeding import Streams

__all__ = [
    "ATARI",
    "ATARI_OPTIONS",
    "MINATAR",
    "MINATAR_OPTIONS",
    "atari_replay",
    "cache_folder",
    "lava_log",
    "minatar_replay",
]

MINATAR = DQNConfig(learning_rate=3e-4, target_period=500)
MINATAR_OPTIONS = ReplayOptions()
ATARI = DQNConfig(
    learning_rate=1e-4, adam_epsilon=1.5e-4, target_period=2000, clip_rewards=True, body="nature"
)  # fmt: skip
ATARI_OPTIONS = ReplayOptions(epsilon=0.01, warmup=20_000)


def lava_log(
    kind: str | SupportsFloat = "narrow",
    transitions: SupportsInt = 1000,
    seed: SupportsInt = 0,
    *,
    fraction: SupportsFloat = 1.0,
) -> Transitions:
    """A log of the 7 x 7 gridworld with lava; made in well under a second, so it is not kept on disk.

    Args:
        kind: "narrow" (mostly optimal), "broad" (all random), or the share of random actions.
        transitions: Length of the whole log.
        seed: Seed of the log and of its parts.
        fraction: Share of the transitions to keep, drawn uniformly; smaller shares lie in larger ones.

    Returns:
        The log; observations are the numbers of the 49 states.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> log = lava_log("broad", 200, seed=1)
        >>> log.fingerprint() == log.metadata["fingerprint"]
        True
    """
    rng = Streams(int(seed), "lava").numpy()
    data = gridworld_log(lava_world(), kind, transitions, rng)
    recipe = {
        "maker": "lava_log/1",
        "env": "gridworld:lava",
        "kind": kind if isinstance(kind, str) else float(kind),
        "transitions": int(transitions),
        "seed": int(seed),
    }
    return _part(replace(data, metadata=recipe), fraction, seed, "transitions")


def minatar_replay(
    game: str,
    seed: SupportsInt = 0,
    frames: SupportsInt = 200_000,
    *,
    fraction: SupportsFloat = 1.0,
    by: str = "transitions",
    envs: SupportsInt = 8,
    config: DQNConfig = MINATAR,
    options: ReplayOptions = MINATAR_OPTIONS,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Transitions:
    """Everything that a double DQN goes through while it learns a MinAtar game: 200,000 frames in some minutes.

    The whole log is kept in `cache_folder()`; an interrupted one goes on after its last part.

    Args:
        game: breakout, asterix, freeway, seaquest or space_invaders.
        seed: Seed of everything.
        frames: Length of the whole log.
        fraction: Share to keep; smaller shares of one seed lie in larger ones.
        by: How a share is drawn (see `Transitions.subsample`).
        envs: Games played side by side.
        config: Settings of the double DQN.
        options: Schedule of exploration and updates.
        device: Where the double DQN computes.
        progress: Whether to show a bar while it is made.

    Returns:
        The log.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If MinAtar is not installed.
    """
    make = lambda: make_vector(f"minatar:{game}", envs)  # noqa: E731
    recipe = _recipe("minatar_replay/1", f"minatar:{game}", seed, frames, envs, config, options)
    return _part(_kept(recipe, make, config, options, device, progress), fraction, seed, by)


def atari_replay(
    game: str,
    seed: SupportsInt = 0,
    frames: SupportsInt = 500_000,
    *,
    fraction: SupportsFloat = 1.0,
    by: str = "transitions",
    envs: SupportsInt = 16,
    config: DQNConfig = ATARI,
    options: ReplayOptions = ATARI_OPTIONS,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Transitions:
    """Everything that a double DQN goes through while it learns an Atari game, in the form of the DQN-replay data.

    Sticky actions .25, 4 frames a step, 84 x 84 grey values, stacks of 4; rewards are logged as they are and learnt
    from by their signs. Its scores cannot be compared with those of the published data: the ROMs are others.

    Args:
        game: Name in snake case, such as "pong".
        seed: Seed of everything.
        frames: Length of the whole log, in steps of 4 frames; each takes some 7 kB.
        fraction: Share to keep; smaller shares of one seed lie in larger ones.
        by: How a share is drawn (see `Transitions.subsample`); the published protocol is "shards".
        envs: Games played side by side.
        config: Settings of the double DQN.
        options: Schedule of exploration and updates.
        device: Where the double DQN computes; None: a GPU if there is one.
        progress: Whether to show a bar while it is made.

    Returns:
        The log.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If ale-py is not installed.

    Reference:
        Agarwal, Schuurmans, Norouzi (2020). An optimistic perspective on offline reinforcement learning, section 3.
    """
    make = lambda: make_vector(f"atari:{game}", envs)  # noqa: E731
    found = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    recipe = _recipe("atari_replay/1", f"atari:{game}", seed, frames, envs, config, options)
    return _part(_kept(recipe, make, config, options, found, progress), fraction, seed, by)


def cache_folder() -> Path:
    """Where logs are kept: CCVF_CACHE, or `ccvf` in the platform's folder for caches.

    Returns:
        A folder, which may not exist yet.
    """
    if own := os.environ.get("CCVF_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "ccvf" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ccvf"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccvf"


def _recipe(
    maker: str,
    env: str,
    seed: SupportsInt,
    frames: SupportsInt,
    envs: SupportsInt,
    config: DQNConfig,
    options: ReplayOptions,
) -> dict[str, Any]:
    """All that a log depends on, as JSON values."""
    return to_jsonable(
        {
            "maker": maker,
            "env": env,
            "seed": int(seed),
            "asked": int(frames),
            "envs": int(envs),
            "config": asdict(config),
            "options": asdict(options),
        }
    )


def _kept(
    recipe: Mapping[str, Any],
    make: Callable[[], Stepper],
    config: DQNConfig,
    options: ReplayOptions,
    device: str | torch.device,
    progress: bool,
) -> Transitions:
    """The log of a recipe from the folder, or made and put there; a folder that cannot be written is no obstacle."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{recipe['env'].replace(':', '-')}-{recipe['asked']}-s{recipe['seed']}-{digest}.npz"
    wanted = cache_folder() / name
    with suppress(FormatError):  # absent, damaged or of another version: made anew
        return load_transitions(wanted)
    path: Path | None = wanted
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = None
    stepper = make()
    try:
        weights = Streams(recipe["seed"], "ccvf.datasets").torch("weights")
        learner = DQN(stepper.observation_shape, stepper.n_actions, config, generator=weights, device=device)
        return collect_replay(
            stepper,
            learner,
            recipe["asked"],
            options,
            seed=recipe["seed"],
            path=path,
            metadata={"maker": recipe["maker"], "asked": recipe["asked"], "config": recipe["config"]},
            progress=progress,
        )
    finally:
        stepper.close()


def _part(data: Transitions, fraction: SupportsFloat, seed: SupportsInt, by: str) -> Transitions:
    """The asked share of a log, with its fingerprint."""
    if float(fraction) != 1:
        data = data.subsample(fraction, Streams(int(seed), "ccvf.datasets").numpy("subsample"), by)
    return replace(data, metadata={**data.metadata, "fingerprint": data.fingerprint()})
