"""Bytes of what is stored, from the shape alone."""

import torch


def affine_bytes(numel: int, bits: int, group_size: int, dtype: torch.dtype) -> int:
    """Bytes of the codes of a tensor: ⌈n/G⌉ · (G·b/8 + 2·itemsize).

    All groups are whole, the last one padded; each carries its smallest and its largest value in the tensor's type.

    Args:
        numel: n.
        bits: b, 1, 2, 4 or 8.
        group_size: G, a multiple of 8.
        dtype: Of the tensor.

    Returns:
        Bytes of the one buffer.

    Example:
        >>> [affine_bytes(1 << 20, bits, 256, torch.float32) for bits in (1, 2, 4, 8)]
        [163840, 294912, 557056, 1081344]
    """
    return -(-numel // group_size) * (group_size * bits // 8 + 2 * dtype.itemsize)


def field_bytes(numel: int, width: int) -> int:
    """Bytes of packed fields: ⌈n·w/8⌉.

    Args:
        numel: n.
        width: w, 1, 2, 4 or 8 bits.

    Returns:
        Bytes.

    Example:
        >>> field_bytes(9, 1)
        2
    """
    return -(-numel * width // 8)
