"""Logs from Minari data sets and as Minari data sets, on this machine: nothing is downloaded or uploaded."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Int

from ccvf.environments import imported
from ccvf.io import FormatError
from ccvf.transitions import Transitions
from ccvf.transitions_columns import as_actions, as_episodes, as_flags, as_observations, as_rewards
from common_core.records import to_jsonable

__all__ = ["from_minari", "to_minari"]

_KEY = "ccvf_metadata"


def from_minari(dataset: Any, *, metadata: Mapping[str, Any] | None = None) -> Transitions:
    """A log from a Minari data set.

    Args:
        dataset: A `minari.MinariDataset`, or the id of one in the local folder (MINARI_DATASETS_PATH).
        metadata: What else is known of the origin, JSON values.

    Returns:
        The log; frames within an episode are kept once, infos are left out.

    Raises:
        ImportError: If minari is not installed.
        FormatError: If there is no data set of this id here, or it has no episode.
        TypeError: If actions are not discrete, or observations are dictionaries or tuples.
        ValueError: If a column is not fit for a log (see `Transitions.from_arrays`).
    """
    minari = imported("minari", "minari")
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except FileNotFoundError:
            raise FormatError(
                f"there is no Minari data set {dataset!r} on this machine; `minari list local` tells which there are, "
                "`minari download` fetches others"
            ) from None
    actions, observations = dataset.action_space, dataset.observation_space
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise TypeError(f"{dataset.id} has actions {actions}; only discrete actions are supported")
    kinds = (gymnasium.spaces.Box, gymnasium.spaces.Discrete, gymnasium.spaces.MultiBinary)
    if not isinstance(observations, (*kinds, gymnasium.spaces.MultiDiscrete)):
        raise TypeError(
            f"{dataset.id} has observations {observations}; only arrays and discrete states are supported: "
            "flatten dictionaries and tuples and use Transitions.from_arrays"
        )
    episodes = list(dataset.iterate_episodes())
    if not episodes:
        raise FormatError(f"{dataset.id} has no episode")
    lengths = np.array([len(episode) for episode in episodes])
    size = int(lengths.sum())
    frames = as_observations("observations", np.concatenate([np.asarray(e.observations) for e in episodes]))
    if len(frames) != size + len(episodes):
        raise ValueError(f"{dataset.id}: an episode of n steps has n + 1 observations, but there are {len(frames)}")
    terminated = as_flags("terminations", np.concatenate([e.terminations for e in episodes]), size)
    truncated = as_flags("truncations", np.concatenate([e.truncations for e in episodes]), size) & ~terminated
    numbers = np.repeat(np.arange(len(episodes)), lengths)
    acted = np.concatenate([np.asarray(e.actions).reshape(len(e)) for e in episodes]) - int(actions.start)
    index = (np.arange(size) + numbers)[:, None]
    return Transitions(
        frames=frames,
        index=index,
        next_index=index + 1,
        actions=as_actions(acted, size, int(actions.n))[0],
        rewards=as_rewards(np.concatenate([e.rewards for e in episodes]), size),
        terminated=terminated,
        truncated=truncated,
        episodes=as_episodes(numbers, terminated, truncated),
        steps=np.ones(size, dtype=np.int64),
        n_actions=int(actions.n),
        metadata={**_known(dataset), **(metadata or {})},
    )


def to_minari(
    data: Transitions,
    dataset_id: str,
    *,
    observation_space: gymnasium.Space[Any] | None = None,
    env: str | None = None,
    **about: Any,
) -> Any:
    """Write a log as a Minari data set into the local folder (MINARI_DATASETS_PATH).

    Where transitions are missing within an episode, a new episode begins: Minari knows no gaps. Pictures are kept
    without loss.

    Args:
        data: The log, of single steps.
        dataset_id: Its id, such as "minatar/breakout/replay-v0".
        observation_space: Of the observations; None: made from their shape and dtype.
        env: Id of the gymnasium environment that the log is of, if it is registered.
        **about: What `minari.create_dataset_from_buffers` takes besides, such as author or description.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        ImportError: If minari is not installed.
        ValueError: If transitions hold several steps, or the data set is there already.
    """
    minari = imported("minari", "minari")
    buffer = imported("minari.data_collector", "minari").EpisodeBuffer
    if (data.steps != 1).any():
        raise ValueError("the transitions hold several steps; give the log as it was before n_step")
    starts = np.append(0, np.flatnonzero(~data.linked[:-1]) + 1)
    ends = np.append(starts[1:], len(data))
    episodes = [_episode(buffer, data, k, np.arange(*span)) for k, span in enumerate(zip(starts, ends, strict=True))]
    space = _space(data) if observation_space is None else observation_space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is not told about authors and environments
        found = minari.create_dataset_from_buffers(
            dataset_id=dataset_id,
            buffer=episodes,
            env=env,
            observation_space=space,
            action_space=gymnasium.spaces.Discrete(data.n_actions),
            jpeg_encoding=False,
            **about,
        )
    found.storage.update_metadata({_KEY: json.dumps(to_jsonable(data.metadata))})
    return found


def _episode(buffer: Any, data: Transitions, number: int, rows: Int[np.ndarray, " rows"]) -> Any:
    last = data.next_observations(rows[-1:])
    return buffer(
        id=number,
        observations=np.concatenate([data.observations(rows), last]),
        actions=data.actions[rows],
        rewards=data.rewards[rows],
        terminations=data.terminated[rows],
        truncations=data.truncated[rows],
    )


def _space(data: Transitions) -> gymnasium.Space[Any]:
    """A space that holds the observations."""
    dtype, shape = data.frames.dtype, data.observation_shape
    if dtype.kind == "b":
        return gymnasium.spaces.MultiBinary(shape)
    if dtype.kind in "iu" and not shape and data.frames.min() >= 0:
        return gymnasium.spaces.Discrete(int(data.frames.max()) + 1)
    box: Any = gymnasium.spaces.Box  # whose types know 32-bit numbers only
    if dtype.kind == "f":
        return box(-np.inf, np.inf, shape, dtype=dtype)
    limits = np.iinfo(dtype)
    return box(limits.min, limits.max, shape, dtype=dtype)


def _known(dataset: Any) -> dict[str, Any]:
    """What the data set tells of its origin."""
    told = dataset.storage.metadata
    try:
        own = json.loads(told[_KEY])
    except (KeyError, TypeError, ValueError):
        own = {}
    spec = dataset.env_spec
    return {
        **({} if spec is None else {"env": spec.id}),
        **(own if isinstance(own, dict) else {}),
        "minari": dataset.id,
    }
