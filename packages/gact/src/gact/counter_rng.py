"""Random 16-bit integers from a counter: a value depends on the key and the element's index, on nothing else.

Element i takes half (i mod 2) of the 32-bit word number w = i // 2, least significant half first. Words come in blocks
of 2¹⁵; with j the place in the block and c the number of the block,

    word(w) = ψ(φ(j ⊕ k₀) + φ(φ(c ⊕ k₁) + k₀)),      k₀, k₁ the low and the high half of the key,

where φ is a bijective mixer of 32 bits (two multiplications, three xor-shifts) and ψ a shorter one. The first term is
the same for every block and the second the same within a block: a processor computes 2¹⁵ values of φ once and then only
ψ, a GPU computes everything where it is needed, and both get the same bits.

Reference:
    Salmon, Moraes, Dror, Shaw (2011). Parallel random numbers: as easy as 1, 2, 3. SC. (Counters in place of state.)
    Steele, Lea, Flood (2014). Fast splittable pseudorandom number generators. OOPSLA. (The 64-bit mixer.)
"""

import numpy as np
import torch
from jaxtyping import Int32

BLOCK_WORDS = 1 << 15  # words that share one value of the second term
BLOCK = 2 * BLOCK_WORDS  # elements that do
MULTIPLIER_A = 0x7FEB352D  # of φ; the second one is ψ's too
MULTIPLIER_B = 0x846CA68B
_U64 = (1 << 64) - 1


def stream_key(seed: int, step: int, tensor: int) -> int:
    """A key of 64 well mixed bits for one tensor at one step of one run.

    Each number goes through a bijective mixer before the next is added, so that neither (step + 1, tensor) and
    (step, tensor + 1) nor consecutive seeds share a stream.

    Args:
        seed: Of the run; any integer, taken modulo 2⁶⁴.
        step: Number of the step.
        tensor: Number of the tensor.

    Returns:
        The key, in [0, 2⁶⁴).

    Example:
        >>> stream_key(0, 1, 2) == stream_key(0, 2, 1)
        False
    """
    key = 0
    for number in (seed, step, tensor):
        key = mix64(key ^ mix64((number + 0x9E3779B97F4A7C15) & _U64))
    return key


def mix64(value: int) -> int:
    """The finaliser of SplitMix64, a bijection of [0, 2⁶⁴).

    Args:
        value: In [0, 2⁶⁴).

    Returns:
        Its image.
    """
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def block_term(key: int, block: int) -> int:
    """What all the words of a block have in common: φ(φ(c ⊕ k₁) + k₀).

    Args:
        key: From `stream_key`.
        block: c, at least 0.

    Returns:
        The term, in [0, 2³²).
    """
    low, high = key & 0xFFFFFFFF, key >> 32
    return _mix32((_mix32((block & 0xFFFFFFFF) ^ high) + low) & 0xFFFFFFFF)


def place_terms(key: int, words: int = BLOCK_WORDS) -> np.ndarray:
    """What the words at one place of every block have in common: φ(j ⊕ k₀).

    Args:
        key: From `stream_key`.
        words: How many places from the first, at most `BLOCK_WORDS`.

    Returns:
        Terms, uint32, shape [words].
    """
    value = np.arange(words, dtype=np.uint32)
    value ^= np.uint32(key & 0xFFFFFFFF)
    value ^= value >> np.uint32(16)
    value *= np.uint32(MULTIPLIER_A)
    value ^= value >> np.uint32(15)
    value *= np.uint32(MULTIPLIER_B)
    value ^= value >> np.uint32(16)
    return value


def fill_words(places: np.ndarray, key: int, block: int, out: np.ndarray, scratch: np.ndarray) -> None:
    """The words of one block, ψ(place + block term), without allocation.

    Args:
        places: From `place_terms`, shape [words].
        key: From `stream_key`.
        block: Number of the block.
        out: Receives the words, uint32, shape [words].
        scratch: Overwritten, uint32, shape [words].
    """
    np.add(places, np.uint32(block_term(key, block)), out=out)
    np.right_shift(out, np.uint32(15), out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, np.uint32(MULTIPLIER_B), out=out)
    np.right_shift(out, np.uint32(16), out=scratch)
    np.bitwise_xor(out, scratch, out=out)


def random16(start: int, count: int, key: int, device: torch.device | str = "cpu") -> Int32[torch.Tensor, " {count}"]:
    """Uniform integers of 16 bits for the elements start, …, start + count − 1.

    Args:
        start: Index of the first element, at least 0.
        count: How many.
        key: From `stream_key`.
        device: Where the result lives.

    Returns:
        Integers in [0, 65535], shape [count].

    Raises:
        ValueError: If `start` or `count` is negative or `key` is outside [0, 2⁶⁴).

    Example:
        >>> key = stream_key(0, 0, 0)
        >>> bool((random16(0, 10, key)[4:] == random16(4, 6, key)).all())
        True
    """
    if start < 0 or count < 0:
        raise ValueError(f"start={start}, count={count}: both must be at least 0")
    if not 0 <= key <= _U64:
        raise ValueError(f"key={key} is outside [0, 2**64): take it from stream_key")
    index = torch.arange(start, start + count, dtype=torch.int64, device=device)
    word = index >> 1
    low, high = _signed(key & 0xFFFFFFFF), _signed(key >> 32)
    place = _mix32_tensor((word & (BLOCK_WORDS - 1)).to(torch.int32) ^ low)
    block = _mix32_tensor(_mix32_tensor((word >> 15).to(torch.int32) ^ high) + low)
    value = place + block
    value ^= _shifted(value, 15)
    value *= _signed(MULTIPLIER_B)
    value ^= _shifted(value, 16)
    return torch.where((index & 1).bool(), _shifted(value, 16), value & 0xFFFF)


def _mix32(value: int) -> int:
    value ^= value >> 16
    value = (value * MULTIPLIER_A) & 0xFFFFFFFF
    value ^= value >> 15
    value = (value * MULTIPLIER_B) & 0xFFFFFFFF
    return value ^ (value >> 16)


def _mix32_tensor(value: torch.Tensor) -> torch.Tensor:
    value = value ^ _shifted(value, 16)
    value *= _signed(MULTIPLIER_A)
    value ^= _shifted(value, 15)
    value *= _signed(MULTIPLIER_B)
    value ^= _shifted(value, 16)
    return value


def _shifted(value: torch.Tensor, places: int) -> torch.Tensor:
    # int32 shifts carry the sign along: what came from it is masked away
    return (value >> places) & ((1 << (32 - places)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
