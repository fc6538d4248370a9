"""The quantiser as a codec that other packages find by the entry-point group `repertory.codecs`."""

from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gact import affine, kernels, ledger
from gact.affine import AffineCodes

__all__ = ["CODEC", "AffineCodec"]


@final
class AffineCodec:
    """Numbers at 1, 2, 4 or 8 bits, by unbiased stochastic rounding within groups.

    Attributes:
        bits: The widths it offers.
        dtypes: The types of numbers it takes.
        group_size: Numbers that share a smallest and a largest value.

    Args:
        group_size: One of `affine.GROUP_SIZES`.

    Raises:
        ValueError: If the group size is another one.

    Example:
        >>> codec, x = AffineCodec(), torch.linspace(-1, 1, 1000)
        >>> codes, y = codec.compress(x, 4, key=7), torch.empty(1000)
        >>> codec.decompress(codes, 4, y)
        >>> codes.numel() == codec.nbytes(1000, torch.float32, 4), bool((x - y).abs().max() < 0.04)
        (True, True)
    """

    bits: tuple[int, ...] = affine.BITS
    dtypes: tuple[torch.dtype, ...] = affine.DTYPES

    def __init__(self, group_size: int = 256) -> None:
        if group_size not in affine.GROUP_SIZES:
            raise ValueError(f"group_size={group_size}: the choices are {affine.GROUP_SIZES}")
        self.group_size = group_size

    def nbytes(self, numel: int, dtype: torch.dtype, bits: int) -> int:
        """Bytes of the codes of so many numbers.

        Args:
            numel: n.
            dtype: Their type.
            bits: Bits a number.

        Returns:
            ⌈n/G⌉ · (G·b/8 + 2·itemsize).
        """
        return ledger.affine_bytes(numel, bits, self.group_size, dtype)

    def compress(self, numbers: Float[Tensor, " n"], bits: int, key: int) -> UInt8[Tensor, " m"]:
        """The codes of numbers.

        Args:
            numbers: fp16, bf16, fp32 or fp64, contiguous.
            bits: Bits a number.
            key: Below 2⁶⁴; the same key makes the same codes.

        Returns:
            Bytes, shape [nbytes].

        Raises:
            TypeError: If the numbers are of another type.
            ValueError: If they are not contiguous, or bits or key is out of range.
        """
        return kernels.quantise(numbers, bits, key=key, group_size=self.group_size).buffer

    def decompress(self, codes: UInt8[Tensor, " m"], bits: int, out: Float[Tensor, " n"]) -> None:
        """Fill a tensor with the numbers that codes stand for.

        Args:
            codes: From `compress`.
            bits: As given to it.
            out: Of the type that was compressed, contiguous.

        Raises:
            ValueError: If the codes have another length than n numbers of that type need.
        """
        need = self.nbytes(out.numel(), out.dtype, bits)
        if codes.shape != (need,):
            raise ValueError(f"{tuple(codes.shape)} bytes of codes: {out.numel()} numbers at {bits} bits take {need}")
        if out.numel():
            kernels.dequantise(AffineCodes(codes, out.numel(), bits, self.group_size, out.dtype), out=out)


CODEC = AffineCodec()
"""What the entry point names."""
