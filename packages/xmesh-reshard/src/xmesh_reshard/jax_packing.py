"""From parts of JAX arrays to words in a buffer and back, on their device.

The functions are compiled once for equal boxes: where the words lie is an argument, so that the many equal tensors of a
model share one program.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped, UInt

from xmesh_reshard.layout import dtype_of

Size = tuple[int, ...]


@partial(jax.jit, static_argnames=("sizes", "wire"), donate_argnums=0)
def write(
    buffer: UInt[Array, "w"],
    part: Shaped[Array, "..."],
    places: Int[Any, "k"],
    starts: Int[Any, "k d"],
    sizes: tuple[Size, ...],
    wire: str,
) -> UInt[Array, "w"]:
    """Put boxes of a part into a buffer, which is given up.

    Args:
        buffer: Words of 1, 2 or 4 bytes.
        part: A device's part of a tensor.
        places: First word of each box.
        starts: First corner of each box in the part's own indices.
        sizes: Lengths of each box.
        wire: Element type in the buffer.
    """
    for k, size in enumerate(sizes):
        cut = jax.lax.dynamic_slice(part, starts[k], size).astype(dtype_of(wire))
        buffer = jax.lax.dynamic_update_slice(buffer, to_words(cut, buffer.dtype), (places[k],))
    return buffer


@partial(jax.jit, static_argnames=("sizes", "wire"), donate_argnums=0)
def read(
    part: Shaped[Array, "..."],
    buffer: UInt[Array, "w"],
    places: Int[Any, "k"],
    starts: Int[Any, "k d"],
    sizes: tuple[Size, ...],
    wire: str,
) -> Shaped[Array, "..."]:
    """Put words of a buffer into boxes of a part, which is given up.

    Args:
        part: The new part so far.
        buffer: Words.
        places: First word of each box.
        starts: First corner of each box in the part's own indices.
        sizes: Lengths of each box.
        wire: Element type in the buffer.
    """
    for k, size in enumerate(sizes):
        part = jax.lax.dynamic_update_slice(part, _at(buffer, places[k], size, wire).astype(part.dtype), starts[k])
    return part


@partial(jax.jit, static_argnames=("shape", "wire", "dtype"))
def read_whole(buffer: UInt[Array, "w"], place: Any, shape: Size, wire: str, dtype: str) -> Shaped[Array, "..."]:
    """A part that lies in a buffer in one piece."""
    return _at(buffer, place, shape, wire).astype(dtype_of(dtype))


@partial(jax.jit, static_argnames="sizes", donate_argnums=0)
def move(
    new: Shaped[Array, "..."],
    old: Shaped[Array, "..."],
    sources: Int[Any, "k d"],
    targets: Int[Any, "k d"],
    sizes: tuple[Size, ...],
) -> Shaped[Array, "..."]:
    """Copy boxes of an old part into a new one, which is given up.

    Args:
        new: The new part so far.
        old: The old part.
        sources: First corner of each box in the old part.
        targets: First corner of each in the new part.
        sizes: Lengths of each box.
    """
    for k, size in enumerate(sizes):
        value = jax.lax.dynamic_slice(old, sources[k], size).astype(new.dtype)
        new = jax.lax.dynamic_update_slice(new, value, targets[k])
    return new


def to_words(array: Shaped[Array, "..."], word: Any) -> UInt[Array, "w"]:
    """The bits of an array in row-major order, as unsigned words no longer than its elements.

    Complex numbers are pairs (real, imaginary), truth values are bytes.
    """
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(array, word).reshape(-1)


def from_words(words: UInt[Array, "w"], dtype: str) -> Shaped[Array, "n"]:
    """The flat array whose bits :func:`to_words` gave."""
    wanted = dtype_of(dtype)
    if wanted.kind == "b":
        return words.astype(bool)
    if wanted.kind == "c":
        half = from_words(words, f"float{wanted.itemsize * 4}").reshape(-1, 2)
        return jax.lax.complex(half[:, 0], half[:, 1])
    per = wanted.itemsize // words.dtype.itemsize
    return jax.lax.bitcast_convert_type(words if per == 1 else words.reshape(-1, per), wanted)


def words_of(shape: tuple[int, ...], wire: str, word: int) -> int:
    """Number of words of an array."""
    count = dtype_of(wire).itemsize // word
    for n in shape:
        count *= n
    return count


def _at(buffer: UInt[Array, "w"], place: Any, shape: tuple[int, ...], wire: str) -> Shaped[Array, "..."]:
    words = jax.lax.dynamic_slice(buffer, (place,), (words_of(shape, wire, buffer.dtype.itemsize),))
    return from_words(words, wire).reshape(shape)
