"""The cost of sending one message to several devices, and the best number of chunks.

A message of S bytes in K chunks along R hops in a chain, hop j with α_j seconds a chunk and rate β_j: each chunk takes
τ_j = α_j + S / (K β_j) on hop j, all hops work at once on different chunks, and the slowest sets the pace:

    T(K) = Σ_j τ_j + (K - 1) max_j τ_j

For equal hops this is (K + R - 1)(α + S / (K β)), least at K = √((R - 1) S / (α β)).
"""

import math
from collections.abc import Sequence
from typing import SupportsFloat

MIN_CHUNK = 64 * 1024  # below this, per-message costs of real transports dominate


def chain_seconds(nbytes: SupportsFloat, chunks: int, alphas: Sequence[float], rates: Sequence[float]) -> float:
    """T(K): time of a chunked chain.

    Args:
        nbytes: Bytes S.
        chunks: Number of chunks K.
        alphas: Seconds a chunk costs on each hop.
        rates: Rate of each hop, bytes/s.

    Returns:
        Seconds until the last receiver has the last byte.

    Reference:
        Sec. 3.1 (broadcast): t + (A - 1) t / K for α = 0 and A hops of time t.

    Example:
        >>> chain_seconds(100.0, 4, [0.0, 0.0], [100.0, 100.0])
        1.25
    """
    size = float(nbytes)
    taus = [alpha + size / (chunks * rate) for alpha, rate in zip(alphas, rates, strict=True)]
    return math.fsum(taus) + (chunks - 1) * max(taus)


def best_chunks(
    nbytes: SupportsFloat, alphas: Sequence[float], rates: Sequence[float], min_chunk: int = MIN_CHUNK
) -> int:
    """The number of chunks of least T(K), no chunk smaller than ``min_chunk``.

    For each hop that may set the pace, T is α K + const + c / K: convex, least at √(c / α); T is the largest of these,
    so it is convex too, and its least value lies at one of them or where two cross.

    Args:
        nbytes: Bytes S.
        alphas: Seconds a chunk costs on each hop.
        rates: Rate of each hop, bytes/s.
        min_chunk: Smallest chunk, bytes.
    """
    size = float(nbytes)
    most = max(1, int(size // min_chunk))
    if len(rates) == 1 or most == 1:
        return 1
    kinds = sorted({*zip(alphas, rates, strict=True)})
    bytewise = size * math.fsum(1 / rate for rate in rates)
    found = {1.0, float(most)}
    for alpha, rate in kinds:
        if alpha > 0:
            found.add(math.sqrt(max(0.0, bytewise - size / rate) / alpha))
        found.update(
            size * (1 / rate - 1 / other) / (beta - alpha) for beta, other in kinds if beta != alpha and rate != other
        )
    whole = {min(most, max(1, n)) for k in found for n in (math.floor(k), math.ceil(k))}
    return min(sorted(whole), key=lambda k: chain_seconds(nbytes, k, alphas, rates))


def star_seconds(nbytes: SupportsFloat, receivers: int, alpha: float, rate: float, lanes: int = 1) -> float:
    """Time to send a message to each receiver separately over ``lanes`` cards: ⌈R / lanes⌉ (α + S / β).

    Args:
        nbytes: Bytes S.
        receivers: Number of receivers R.
        alpha: Seconds a message costs.
        rate: Rate of a card, bytes/s.
        lanes: Cards that send at the same time.
    """
    return -(-receivers // lanes) * (alpha + float(nbytes) / rate)
