"""Records of a measurement and files that are written whole or not at all."""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "repertory.record/1"

# Versions worth knowing when a figure is questioned; absent ones are left out.
_WATCHED = ("numpy", "scipy", "torch", "triton", "jax", "ray", "cvxpy", "scikit-learn", "matplotlib")


class RecordError(ValueError):
    """A file that is not a record of ours, or one from a newer version."""


def to_jsonable(value: Any) -> Any:
    """Plain JSON values of anything we record; NaN and infinities become strings that ``float`` reads back.

    Args:
        value: Mappings, sequences, numbers, strings, None, numpy scalars and arrays, objects with ``to_json``.

    Returns:
        The same in dictionaries, lists, numbers, strings and None.

    Raises:
        TypeError: Something else.
    """
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "to_json"):
        return to_jsonable(value.to_json())
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_jsonable(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else str(number)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Target file; its folder is made when missing.
        data: The whole content.

    Raises:
        OSError: The folder cannot be written or the disk is full; the old file is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes 0600; give what open() would have given
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON, atomically; key order is kept.

    Args:
        path: Target file.
        obj: Mappings, sequences, numbers (NaN and infinities as strings), strings, arrays, objects with ``to_json``.
    """
    text = json.dumps(to_jsonable(obj), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, (text + "\n").encode())


def read_json(path: str | os.PathLike[str], schema: str) -> dict[str, Any]:
    """Read a JSON object of ours and check its ``schema`` field.

    Args:
        path: The file.
        schema: ``"name/version"`` that this code writes.

    Returns:
        The object.

    Raises:
        RecordError: Missing, unreadable, foreign or newer file; the message says which.
    """
    name, version = schema.rsplit("/", 1)
    try:
        data = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not readable as JSON ({error})") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(found, str) or found.rsplit("/", 1)[0] != name:
        raise RecordError(f"{path}: not a {name} file (its schema field is {found!r}, {schema!r} was expected)")
    number = found.rsplit("/", 1)[1]
    if not number.isdigit() or int(number) > int(version):
        raise RecordError(f"{path}: written by a newer version ({found!r}; this one reads up to {schema!r}): upgrade")
    return data


def _commit() -> str | None:
    """The commit of the checkout whose file this is; None when installed, even inside somebody else's repository."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=5, check=True
        )
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--exclude", "*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on: versions, device, operating system, commit; never host or user names.

    Args:
        device: Device string as given to a measurement, such as ``"cpu"`` or ``"cuda:0"``.

    Returns:
        A JSON object with keys ``python``, ``platform``, ``cores``, ``device``, ``commit`` and ``versions``.

    Example:
        >>> sorted(environment())
        ['commit', 'cores', 'device', 'platform', 'python', 'versions']
    """
    from common_core.devices import describe

    # An accelerator is described by a framework: the first one installed, imported if need be.
    installed = [name for name in ("torch", "jax") if importlib.util.find_spec(name)]
    framework: Any = installed[0] if installed and device != "cpu" else None
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        points = distribution.entry_points.select(group="repertory.claims")
        if name in _WATCHED or name == "repertory-common-core" or points:
            versions[name] = distribution.version
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "cores": os.cpu_count(),
        "device": str(describe(device, framework)),
        "commit": _commit(),
        "versions": dict(sorted(versions.items())),
    }


@dataclass(frozen=True)
class Record:
    """One measurement: what was run, what came out, where, and for how long.

    Attributes:
        config: What was asked for.
        metrics: Name to number, estimate or text.
        seeds: Every seed used.
        environment: As :func:`environment` gives it.
        duration: Wall time in seconds.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seeds: tuple[int, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=environment)
    duration: float | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, atomically."""
        write_json_atomic(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read a record.

        Raises:
            RecordError: The file is missing, foreign or newer.
        """
        data = read_json(path, SCHEMA)
        names = ("config", "metrics", "environment", "duration")
        try:
            return cls(**{name: data[name] for name in names}, seeds=tuple(data["seeds"]))
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path}: incomplete record ({error})") from None
