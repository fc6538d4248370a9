"""Checkpoints, models' states, data sets and predictions as files: whole or not at all, versioned, never pickled.

A checkpoint is one safetensors file: the tensors of a nested structure under running numbers, and the structure itself
as JSON in the file's header, with the schema's name and version. Data sets and predictions are npz files of plain
arrays.
"""

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num, Shaped
from safetensors import SafetensorError
from safetensors.torch import load as _load_bytes
from safetensors.torch import save as _save_bytes
from torch import Tensor, nn

from common_core.records import write_bytes_atomic
from dncc.datasets_split import DataSet

__all__ = [
    "FormatError",
    "load_arrays",
    "load_data_set",
    "load_predictions",
    "load_state",
    "load_tree",
    "save_arrays",
    "save_data_set",
    "save_predictions",
    "save_state",
    "save_tree",
]

STATE = "repertory.dncc.state/1"
PREDICTIONS = "repertory.dncc.predictions/1"
_KEY = "dncc"  # the one entry of the header of our safetensors files
_MOST_HEADER = 100_000_000  # bytes: what safetensors itself allows
# What a file of another kind, or one whose bytes were changed, makes the readers of zip and npy raise.
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, MemoryError, NotImplementedError, RuntimeError, SyntaxError)


class FormatError(ValueError):
    """A file that is not ours, is damaged, is from a newer version, or belongs to another model."""


def save_tree(path: str | os.PathLike[str], tree: Any, schema: str) -> None:
    """Write nested dictionaries, lists and tuples of tensors, numbers, strings and None as one safetensors file.

    A reader sees the old file or the new one, never a part. Numbers keep their last bit; NaN and infinities are kept.

    Args:
        path: Target file, usually ending in .safetensors; its folder is made when missing.
        tree: What to write; tensors may be on any device and may share storage.
        schema: `"name/version"` that a reader must ask for.

    Raises:
        TypeError: If something else is in the tree.
        OSError: If the file cannot be written; the old one is then untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tree(folder + "/a.safetensors", {"w": torch.ones(2), "steps": (3, 0.1)}, "example/1")
        ...     load_tree(folder + "/a.safetensors", "example/1")
        {'w': tensor([1., 1.]), 'steps': (3, 0.1)}
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps({"schema": schema, "tree": _encoded(tree, tensors, "")})
    write_bytes_atomic(path, _save_bytes(tensors, {_KEY: header}))


def load_tree(path: str | os.PathLike[str], schema: str) -> Any:
    """Read what `save_tree` wrote; tensors are on the CPU.

    Args:
        path: The file.
        schema: `"name/version"`: the name must match, the version must not be newer.

    Returns:
        The same structure.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer; the message says which.
    """
    try:
        data = Path(path).read_bytes()
        header = _header(data)
        tensors = _load_bytes(data)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, KeyError, struct.error, RecursionError, SafetensorError) as error:
        raise FormatError(f"{path} is not a file that dncc saved, or it is damaged ({error})") from None
    _check_schema(path, header.get("schema"), schema)
    try:
        return _decoded(header["tree"], tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged ({error!r}); save it again") from None


def save_state(path: str | os.PathLike[str], model: nn.Module, info: Mapping[str, Any] | None = None) -> None:
    """Write a model's parameters and buffers.

    Args:
        path: Target file, usually ending in .safetensors.
        model: Any module.
        info: Further numbers and texts, such as how to build the model; `load_state` returns them.

    Raises:
        TypeError: If the model's state holds something else than tensors, numbers and texts.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> model, twin = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(folder + "/model.safetensors", model, {"members": 4})
        ...     load_state(folder + "/model.safetensors", twin)
        {'members': 4}
        >>> torch.equal(model.weight, twin.weight)
        True
    """
    save_tree(path, {"class": type(model).__name__, "state": dict(model.state_dict()), "info": dict(info or {})}, STATE)


def load_state(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Any]:
    """Put what `save_state` wrote into a model of the same architecture.

    Args:
        path: The file.
        model: Its parameters and buffers are overwritten in place, on their device.

    Returns:
        The `info` that was saved.

    Raises:
        FormatError: If the file is not ours, is damaged or newer, or the model's entries have other names or shapes;
            the model is then unchanged.
    """
    tree = load_tree(path, STATE)
    own, found = model.state_dict(), tree["state"]
    missing, foreign = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or foreign:
        raise FormatError(
            f"{path} holds the state of another model (a {tree['class']}): it lacks {_briefly(missing)} and has "
            f"{_briefly(foreign)} beyond; build the model as it was when saved"
        )
    wrong = [k for k, v in own.items() if isinstance(v, Tensor) and v.shape != found[k].shape]
    if wrong:
        key = wrong[0]
        raise FormatError(
            f"{path}: {key} has shape {tuple(found[key].shape)} in the file and {tuple(own[key].shape)} in the model; "
            "build the model with the widths, members and classes it was saved with"
        )
    model.load_state_dict(found)
    return tree["info"]


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write named arrays as a compressed npz file, atomically.

    Args:
        path: Target file, usually ending in .npz.
        arrays: Name to array of numbers or texts.

    Raises:
        TypeError: If an array holds Python objects, which only pickle could store.
        OSError: If the file cannot be written.
    """
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise TypeError(f"{objects[0]} holds Python objects; give numbers, or texts as an array of type str")
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, **plain)
    write_bytes_atomic(path, buffer.getvalue())


def load_arrays(path: str | os.PathLike[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Read all arrays of an npz file; nothing is ever unpickled.

    Args:
        path: The file.

    Returns:
        Name to array.

    Raises:
        FormatError: If the file is missing, no npz, damaged, or has arrays of Python objects.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())  # from memory: a damaged archive leaves no file open
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error})") from None
    if not zipfile.is_zipfile(content):  # numpy would try other formats and speak of pickles
        raise FormatError(f"{path} is no .npz file, or it is damaged; write one with numpy.savez(path, x=..., y=...)")
    content.seek(0)
    try:
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, struct.error) as error:
        hint = " (arrays of Python objects are refused; convert them to numbers)" if "pickle" in str(error) else ""
        raise FormatError(f"{path} is damaged or not of plain arrays: {error}{hint}") from None


def save_data_set(path: str | os.PathLike[str], data: DataSet) -> None:
    """Write a data set in the form that `load_data_set` reads.

    Args:
        path: Target file, usually ending in .npz.
        data: The data set; its groups and its out-of-distribution samples are kept where it has them.

    Raises:
        OSError: If the file cannot be written.
    """
    pairs = {"x": data.x_train, "y": data.y_train, "x_val": data.x_val, "y_val": data.y_val}
    pairs |= {"x_test": data.x_test, "y_test": data.y_test, "x_ood": data.x_ood, "groups": data.groups}
    texts = {"classes": np.array(data.classes), "source": np.array(data.source), "licence": np.array(data.licence)}
    save_arrays(path, {name: array for name, array in pairs.items() if array is not None} | texts)


def load_data_set(path: str | os.PathLike[str]) -> DataSet:
    """Read a data set: arrays `x`, `y`, and if there are any `x_val`, `y_val`, `x_test`, `y_test`, `x_ood`, `groups`.

    `x` may also be called `x_train` and `y` `y_train`. Labels are integers from 0, or texts (then `classes` are the
    sorted texts of the training labels unless given). Unsigned bytes become numbers in [0, 1]. Without a test part,
    `x_test` and `y_test` are empty.

    Args:
        path: An npz file.

    Returns:
        The data set; inputs float32, labels int64.

    Raises:
        FormatError: If the file cannot be read, lacks an array, or arrays do not fit together; the message says which,
            what was found and what is wanted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(folder + "/data.npz", x=np.zeros((4, 2)), y=np.array(["cat", "dog", "cat", "dog"]))
        ...     data = load_data_set(folder + "/data.npz")
        >>> data.classes, data.y_train.tolist(), data.x_test.shape
        (('cat', 'dog'), [0, 1, 0, 1], (0, 2))
    """
    arrays = load_arrays(path)
    arrays = {{"x_train": "x", "y_train": "y"}.get(name, name): array for name, array in arrays.items()}
    for name in ("x", "y"):
        if name not in arrays:
            raise FormatError(f"{path} lacks the array {name!r}; it holds {_briefly(sorted(arrays))}")
    x = arrays["x"]
    if "x_test" not in arrays:
        arrays |= {"x_test": x[:0], "y_test": arrays["y"][:0]}
    try:
        return DataSet.from_arrays(
            arrays, source=str(arrays.get("source", path)), licence=str(arrays.get("licence", ""))
        )
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from None


def save_predictions(
    path: str | os.PathLike[str],
    logits: Float[Tensor, "members batch classes"],
    y: Num[Tensor, "batch *classes"] | None = None,
) -> None:
    """Write the logits of all members, and the labels where known, as an npz file.

    Args:
        path: Target file, usually ending in .npz.
        logits: Member-first logits; half precision is widened to float32.
        y: Class numbers or soft labels.

    Raises:
        OSError: If the file cannot be written.
    """
    wide = logits.detach().to("cpu", torch.promote_types(logits.dtype, torch.float32))
    arrays = {"schema": np.array(PREDICTIONS), "logits": wide.numpy()}
    save_arrays(path, arrays | ({} if y is None else {"y": y.detach().cpu().numpy()}))


def load_predictions(
    path: str | os.PathLike[str],
) -> tuple[Float[Tensor, "members batch classes"], Num[Tensor, "batch *classes"] | None]:
    """Read what `save_predictions` wrote.

    Args:
        path: The file.

    Returns:
        Logits, and labels or None.

    Raises:
        FormatError: If the file is not of this schema, is damaged, or labels do not fit the logits.
    """
    arrays = load_arrays(path)
    _check_schema(path, str(arrays.get("schema", None)), PREDICTIONS)
    logits, y = arrays.get("logits"), arrays.get("y")
    if logits is None or logits.ndim != 3 or logits.dtype.kind != "f":
        shape = None if logits is None else (logits.shape, str(logits.dtype))
        raise FormatError(f"{path}: logits must be numbers of shape (members, batch, classes); found {shape}")
    if y is not None and (y.ndim not in (1, 2) or len(y) != logits.shape[1]):
        raise FormatError(f"{path}: {logits.shape[1]} samples have logits, and y has the shape {y.shape}")
    return torch.from_numpy(logits), None if y is None else torch.from_numpy(y)


def _encoded(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """`value` as JSON; tensors move to `tensors`, and what JSON lacks becomes a one-entry object."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # a copy: safetensors refuses shared storage
        return {"$tensor": name}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Mapping):
        return {"$map": [[_encoded(k, tensors, where), _encoded(v, tensors, f"{where}.{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encoded(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    raise TypeError(
        f"{where or 'the value'} is a {type(value).__name__}; only tensors, numbers, texts, None, and "
        "dictionaries, lists and tuples of them can be saved"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    match kind:
        case "$tensor":
            return tensors[content]
        case "$float":
            return float(content)
        case "$map":
            return {_decoded(k, tensors): _decoded(v, tensors) for k, v in content}
        case "$tuple":
            return tuple(_decoded(item, tensors) for item in content)
    raise ValueError(f"unknown entry {kind!r}")


def _header(data: bytes) -> dict[str, Any]:
    """Our JSON in the header of a safetensors file, whose first 8 bytes are the header's length."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_MOST_HEADER, len(data) - 8):
        raise ValueError("its header is longer than the file")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    header = json.loads(metadata[_KEY])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _check_schema(path: str | os.PathLike[str], found: Any, schema: str) -> None:
    name, version = schema.rsplit("/", 1)
    if not isinstance(found, str) or found.rpartition("/")[0] != name:
        raise FormatError(f"{path} is not a {name} file (its schema is {found!r}; {schema!r} was expected)")
    number = found.rpartition("/")[2]
    if not number.isdecimal() or int(number) > int(version):
        raise FormatError(
            f"{path} was written by a newer version ({found!r}; this one reads up to {schema!r}): upgrade"
        )


def _briefly(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
