"""Logs and checkpoints as files: whole or not at all, versioned, never pickled.

A log is one npz file of plain arrays, bool frames packed eight to a byte; a checkpoint is one safetensors file with
JSON in its header. Both are written beside their place and renamed, and streamed, so that large ones need no second
copy in memory.
"""

import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ccvf.transitions import Transitions
from ccvf.transitions_columns import chunks
from common_core.records import to_jsonable

__all__ = ["FormatError", "load_checkpoint", "load_transitions", "save_checkpoint", "save_transitions", "writing"]

LOG = "repertory.ccvf.transitions/1"
CHECKPOINT = "repertory.ccvf.checkpoint/1"
_KEY = "ccvf"  # the one entry of the header of our safetensors files
_COLUMNS = tuple(f.name for f in fields(Transitions) if f.name not in ("n_actions", "metadata"))
# What a file of another kind, or one whose bytes were changed, makes the readers of zip, npy and safetensors raise.
_UNREADABLE = (
    OSError, EOFError, KeyError, TypeError, ValueError, MemoryError, NotImplementedError, RuntimeError, SyntaxError,
    RecursionError, zipfile.BadZipFile, zlib.error, struct.error, SafetensorError,
)  # fmt: skip


class FormatError(ValueError):
    """A file that is not ours, is damaged, or is from a newer version."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write a file to, which takes the name `path` if the block ends well and vanishes if not.

    Args:
        path: Where the file is wanted; its folder is made when missing.

    Yields:
        A temporary file in the same folder.

    Raises:
        OSError: If the folder cannot be written or the disk is full; the old file is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes 0600; give what open() would have given
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_transitions(path: str | os.PathLike[str], data: Transitions) -> str:
    """Write a log as an npz file.

    Args:
        path: Target file, usually ending in .npz.
        data: The log; its metadata must be JSON values.

    Returns:
        Its fingerprint, which the file holds too.

    Raises:
        TypeError: If metadata are no JSON values.
        OSError: If the file cannot be written; an old one is then untouched.

    Example:
        >>> import tempfile
        >>> log = Transitions.from_arrays(np.arange(3), [0, 1, 0], [0, 1, 2], np.arange(1, 4), [0, 0, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fingerprint = save_transitions(folder + "/log.npz", log)
        ...     load_transitions(folder + "/log.npz").fingerprint() == fingerprint
        True
    """
    fingerprint = data.fingerprint()
    head = {
        "schema": LOG,
        "fingerprint": fingerprint,
        "n_actions": data.n_actions,
        "frame_shape": list(data.frames.shape),
        "packed": data.frames.dtype == bool,
        "metadata": to_jsonable(data.metadata),
    }
    with writing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _put(archive, "head", np.frombuffer(json.dumps(head).encode(), dtype=np.uint8))
        for name in _COLUMNS:
            _put(archive, name, getattr(data, name), packed=name == "frames" and bool(head["packed"]))
    return fingerprint


def load_transitions(path: str | os.PathLike[str]) -> Transitions:
    """Read what `save_transitions` wrote, and check that it is still the same.

    Args:
        path: The file.

    Returns:
        The log.

    Raises:
        FormatError: If the file is missing, foreign, damaged, changed or newer; the message says which.
    """
    if not Path(path).exists():
        raise FormatError(f"{path}: no such file")
    try:
        # Our own handle: numpy leaves its own open where the archive is damaged.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            _check_schema(path, head["schema"], LOG)
            arrays = {name: file[name] for name in _COLUMNS}
        if head["packed"]:
            arrays["frames"] = _unpacked(arrays["frames"], tuple(head["frame_shape"]))
        data = Transitions(n_actions=int(head["n_actions"]), metadata=head["metadata"], **arrays)
        found = data.fingerprint()
    except FormatError:
        raise
    except _UNREADABLE as error:
        raise FormatError(f"{path} is not a log that ccvf saved, or it is damaged ({error})") from None
    if found != head["fingerprint"]:
        raise FormatError(
            f"{path} was changed after it was written: its content has the fingerprint {found[:12]}..., "
            f"and {head['fingerprint'][:12]}... is on record; make it anew"
        )
    return data


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one safetensors file.

    Args:
        path: Target file, usually ending in .safetensors.
        tensors: Tensors by name, on any device; they may share memory.
        extra: JSON values (numbers keep their last bit; NaN and infinities are kept).

    Raises:
        TypeError: If an extra is no JSON value.
        OSError: If the file cannot be written; an old one is then untouched.
    """
    header = json.dumps({"schema": CHECKPOINT, "extra": dict(extra)})
    # Copies: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with writing(path) as temporary:
        save_file(plain, temporary, {_KEY: header})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, and the JSON values.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer; the message says which.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder + "/a.safetensors", {"w": torch.ones(2)}, {"updates": 3})
        ...     load_checkpoint(folder + "/a.safetensors")
        ({'w': tensor([1., 1.])}, {'updates': 3})
    """
    if not Path(path).exists():
        raise FormatError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[_KEY])
            _check_schema(path, head["schema"], CHECKPOINT)
            # Copies: the tensors of an open file are views of it, and a later checkpoint replaces the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors, head["extra"]
    except FormatError:
        raise
    except _UNREADABLE as error:
        raise FormatError(f"{path} is not a checkpoint that ccvf saved, or it is damaged ({error})") from None


def _put(archive: zipfile.ZipFile, name: str, array: np.ndarray, *, packed: bool = False) -> None:
    """Stream an array into the archive as an npy member; packed: eight bools to a byte, row by row."""
    width = int(np.prod(array.shape[1:]))
    shape = (len(array), -(-width // 8)) if packed else array.shape
    little = np.dtype(np.uint8) if packed else array.dtype.newbyteorder("<")
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        head = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, head)
        for part in chunks(len(array), max(1, array[:1].nbytes)):
            rows = np.packbits(array[part].reshape(-1, width), axis=1) if packed else array[part]
            stream.write(np.ascontiguousarray(rows, dtype=little).data)


def _unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    width = int(np.prod(shape[1:]))
    frames = np.empty((shape[0], width), dtype=bool)
    for part in chunks(len(packed), width):
        frames[part] = np.unpackbits(packed[part], axis=1, count=width).view(bool)
    return frames.reshape(shape)


def _check_schema(path: str | os.PathLike[str], found: Any, schema: str) -> None:
    name, version = schema.rsplit("/", 1)
    if not isinstance(found, str) or found.rpartition("/")[0] != name:
        raise FormatError(f"{path} is not a {name} file (its schema is {found!r}; {schema!r} was expected)")
    number = found.rpartition("/")[2]
    if not number.isdecimal() or int(number) > int(version):
        raise FormatError(
            f"{path} was written by a newer version ({found!r}; this one reads up to {schema!r}): upgrade"
        )
