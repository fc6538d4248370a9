"""How much noise in a saved operand reaches the gradient that is computed with it, in closed form and without a pass.

A gradient that is linear in the saved tensor, such as dW = ∇yᵀ x, receives from independent noise of variance v_i in
the elements x_i a total variance Σ_i a_i v_i, where a_i sums the squares of all gradient entries that meet x_i. Under
the law of the quantiser v_i = R_g² / 6 · S(b), so that the variance is c · S(b) with

    c = Σ_g R_g² / 6 · Σ_{i in g} a_i .

Groups are runs of consecutive elements in memory and need not align with rows. Every function here returns c.

Several uses of one saved tensor: where it enters the gradients of different parameters (one input of the projections
q, k and v, stored once), the noises of these gradients are correlated, but their total variance is the plain sum of the
c. Where one parameter is used several times with different saved inputs (tied or unrolled layers), the roundings are
independent and the c add up again. Only the same stored tensor meeting the same parameter twice does not add up: there
the gradients ∇y must be added before their energy is taken.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gact.variance import range_energy

__all__ = ["convolution", "energy_by_group", "linear", "matmul", "memory_order", "pooled", "row_energy"]

_CHUNK = 1 << 16  # elements of a temporary that stays in cache


def row_energy(grad: Float[Tensor, "*shape"], dim: int | Sequence[int] = -1) -> Float[Tensor, "*rest"]:
    """Squared norms along some dimensions, ‖∇y_n‖², in one read and without a temporary of the gradient's size.

    Args:
        grad: A gradient, any floating dtype.
        dim: The dimensions to sum over.

    Returns:
        The energies, in single precision at least.
    """
    work = torch.promote_types(grad.dtype, torch.float32)
    dims = sorted(d % grad.dim() for d in ((dim,) if isinstance(dim, int) else dim))
    strided = grad.device.type == "cpu" and grad.is_contiguous() and dims[-1] != grad.dim() - 1
    if not strided or dims[0] == 0 or grad.numel() == 0:
        return torch.linalg.vector_norm(grad, dim=dim, dtype=work).square_()
    step = max(1, _CHUNK * len(grad) // grad.numel())  # torch's norm is slow across memory; squares in cache are not
    return torch.cat([part.to(work).square().sum(dims) for part in grad.split(step)])


def memory_order(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of a dense tensor from the slowest to the fastest in memory.

    Args:
        size: Its shape.
        stride: Its strides, in elements.

    Returns:
        A permutation of the dimensions; dimensions of size one keep their place among equals.

    Example:
        >>> x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
        >>> memory_order(x.shape, x.stride())
        (0, 2, 3, 1)
    """
    return tuple(sorted(range(len(size)), key=lambda d: (-stride[d], size[d] == 1)))


@torch.no_grad()
def pooled(
    energy: Float[Tensor, "*dims"],
    shape: Sequence[int],
    low: Float[Tensor, "groups"],
    high: Float[Tensor, "groups"],
    group_size: int,
) -> Float[Tensor, ""]:
    """C = Σ_g R_g² / 6 · Σ_{i in g} a_i for energies a that are constant along some dimensions.

    Args:
        energy: a, with as many dimensions as `shape`, in the order of memory; size 1 where it is constant.
        shape: The saved tensor's dimensions in the order of memory, slowest first.
        low: Smallest value of each group of the saved tensor.
        high: Largest value of each group.
        group_size: Elements of a group.

    Returns:
        c, on the device, without waiting for it; not finite if an energy or a range is not.

    Raises:
        ValueError: If the energies do not broadcast to `shape` or the number of groups does not fit.
    """
    weights = energy_by_group(energy, shape, group_size)
    if weights.shape != low.shape or low.shape != high.shape:
        raise ValueError(
            f"{tuple(low.shape)} lows and {tuple(high.shape)} highs for a tensor of shape {tuple(shape)}; in groups of "
            f"{group_size} it has {weights.numel()}"
        )
    return torch.dot(weights, range_energy(low, high).to(weights.dtype)) / 6.0


@torch.no_grad()
def energy_by_group(energy: Float[Tensor, "*dims"], shape: Sequence[int], group_size: int) -> Float[Tensor, "groups"]:
    """Σ_{i in g} a_i for each group of consecutive elements, from cumulative sums and never expanded to `shape`.

    Args:
        energy: a, with as many dimensions as `shape`; size 1 where it is constant.
        shape: The saved tensor's dimensions in the order of memory, slowest first.
        group_size: Elements of a group; the last one may be shorter.

    Returns:
        One sum a group, in double precision where the device has it.

    Raises:
        ValueError: If the energies do not broadcast to `shape`, or `group_size` is not positive.

    Example:
        >>> energy_by_group(torch.tensor([[1.0], [10.0]]), (2, 3), 2).tolist()  # rows of three in groups of two
        [2.0, 11.0, 20.0]
    """
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; give a positive number of elements")
    if energy.dim() != len(shape) or any(e not in (1, s) for e, s in zip(energy.shape, shape, strict=True)):
        raise ValueError(
            f"energies of shape {tuple(energy.shape)} for a tensor of shape {tuple(shape)}; give as many dimensions, "
            "each of the same size or 1"
        )
    numel = prod(shape)
    wide = torch.float32 if energy.device.type == "mps" else torch.float64
    if numel == 0:
        return torch.zeros(0, dtype=wide, device=energy.device)
    table, tile, inner = _four_level(energy, shape)
    if tile == inner == 1:
        return _direct_sums(table.reshape(-1), group_size, wide)
    ends = torch.arange(0, numel + group_size, group_size, device=energy.device).clamp_(max=numel)
    return _prefix_sums(table.to(wide), tile, inner, ends).diff().clamp_(min=0)  # rounding must not make it negative


def linear(
    energy: Float[Tensor, "rows"],
    low: Float[Tensor, "groups"],
    high: Float[Tensor, "groups"],
    columns: int,
    group_size: int,
    *,
    column_major: bool = False,
) -> Float[Tensor, ""]:
    """C of the weight's gradient of y = x Wᵀ + b with x saved: Σ_n ‖∇y_n‖² Σ_d R²_{g(n,d)} / 6.

    Args:
        energy: ‖∇y_n‖² of each row, as `row_energy` computes it.
        low: Smallest value of each group of x.
        high: Largest value of each group.
        columns: D, the number of entries in a row of x.
        group_size: Elements of a group.
        column_major: Whether x lies in memory column by column.

    Returns:
        c, such that the variance of ∇W is about c · S(b); a tensor of no dimension, without waiting for the device.

    Reference:
        Liu et al. (2022), Section 4, for Var ≈ c · S(b); the closed form of c is derived in this package.

    Example:
        >>> low, high = torch.zeros(1), torch.ones(1)
        >>> float(linear(torch.tensor([1.0, 2.0]), low, high, columns=4, group_size=8))  # (1 + 2) · 4 / 6
        2.0
    """
    if column_major:
        return pooled(energy[None, :], (columns, energy.numel()), low, high, group_size)
    return pooled(energy[:, None], (energy.numel(), columns), low, high, group_size)


@torch.no_grad()
def matmul(
    grad_output: Float[Tensor, "*batch n m"],
    size: Sequence[int],
    low: Float[Tensor, "groups"],
    high: Float[Tensor, "groups"],
    group_size: int,
    *,
    operand: Literal["left", "right"],
    order: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """C of the other operand's gradient of Y = A B with one operand saved.

    Noise in A goes to ∇B = Aᵀ ∇Y: Σ_n ‖∇Y_n·‖² Σ_k R²/6. Noise in B goes to ∇A = ∇Y Bᵀ: Σ_m ‖∇Y_·m‖² Σ_k R²/6.

    Args:
        grad_output: ∇Y.
        size: Shape of the saved operand, [*batch, n, k] or [*batch, k, m]; a batch dimension may be 1 if it was
            broadcast.
        low: Smallest value of each group of the saved operand.
        high: Largest value of each group.
        group_size: Elements of a group.
        operand: Which operand the saved one is.
        order: Its dimensions from the slowest to the fastest in memory (`memory_order`); row by row if None.

    Returns:
        c, on the device.

    Raises:
        ValueError: If the shapes do not fit.
    """
    outer = -2 if operand == "left" else -1
    if grad_output.dim() != len(size) or grad_output.shape[outer] != size[outer]:
        raise ValueError(f"the {operand} operand of shape {tuple(size)} does not fit {tuple(grad_output.shape)}")
    inner = -1 if operand == "left" else -2
    energy = row_energy(grad_output, inner).unsqueeze(inner)
    shared = [d for d, s in enumerate(size[:-2]) if s == 1 and grad_output.shape[d] != 1]
    if shared:
        energy = energy.sum(shared, keepdim=True)
    order = tuple(range(len(size))) if order is None else tuple(order)
    return pooled(energy.permute(order), [size[d] for d in order], low, high, group_size)


@torch.no_grad()
def convolution(
    grad_output: Float[Tensor, "batch channels_out *space_out"],
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    low: Float[Tensor, "groups_of_codes"],
    high: Float[Tensor, "groups_of_codes"],
    group_size: int,
    channels_last: bool = False,
) -> Float[Tensor, ""]:
    """C of the kernel's gradient of a convolution (1 to 3 dimensions, grouped, transposed) with its input saved.

    An input element meets the outputs whose receptive field it lies in, in all channels of its group:
    a_q = Σ_k Σ_{c in group} ∇y_c(p(q, k))², the energy of ∇y pooled by a transposed convolution with ones (by a
    convolution with ones if the layer is itself transposed).

    Args:
        grad_output: ∇y.
        input_size: Shape of the saved input, [batch, channels, *space].
        weight_size: Shape of the kernel.
        stride: Stride of each spatial dimension.
        padding: Padding of each spatial dimension.
        dilation: Dilation of each spatial dimension.
        groups: Groups of channels.
        transposed: Whether the layer is a transposed convolution.
        low: Smallest value of each group of codes.
        high: Largest value of each group of codes.
        group_size: Elements of a group of codes.
        channels_last: Whether the channels are the fastest dimension of the saved input in memory.

    Returns:
        c, on the device.

    Raises:
        ValueError: If the shapes do not fit.
    """
    space = tuple(input_size[2:])
    rank = len(space)
    if not 1 <= rank <= 3 or len(weight_size) != rank + 2 or grad_output.dim() != rank + 2:
        raise ValueError(
            f"input {tuple(input_size)}, kernel {tuple(weight_size)} and gradient {tuple(grad_output.shape)}; give "
            "[batch, channels, *space] with one to three spatial dimensions for all of them"
        )
    batch = input_size[0]
    energy = row_energy(grad_output.unflatten(1, (groups, -1)), 2).flatten(0, 1).unsqueeze(1)
    energy = _receptive(energy, space, weight_size[2:], stride, padding, dilation, transposed)
    energy = energy.view(batch, groups, 1, *space)
    shape = (batch, groups, input_size[1] // groups, *space)
    order = (0, *range(3, 3 + rank), 1, 2) if channels_last else tuple(range(3 + rank))
    return pooled(energy.permute(order), [shape[d] for d in order], low, high, group_size)


def _receptive(
    energy: Tensor,
    space: tuple[int, ...],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> Tensor:
    """Energies [maps, 1, *space_out] summed over the outputs that each input position takes part in."""
    rank = len(space)
    if prod(kernel) == prod(stride) == 1 and not any(padding):
        return energy
    ones = energy.new_ones((1, 1, *kernel))
    with torch.autocast(energy.device.type, enabled=False):
        if transposed:
            convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
            out = convolve(energy, ones, stride=stride, padding=padding, dilation=dilation)
            return out[(..., *(slice(s) for s in space))]  # an output padding beyond the stride adds positions
        reach = [(o - 1) * s - 2 * p + d * (k - 1) + 1 for o, s, p, d, k in
                 zip(energy.shape[2:], stride, padding, dilation, kernel, strict=True)]  # fmt: skip
        rest = [s - r for s, r in zip(space, reach, strict=True)]  # positions that a stride leaves over
        convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
        return convolve(energy, ones, stride=stride, padding=padding, dilation=dilation, output_padding=rest)


def _four_level(energy: Tensor, shape: Sequence[int]) -> tuple[Tensor, int, int]:
    """The energies as a table [outer, rows] for the layout [outer, tile, rows, inner], constant over tile and inner."""
    varies = [e != 1 for e in energy.shape]
    end = len(shape)
    inner = tile = 1
    while end and not varies[end - 1]:
        inner, end = inner * shape[end - 1], end - 1
    rows = end
    while rows and (varies[rows - 1] or shape[rows - 1] == 1):
        rows -= 1
    outer = rows
    while outer and not varies[outer - 1]:
        tile, outer = tile * shape[outer - 1], outer - 1
    head = energy[(..., *(0,) * (len(shape) - end))] if end < len(shape) else energy
    head = head.expand([*shape[:outer], *[1] * (rows - outer), *shape[rows:end]])
    return head.reshape(prod(shape[:outer]), prod(shape[rows:end])), tile, inner


def _prefix_sums(table: Tensor, tile: int, inner: int, ends: Tensor) -> Tensor:
    """Σ_{i < end} a_i at each of `ends`, for the layout [outer, tile, rows, inner]."""
    outer, rows = table.shape
    running = torch.zeros(outer, rows + 1, dtype=table.dtype, device=table.device)
    torch.cumsum(table, 1, out=running[:, 1:])
    turn = running[:, -1] * inner  # one tile
    before = torch.zeros(outer + 1, dtype=table.dtype, device=table.device)
    torch.cumsum(turn * tile, 0, out=before[1:])
    row, column = ends // inner, ends % inner
    tiles, row = row // rows, row % rows
    block, tiles = tiles // tile, tiles % tile
    inside = block.clamp(max=outer - 1)  # the very end is behind the last block, with nothing of it
    partial = running[inside, row] * inner + table[inside, row] * column
    return before[block] + turn[inside] * tiles + partial


def _direct_sums(flat: Tensor, group_size: int, wide: torch.dtype) -> Tensor:
    """Sums over groups where the energy varies from element to element."""
    whole = flat.numel() // group_size * group_size
    sums = flat[:whole].view(-1, group_size).sum(1, dtype=wide)
    return torch.cat([sums, flat[whole:].sum(0, keepdim=True, dtype=wide)]) if whole < flat.numel() else sums
