"""What estimates of sampling error need of a log: its pairs of observation and action, in chunks and in batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ccvf.penalties import Bonus
from ccvf.progress import bar
from ccvf.sampling import Sampler
from ccvf.transitions import Transitions

__all__ = [
    "check_kind",
    "check_unseen",
    "logged_median",
    "moments",
    "need_fit",
    "pair_chunks",
    "regress",
    "without_autocast",
]

_CHUNK_BYTES = 2**24  # of observations; what is computed from them is a few times as large


def check_unseen(unseen: SupportsFloat) -> float:
    """The bonus of a pair that is not in the log.

    Args:
        unseen: At least 1, which is that of a pair seen once.

    Returns:
        The number.

    Raises:
        ValueError: If it is below 1 or not finite.
    """
    found = float(unseen)
    if not 1 <= found < math.inf:
        raise ValueError(f"unseen={found:g}: a pair seen once has 1, so give 1 or more (more ranks unseen pairs below)")
    return found


def check_kind(extra: Mapping[str, Any], kind: str) -> None:
    """Whether a state is of this kind of bonus.

    Args:
        extra: The JSON values of the state.
        kind: What it should be.

    Raises:
        ValueError: If it is of another.
    """
    if extra.get("bonus") != kind:
        raise ValueError(f"the state is of a bonus {extra.get('bonus')!r} and this is {kind!r}: restore it into its "
                         "own kind (`restore_bonus` does)")  # fmt: skip


def need_fit(fitted: object) -> None:
    """Whether a bonus has been fitted.

    Args:
        fitted: None before.

    Raises:
        ValueError: If it has not.
    """
    if fitted is None:
        raise ValueError("this bonus has not been fitted: call fit(log, generator), or restore a state")


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products keep their precision, whatever the training around uses.

    Args:
        device: Where the products are made.

    Returns:
        The context.
    """
    return torch.autocast(device.type, enabled=False)


def pair_chunks(
    data: Transitions, device: torch.device
) -> Iterator[tuple[Shaped[Tensor, "chunk ..."], Int[Tensor, " chunk"]]]:
    """Observations and actions of a log in order, some megabytes at a time.

    Args:
        data: The log.
        device: Where they are wanted.

    Yields:
        Observations as a `Sampler` gives them, and actions.

    Raises:
        ValueError: If the log is empty.
    """
    sampler = Sampler(data, 1, torch.Generator(), device, resident=False)
    row_bytes = math.prod(data.observation_shape) * data.frames.itemsize
    size = max(1, min(_CHUNK_BYTES // max(row_bytes, 1), 2**16))
    for start in range(0, len(data), size):
        batch = sampler.take(torch.arange(start, min(start + size, len(data))))
        yield batch.observations, batch.actions


def moments(data: Transitions, device: torch.device) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"]]:
    """Mean and standard deviation of each number of the observations.

    Args:
        data: The log.
        device: Where they are wanted.

    Returns:
        Both float64; the deviation of numbers that never change, and of observations that are not of floating point
        (pictures, planes of bits, whose numbers are alike in scale), is 1.
    """
    count, total = len(data), None
    for observations, _ in pair_chunks(data, device):
        part = observations.reshape(len(observations), -1).double().sum(0)
        total = part if total is None else total + part
    assert total is not None
    mean = total / count
    if data.frames.dtype.kind != "f":
        return mean, torch.ones_like(mean)
    squares = torch.zeros_like(mean)
    for observations, _ in pair_chunks(data, device):
        squares += (observations.reshape(len(observations), -1).double() - mean).square().sum(0)
    deviation = (squares / count).sqrt()
    still = deviation <= 1e-7 * mean.abs()
    return mean, torch.where(still, torch.ones_like(mean), deviation)


def logged_median(bonus: Bonus | Callable[[Tensor], Tensor], data: Transitions, device: torch.device) -> float:
    """Median over the logged pairs.

    Args:
        bonus: Estimates of every action of a batch.
        data: The log.
        device: Where the bonus computes.

    Returns:
        The median, each transition counted.
    """
    found = [
        bonus(observations).gather(1, actions.unsqueeze(1)).squeeze(1).double().cpu()
        for observations, actions in pair_chunks(data, device)
    ]
    return float(np.median(torch.cat(found).numpy()))


def regress(
    parameters: Iterable[nn.Parameter],
    error: Callable[[Tensor, Tensor, Tensor], Float[Tensor, ""]],
    data: Transitions,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    device: torch.device,
    progress: bool,
    what: str,
) -> None:
    """Train on the pairs of a log by Adam, the learning rate falling linearly to 0.

    Args:
        parameters: What is trained.
        error: Loss of a batch: of observations, actions and row numbers.
        data: The log.
        steps: Updates.
        batch_size: Pairs an update, at most the log.
        learning_rate: Of the first update.
        generator: Source of the order of the pairs.
        device: Where to compute.
        progress: Whether to show a bar.
        what: Its text.
    """
    sampler = Sampler(data, min(batch_size, len(data)), generator, device, shuffle="epochs")
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    order, position = torch.empty(0, dtype=torch.int64), 0
    with torch.enable_grad(), without_autocast(device), bar(progress, what, steps) as show:
        for step in range(steps):
            if position + sampler.batch_size > len(order):
                drawn = torch.randperm(len(data), generator=generator, device=generator.device).cpu()
                order, position = torch.cat([order[position:], drawn]), 0
            rows = order[position : position + sampler.batch_size]
            position += sampler.batch_size
            batch = sampler.take(rows)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (1 - step / steps)
            optimiser.zero_grad(set_to_none=True)
            error(batch.observations, batch.actions, rows.to(device)).backward()
            optimiser.step()
            show(step + 1, "")
