"""Batches drawn from a log: frames are put on the device once, and a draw is a gather of rows there."""

from collections.abc import Mapping
from typing import Any, SupportsInt, final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ccvf.batches import Batch
from ccvf.transitions import Transitions

__all__ = ["Sampler", "generator_state", "restore_generator"]

_ROOM = 0.6  # share of a device's free memory that frames may take if nothing is said
_WIDENED = {"uint16": np.int64, "uint32": np.int64, "uint64": np.int64, "float64": np.float32}
_COLUMNS = ("index", "next_index", "actions", "rewards", "terminated", "steps")

Generator = torch.Generator | np.random.Generator


@final
class Sampler:
    """Draws batches of a log, seeded, and can be stopped and gone on with exactly.

    Bool, uint8 and signed whole numbers keep their dtype; float64 becomes float32, unsigned numbers beyond 8 bits
    become int64.

    Args:
        data: The log.
        batch_size: Transitions a batch.
        generator: Source of the draws; a torch generator on the device spares a copy of the row numbers.
        device: Where batches are wanted.
        shuffle: "with-replacement" draws each transition independently; "epochs" goes through the log in a new
            order each time (batches are full; one may hold the end of an order and the start of the next).
        resident: Whether frames lie on the device: True, False (gathered in the host's memory and copied batch by
            batch from pinned memory), or "auto": if they fill at most 60 % of what is free there.

    Raises:
        ValueError: If the log is empty, the batch size is below 1, or an option is unknown.

    Example:
        >>> log = Transitions.from_arrays(np.arange(3), [0, 1, 0], [0, 1, 2], np.arange(1, 4), [0, 0, 1])
        >>> sampler = Sampler(log, 2, torch.Generator().manual_seed(0), shuffle="epochs")
        >>> sorted((sampler.next().rewards.tolist() + sampler.next().rewards.tolist())[:3])
        [0.0, 1.0, 2.0]
    """

    def __init__(
        self,
        data: Transitions,
        batch_size: SupportsInt,
        generator: Generator,
        device: torch.device | str = "cpu",
        *,
        shuffle: str = "with-replacement",
        resident: bool | str = "auto",
    ) -> None:
        self.batch_size, self.device, self.generator = int(batch_size), torch.device(device), generator
        if not len(data) or self.batch_size < 1:
            raise ValueError(f"batches of {self.batch_size} of {len(data)} transitions: both must be at least 1")
        if shuffle not in ("with-replacement", "epochs"):
            raise ValueError(f"shuffle={shuffle!r}: give 'with-replacement' or 'epochs'")
        self.size, self.shuffle = len(data), shuffle
        frames = _tensor(data.frames)
        self.resident = _fits(frames, self.device) if resident == "auto" else bool(resident)
        self._frames = frames.to(self.device) if self.resident else frames
        self._columns = {name: _tensor(getattr(data, name)) for name in _COLUMNS}
        near = self.device if self.resident else torch.device("cpu")
        self._columns = {name: column.to(near) for name, column in self._columns.items()}
        self._order: Tensor | None = None
        self._position = 0

    def next(self) -> Batch:
        """Draw a batch.

        Returns:
            Transitions on the device.
        """
        return self.take(self._rows())

    def take(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The transitions of given rows.

        Args:
            rows: Row numbers, on any device.

        Returns:
            Transitions on the device, in that order.
        """
        columns = self._columns
        rows = rows.to(columns["actions"].device, non_blocking=True)
        index, next_index = columns["index"][rows], columns["next_index"][rows]
        return Batch(
            observations=self._there(self._gather(index)),
            actions=self._there(columns["actions"][rows]),
            rewards=self._there(columns["rewards"][rows]),
            next_observations=self._there(self._gather(next_index)),
            terminated=self._there(columns["terminated"][rows]),
            steps=self._there(columns["steps"][rows]),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is needed to go on exactly: the generator, and the order and position within it.

        Returns:
            Tensors by name and JSON values, as `ccvf.io.save_checkpoint` takes them.
        """
        tensors, extra = generator_state(self.generator)
        if self._order is not None:
            tensors["order"] = self._order.cpu()
        return tensors, {**extra, "position": self._position, "size": self.size, "shuffle": self.shuffle}

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Args:
            tensors: Tensors by name.
            extra: JSON values.

        Raises:
            ValueError: If the state is of a log of another size, of another kind of draw or of generator.
        """
        if extra["size"] != self.size or extra["shuffle"] != self.shuffle:
            raise ValueError(
                f"the state is of {extra['size']} transitions drawn {extra['shuffle']!r}; "
                f"this sampler draws {self.size} {self.shuffle!r}"
            )
        restore_generator(self.generator, tensors, extra)
        self._order, self._position = tensors.get("order"), int(extra["position"])

    def _rows(self) -> Int[Tensor, " batch"]:
        if self.shuffle == "with-replacement":
            if isinstance(self.generator, torch.Generator):
                return torch.randint(
                    self.size, (self.batch_size,), generator=self.generator, device=self.generator.device
                )
            return torch.from_numpy(self.generator.integers(self.size, size=self.batch_size))
        parts, missing = [], self.batch_size
        while missing:
            if self._order is None or self._position == self.size:
                self._order, self._position = self._permutation(), 0
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def _permutation(self) -> Int[Tensor, " transitions"]:
        if isinstance(self.generator, torch.Generator):
            return torch.randperm(self.size, generator=self.generator, device=self.generator.device)
        return torch.from_numpy(self.generator.permutation(self.size))

    def _gather(self, index: Int[Tensor, "batch stack"]) -> Shaped[Tensor, "batch ..."]:
        if index.shape[1] == 1:
            return self._frames.index_select(0, index[:, 0])
        return self._frames.index_select(0, index.flatten()).unflatten(0, tuple(index.shape))

    def _there(self, tensor: Tensor) -> Tensor:
        if self.resident or self.device.type == "cpu":
            return tensor
        # Pinned memory comes from torch's cache, which keeps it until the copy is over.
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)


def generator_state(generator: Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a generator of random numbers as tensors and JSON values.

    Args:
        generator: Of torch or of NumPy.

    Returns:
        Tensors by name and JSON values; `restore_generator` takes them.
    """
    if isinstance(generator, torch.Generator):
        return {"generator": generator.get_state()}, {"generator": "torch"}
    return {}, {"generator": _plain(generator.bit_generator.state)}


def restore_generator(generator: Generator, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
    """Put a generator into a state that `generator_state` gave.

    Args:
        generator: Of the same kind; changed in place.
        tensors: Tensors by name.
        extra: JSON values.

    Raises:
        ValueError: If the state is of another kind of generator.
    """
    found = extra["generator"]
    kind = found if isinstance(found, str) else found["bit_generator"]
    own = "torch" if isinstance(generator, torch.Generator) else type(generator.bit_generator).__name__
    if kind != own:
        raise ValueError(f"the state is of a generator of kind {kind}, and this one is {own}")
    if isinstance(generator, torch.Generator):
        generator.set_state(tensors["generator"].cpu())
    else:
        generator.bit_generator.state = found


def _plain(value: Any) -> Any:
    """JSON values of a NumPy generator's state."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _tensor(column: np.ndarray) -> Tensor:
    """A column as a tensor; not copied where torch knows the dtype and the memory may be shared."""
    wider = _WIDENED.get(column.dtype.name)
    found = np.ascontiguousarray(column if wider is None else column.astype(wider))
    return torch.from_numpy(found if found.flags.writeable else found.copy())


def _fits(frames: Tensor, device: torch.device) -> bool:
    """Whether frames may lie on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return frames.nbytes <= _ROOM * free
