"""Logs that the command line names: files that ccvf saved, plain arrays, Minari data sets; checked before any work."""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ccvf.environments import GymnasiumStepper, Stepper
from ccvf.io import FormatError, load_transitions
from ccvf.transitions import Transitions

__all__ = ["about_log", "is_log", "log_names", "n_states_of", "n_states_there", "read_log", "with_metadata"]

_NEEDED = ("observations", "actions", "rewards", "next_observations", "terminated")
_MORE = ("truncated", "episodes", "n_actions")


def is_log(name: str) -> bool:
    """Whether a name is meant as a log and not as an environment.

    Args:
        name: What was given.

    Example:
        >>> is_log("log.npz"), is_log("minari:mine/replay-v0"), is_log("CartPole-v1")
        (True, True, False)
    """
    return name.startswith("minari:") or name.endswith(".npz")


def read_log(name: str | Path) -> Transitions:
    """A log by name.

    Args:
        name: A file that `ccvf.save_transitions` wrote; an npz file with the arrays observations, actions, rewards,
            next_observations and terminated, and perhaps truncated, episodes and n_actions; or minari:ID.

    Returns:
        The log, not empty, with finite rewards and observations, and actions that there are.

    Raises:
        FormatError: If there is no such log, or it is damaged.
        ValueError: If what it holds cannot be learnt from; the message says what and where.
    """
    text = str(name)
    if text.startswith("minari:"):
        from ccvf.minari_io import from_minari

        return _checked(text, from_minari(text.removeprefix("minari:")))
    path = Path(text)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; give the log's npz file")
    columns = _plain_columns(path)
    try:
        data = load_transitions(path) if columns is None else Transitions.from_arrays(**columns)
    except (TypeError, ValueError) as error:
        raise error if columns is None else FormatError(f"{path}: {error}") from None
    return _checked(text, data)


def _plain_columns(path: Path) -> dict[str, Any] | None:
    """The arrays of a plain npz file; None for everything else, which `load_transitions` judges."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        members = {Path(member).stem for member in archive.namelist()}
    if "head" in members or "observations" not in members:
        return None
    if missing := [name for name in _NEEDED if name not in members]:
        raise FormatError(f"{path} holds arrays, but not {', '.join(missing)}; add them, one row a transition")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            columns: dict[str, Any] = {name: file[name] for name in (*_NEEDED, *_MORE) if name in members}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} cannot be read ({error})") from None
    if "n_actions" in columns:
        columns["n_actions"] = int(columns["n_actions"])
    return columns


def _checked(name: str, data: Transitions) -> Transitions:
    if not len(data):
        raise FormatError(f"{name} has no transition: there is nothing to learn from")
    bad = ~np.isfinite(data.rewards)
    if bad.any():
        row = int(bad.argmax())
        raise FormatError(f"{name}: the reward of transition {row} is {data.rewards[row]}; rewards must be finite")
    wrong = (data.actions < 0) | (data.actions >= data.n_actions)
    if wrong.any():
        row = int(wrong.argmax())
        raise FormatError(f"{name}: action {data.actions[row]} of transition {row} is not one of 0 to "
                          f"{data.n_actions - 1}")  # fmt: skip
    if data.frames.dtype.kind == "f" and not np.isfinite(data.frames).all():
        raise FormatError(f"{name}: some observations are not finite numbers")
    return data


def n_states_there(stepper: Stepper) -> int | None:
    """Number of states of environments that show state numbers; None for all others.

    Args:
        stepper: The environments.
    """
    if stepper.observation_shape or not isinstance(stepper, GymnasiumStepper):
        return None
    count = getattr(stepper.envs[0].observation_space, "n", None)
    return None if count is None else int(count)


def n_states_of(data: Transitions, given: int | None) -> int | None:
    """Number of states of a log of state numbers: as given, as on record, as in its gridworld, or as seen.

    Args:
        data: The log.
        given: What the user said.

    Returns:
        The number; None where observations are no state numbers.

    Raises:
        ValueError: If the log holds a state beyond it.
    """
    if data.observation_shape or data.frames.dtype.kind not in "iu":
        return None
    seen = int(data.frames.max()) + 1
    known = given if given is not None else data.metadata.get("n_states")
    if known is None and str(data.metadata.get("env", "")).startswith("gridworld:"):
        from ccvf.environments import make_vector

        known = n_states_there(make_vector(data.metadata["env"]))
    if known is not None and (int(known) < seen or data.frames.min() < 0):
        raise ValueError(f"the log has states {data.frames.min()} to {seen - 1}, outside 0 to {int(known) - 1}")
    return seen if known is None else int(known)


def about_log(data: Transitions, n_states: int | None) -> dict[str, Any]:
    """What a training keeps of its log, to compare logs and environments with later.

    Args:
        data: The log.
        n_states: Number of states, of a tabular one.

    Returns:
        JSON values.
    """
    return {
        "fingerprint": data.fingerprint(), "transitions": len(data), "env": data.metadata.get("env"),
        "observation_shape": list(data.observation_shape), "dtype": str(data.frames.dtype),
        "n_actions": data.n_actions, "n_states": n_states,
    }  # fmt: skip


def log_names(paths: Sequence[Path]) -> list[str]:
    """Short names of files or folders, told apart by as much of their paths as it takes.

    Args:
        paths: The paths.

    Returns:
        One name each.

    Raises:
        ValueError: If one is given twice.

    Example:
        >>> log_names([Path("a/run"), Path("b/run"), Path("c")])
        ['a/run', 'b/run', 'c']
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("one of the folders is given twice; give each once")
    parts = [path.resolve().parts for path in paths]
    names = []
    for k, own in enumerate(parts):
        depth = 1
        while depth < len(own) and any(own[-depth:] == other[-depth:] for j, other in enumerate(parts) if j != k):
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def with_metadata(data: Transitions, **more: Any) -> Transitions:
    """The log with more on record.

    Args:
        data: The log.
        **more: JSON values.
    """
    return replace(data, metadata={**data.metadata, **more})
