"""Logs made by acting: with a policy as it is, or as a learner goes from random to skilled."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsInt, final

import numpy as np
from jaxtyping import Float

from ccvf.collecting_log import GrowingLog
from ccvf.collecting_replay import Replay
from ccvf.environments import Stepper
from ccvf.io import load_checkpoint, load_transitions, save_checkpoint, save_transitions
from ccvf.learners import Learner
from ccvf.policies import Policy
from ccvf.progress import bar
from ccvf.transitions import Transitions
from common_core.records import to_jsonable
from common_core.seeding import Streams

__all__ = ["ReplayOptions", "collect", "collect_replay", "learning_curve"]


@final
@dataclass(frozen=True)
class ReplayOptions:
    """How a learner is trained while its experience is logged.

    Args:
        epsilon: Share of random actions after the decay, in [0, 1].
        decay: Share of the frames over which epsilon falls from 1, linearly.
        warmup: Frames before the first update.
        batch_size: Transitions an update.
        frames_per_update: Frames for each update.
        parts: Into how many parts the log is cut. Episodes are cut where a part ends, and a resume goes on there:
            more parts lose less work, and cut more episodes.

    Raises:
        ValueError: If a number is out of range.
    """

    epsilon: float = 0.05
    decay: float = 0.25
    warmup: int = 2000
    batch_size: int = 32
    frames_per_update: int = 4
    parts: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or not 0 <= self.decay <= 1:
            raise ValueError(f"epsilon={self.epsilon:g} and decay={self.decay:g} are shares in [0, 1]")
        if self.warmup < 0 or min(self.batch_size, self.frames_per_update, self.parts) < 1:
            raise ValueError(
                f"warmup={self.warmup}, batch_size={self.batch_size}, frames_per_update={self.frames_per_update}, "
                f"parts={self.parts}: counts are at least 1 (warmup 0)"
            )

    def epsilon_at(self, frame: int, frames: int) -> float:
        """Share of random actions.

        Args:
            frame: Frames so far.
            frames: Frames in all.

        Returns:
            The share.
        """
        done = 1.0 if self.decay == 0 else min(1.0, frame / (self.decay * frames))
        return 1 + done * (self.epsilon - 1)


def collect(
    stepper: Stepper,
    policy: Policy,
    frames: SupportsInt,
    *,
    seed: SupportsInt = 0,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Transitions:
    """Log a policy.

    Args:
        stepper: The environments.
        policy: Who acts; it is reset first.
        frames: Transitions wanted; rounded up to a multiple of the number of environments.
        seed: Seed of the episodes.
        metadata: What else is known of the origin, JSON values.
        progress: Whether to show a bar.

    Returns:
        The log. Episodes that still go on at the end are cut, which counts as truncated.

    Raises:
        ValueError: If fewer than one frame is asked for, or the policy gives actions that are none.

    Example:
        >>> from ccvf.environments import make_vector
        >>> from ccvf.policies import RandomPolicy
        >>> stepper = make_vector("gridworld:lava", 4)
        >>> len(collect(stepper, RandomPolicy(4, np.random.default_rng(0)), 100))
        100
    """
    count = _rounded(frames, stepper.n)
    log = GrowingLog(stepper, count)
    observations = stepper.reset(int(seed))
    log.begin(observations)
    policy.reset()
    with bar(progress, f"collecting {stepper.name}", count) as show:
        while log.size < count:
            actions = _checked(policy.act(observations), stepper)
            step = stepper.step(actions)
            policy.observe(step.rewards, step.next_observations, step.terminated, step.truncated)
            log.append(actions, step)
            if step.ended.any():
                policy.reset(step.ended)
            observations = step.observations
            show(log.size, "")
    log.close_part()
    about = {"env": stepper.name, "collected": type(policy).__name__, "seed": int(seed), "envs": stepper.n}
    return log.log({**about, **(metadata or {})})


def collect_replay(
    stepper: Stepper,
    learner: Learner,
    frames: SupportsInt,
    options: ReplayOptions | None = None,
    *,
    seed: SupportsInt = 0,
    path: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
    resident: bool = True,
) -> Transitions:
    """Log everything that a learner goes through while it learns online, as the DQN-replay data were made.

    The learner acts greedily at confidence 1 but for the share epsilon, and learns from uniform draws of everything so
    far. Equal seeds and learners give equal logs on a CPU, interrupted or not: the log is made in parts, and every
    part begins with new episodes and random streams of its own, derived from the seed and its first frame (the state
    of an environment cannot be kept). With `path`, parts and the learner are kept in ``<path>.parts`` until the whole
    log is at `path`; calling again after an interruption goes on after the last whole part.

    Args:
        stepper: The environments.
        learner: Untrained; it is trained here.
        frames: Transitions wanted; each part is rounded up to a multiple of the number of environments.
        options: Schedule of exploration and updates; the defaults if None.
        seed: Seed of episodes, random actions and draws.
        path: Where the finished log goes (npz; an old file is replaced); None: nothing is kept on disk.
        metadata: What else is known of the origin, JSON values.
        progress: Whether to show a bar.
        resident: On a GPU, whether frames are kept there.

    Returns:
        The log, in order of time. Episodes that a part's end cut count as truncated.

    Raises:
        ValueError: If a number is out of range, environment and learner do not fit, or the parts on disk are of
            another recipe.
        KeyboardInterrupt: On Ctrl-C; what is on disk is whole.

    Reference:
        Agarwal, Schuurmans, Norouzi (2020). An optimistic perspective on offline reinforcement learning, section 3.
    """
    chosen = ReplayOptions() if options is None else options
    if (learner.observation_shape, learner.n_actions) != (stepper.observation_shape, stepper.n_actions):
        raise ValueError(
            f"the learner takes observations {learner.observation_shape} and {learner.n_actions} actions; "
            f"{stepper.name} has {stepper.observation_shape} and {stepper.n_actions}"
        )
    sizes = _part_sizes(frames, chosen.parts, stepper.n)
    recipe = to_jsonable(
        {
            "env": stepper.name,
            "collected": type(learner).__name__,
            "seed": int(seed),
            "envs": stepper.n,
            "frames": sum(sizes),
            "options": asdict(chosen),
            **(metadata or {}),
        }
    )
    run = _Run(stepper, learner, chosen, sizes, int(seed), resident)
    parts = None if path is None else _Parts(Path(f"{os.fspath(path)}.parts"), recipe)
    if parts is not None:
        run.resume(parts)
    with bar(progress, f"collecting {stepper.name}", sum(sizes), run.log.size) as show:
        while run.done < len(sizes):
            part = run.play(show)
            if parts is not None:
                parts.add(part, learner)
    data = run.log.log(recipe)
    if path is not None and parts is not None:
        save_transitions(path, data)
        parts.remove()
    return data


def learning_curve(data: Transitions, points: SupportsInt = 20) -> Float[np.ndarray, "points 2"]:
    """Returns of the logged episodes as time goes on.

    Args:
        data: A log in order of time.
        points: Into how many stretches of equal numbers of transitions it is cut.

    Returns:
        Transitions until the end of each stretch, and the mean return of the episodes whose last transition lies in
        it, those that were cut there included (NaN if there is none).
    """
    ends = np.append(data.episodes[1:] != data.episodes[:-1], True).nonzero()[0]
    edges = np.linspace(0, len(data), int(points) + 1)[1:]
    stretch = np.searchsorted(edges, ends, side="right").clip(max=len(edges) - 1)
    counts = np.bincount(stretch, minlength=len(edges))
    sums = np.bincount(stretch, weights=data.returns(), minlength=len(edges))
    means = np.divide(sums, counts, out=np.full(len(edges), np.nan), where=counts > 0)
    return np.stack([edges, means], axis=1)


@final
class _Run:
    """A learner at work: what is logged, and which part is next."""

    def __init__(
        self, stepper: Stepper, learner: Learner, options: ReplayOptions, sizes: list[int], seed: int, resident: bool
    ) -> None:
        self.stepper, self.learner, self.options, self.sizes = stepper, learner, options, sizes
        self.frames, self.streams, self.done = sum(sizes), Streams(seed, "ccvf.replay"), 0
        self.log = GrowingLog(stepper, self.frames)
        self.replay = Replay(self.log, learner.device, resident)
        self._greedy = np.ones(1)

    def resume(self, parts: "_Parts") -> None:
        """Take over the parts that are there."""
        for part in parts.load(self.learner):
            self.log.extend(part)
            self.done += 1

    def play(self, show: Any) -> Transitions:
        """Play one part to its end."""
        streams = self.streams.child(self.log.size)
        rng, begin = streams.numpy("play"), self.log.part
        end = self.log.size + self.sizes[self.done]
        observations = self.stepper.reset(streams.env())
        self.log.begin(observations)
        while self.log.size < end:
            actions = self._act(observations, rng)
            step = self.stepper.step(actions)
            self.log.append(actions, step)
            self._learn(rng)
            observations = step.observations
            show(self.log.size, "")
        part = self.log.close_part()
        self.replay.forget(*begin)
        self.done += 1
        return part

    def _act(self, observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        epsilon = self.options.epsilon_at(self.log.size, self.frames)
        random = rng.integers(self.stepper.n_actions, size=self.stepper.n)
        strays = rng.random(self.stepper.n) < epsilon
        if strays.all():
            return random
        greedy = self.learner.q_values(observations, self._greedy)[:, 0].argmax(-1)
        return np.where(strays, random, greedy)

    def _learn(self, rng: np.random.Generator) -> None:
        if self.log.size <= self.options.warmup:
            return
        before = max(self.log.size - self.stepper.n, self.options.warmup)
        per = self.options.frames_per_update
        for _ in range(self.log.size // per - before // per):
            self.learner.update(self.replay.draw(self.options.batch_size, rng))


@final
class _Parts:
    """What is on disk of an unfinished log: its parts, and the learner after the last."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.folder, self.recipe = folder, recipe
        self._state, self._fingerprints = folder / "state.safetensors", []

    def load(self, learner: Learner) -> list[Transitions]:
        """Parts that are there; the learner becomes what it was after the last."""
        if not self._state.exists():
            return []
        tensors, extra = load_checkpoint(self._state)
        if extra["recipe"] != self.recipe:
            differ = sorted(key for key in {*extra["recipe"], *self.recipe}
                            if extra["recipe"].get(key) != self.recipe.get(key))  # fmt: skip
            raise ValueError(
                f"{self.folder} holds parts of another log (other {', '.join(differ)}); finish that one as it was "
                "begun, give another path, or remove the folder"
            )
        found = [load_transitions(self._part(k)) for k in range(len(extra["fingerprints"]))]
        if [part.fingerprint() for part in found] != extra["fingerprints"]:
            raise ValueError(f"{self.folder}: the parts do not belong together; remove the folder and start again")
        learner.restore(tensors, extra["learner"])
        self._fingerprints = list(extra["fingerprints"])
        return found

    def add(self, part: Transitions, learner: Learner) -> None:
        """Keep a further part; until the state is replaced, the folder says what it said before."""
        self._fingerprints.append(save_transitions(self._part(len(self._fingerprints)), part))
        tensors, extra = learner.state()
        content = {"recipe": self.recipe, "fingerprints": self._fingerprints, "learner": extra}
        save_checkpoint(self._state, tensors, content)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _part(self, k: int) -> Path:
        return self.folder / f"part-{k:04d}.npz"


def _checked(actions: np.ndarray, stepper: Stepper) -> np.ndarray:
    found = np.asarray(actions)
    if (
        found.shape != (stepper.n,)
        or found.dtype.kind not in "iu"
        or found.min() < 0
        or found.max() >= stepper.n_actions
    ):
        raise ValueError(
            f"the policy gave {found!r}; {stepper.name} wants {stepper.n} whole numbers from 0 to "
            f"{stepper.n_actions - 1}"
        )
    return found.astype(np.int64)


def _rounded(frames: SupportsInt, n: int) -> int:
    if int(frames) < 1:
        raise ValueError(f"{int(frames)} frames asked for; give at least 1")
    return -(-int(frames) // n) * n


def _part_sizes(frames: SupportsInt, parts: int, n: int) -> list[int]:
    """Sizes of the parts, multiples of the number of environments."""
    steps = _rounded(frames, n) // n
    edges = np.linspace(0, steps, min(parts, steps) + 1).astype(int)
    return [int(size) * n for size in np.diff(edges)]
