"""The one place that chooses between the kernels in PyTorch and those in Triton, which make the same bytes."""

from gact.affine import AffineCodes, dequantise, quantise
from gact.masks import pack_bits, pack_fields, unpack_bits, unpack_fields

__all__ = ["AffineCodes", "dequantise", "pack_bits", "pack_fields", "quantise", "unpack_bits", "unpack_fields"]
