r"""Closed forms of what schedules take: derived, not simulated.

p stages (devices) with equal passes of tf and tb seconds (T = tf + tb), m microbatches, c seconds a transfer, each way.
All hold for p, m >= 1 and the ranges of c that they state, which the tests check by brute force (exactly, in binary
fractions, against the event model).

Why. The last stage cannot start before p - 1 forward passes and transfers, has m T to do, and its last gradient has
p - 1 transfers and backward passes to go: no schedule is below

$$ (m + p - 1)\,T + 2 (p - 1)\,c. $$

A schedule in which stage i runs w_i forward passes ahead reaches that unless a circle of waits is slower than the
devices: B of microbatch k on stage i lets F of k + w_i start there, which travels d stages towards the output, meets B
of k + w_i - w_{i+d} + 1 on stage i + d in turn, which travels back. The circle takes (d + 1) T + 2 d c and advances
w_i - w_{i+d} + 1 microbatches: d + 1 for 1F1B, 2 d + 1 for eager-1F1B. So it delays by 2 d c every d + 1 microbatches
in 1F1B, whatever c is, and in eager-1F1B only where 2 d c > d T. With weight delaying, W (w seconds of T) is in the
circle on stage i alone: (d + 1)(T - w) + w + 2 d c, so 1F1B loses nothing up to c = w / 2, and eager-1F1B up to
(T + w) / 2.
"""

from math import ceil
from typing import TypeAlias

Number: TypeAlias = float | int


def ideal(p: int, m: int, tf: Number, tb: Number) -> Number:
    """(m + p - 1)(tf + tb): gpipe, 1f1b and eager-1f1b without communication."""
    return (m + p - 1) * (tf + tb)


def gpipe_overlap(p: int, m: int, tf: Number, tb: Number, c: Number) -> Number:
    """GPipe, overlapped: two waves over p stages; the slower of pass and link sets the pace. Any c."""
    forward = p * tf + (p - 1) * c + (m - 1) * (max(tf, c) if p > 1 else tf)
    backward = p * tb + (p - 1) * c + (m - 1) * (max(tb, c) if p > 1 else tb)
    return forward + backward


def gpipe_blocking(p: int, m: int, tf: Number, tb: Number, c: Number) -> Number:
    """GPipe, blocking: every device but a wave's last sends after each pass. Any c."""
    return ideal(p, m, tf, tb) + (2 * (m + p - 2) * c if p > 1 else 0)


def one_f_one_b_overlap(p: int, m: int, tf: Number, tb: Number, c: Number) -> Number:
    r"""1F1B, overlapped. Any c.

    $$ (m + p - 1)\,T + 2 c\,(m + p - 2 - \lceil (m - 1) / p \rceil) + \max(0, c - T)\,[m \ge 2, m \equiv 2 \bmod p] $$

    Every microbatch adds a round trip 2 c but one in p: the slowest circle has d = p - 1, so p microbatches pay for
    p - 1 round trips. The last term is a link that is slower than the device.
    """
    if p == 1:
        return ideal(p, m, tf, tb)
    trips = m + p - 2 - ceil((m - 1) / p)
    slow = max(0.0, c - tf - tb) if m >= 2 and (m - 2) % p == 0 else 0.0
    return ideal(p, m, tf, tb) + 2 * c * trips + slow


def one_f_one_b_blocking(p: int, m: int, tf: Number, tb: Number, c: Number) -> Number:
    """1F1B, blocking: a stage between two others stands still for 2 c a microbatch, of two stages each for c. Any c."""
    if p == 1 or m == 1:
        return ideal(p, m, tf, tb) + 2 * (p - 1) * c
    return ideal(p, m, tf, tb) + ((m + 1) * c if p == 2 else (2 * m + 2 * p - 5) * c)


def eager_overlap(p: int, m: int, tf: Number, tb: Number, c: Number) -> Number:
    r"""Eager-1F1B, overlapped, for c <= 2 T.

    $$ (m + p - 1)\,T + 2 (p - 1)\,c \quad\text{for } c \le T / 2, $$

    for c <= T with m <= 3, and for any c with m = 1: the lower bound, so no schedule is shorter. Beyond, the circles
    of waits add 2 c - T for every two microbatches, one circle of d = p - 1 after the other, and what is left over
    c - T each where that is positive.

    Raises:
        ValueError: If c > 2 T: there the links alone set the pace.

    Reference: the first line is the one that the paper's overlap comes to; its range is derived here.
    """
    whole = tf + tb
    if p == 1:
        return ideal(p, m, tf, tb)
    if c > 2 * whole:
        raise ValueError(f"the closed form holds for c <= 2 (tf + tb) = {2 * whole}, got {c}")
    circles, rest = divmod(m - 1, 2 * p - 1)
    hops = max(0, (rest - 1) // 2)
    left = rest - (2 * hops + 1) if hops else rest
    late = max(0.0, 2 * c - whole) * ((p - 1) * circles + hops) + max(0.0, c - whole) * left
    return ideal(p, m, tf, tb) + 2 * (p - 1) * c + late


def weight_delayed_overlap(p: int, m: int, tf: Number, tb: Number, tw: Number, c: Number) -> Number:
    r"""1F1B, eager-1F1B and GPipe with weight delaying, overlapped, where communication costs least.

    $$ m\,T + (p - 1)(T - tw + 2 c) $$

    The gradient that leaves last goes through p - 1 input gradients instead of whole backward passes. For
    c <= tw / 2 with 1F1B, c <= (T + tw) / 2 with eager-1F1B, c <= min(tf, tb) with GPipe.

    Args:
        p: Stages.
        m: Microbatches.
        tf: Seconds of F.
        tb: Seconds of B and W together.
        tw: Seconds of W.
        c: Seconds of a transfer.
    """
    return m * (tf + tb) + (p - 1) * (tf + tb - tw + 2 * c)


def zero_bubble(p: int, m: int, tf: Number, tb: Number, tw: Number, *, twice: bool = False) -> Number:
    r"""Zero-bubble schedules without communication: ZB-H1 for m >= p, ZB-H2 (`twice`) for m >= 2 p - 1.

    With b = tb - tw and u = min(tf, b, tw)

    $$ m\,T + (p - 1)(tf + b - u) \qquad\text{and}\qquad m\,T + (p - 1) \max(tf,\; tf + b - 2 u). $$

    For tf = b = tw both are m T + (p - 1) tf, which no schedule is below: the last stage starts after p - 1 forward
    passes. ZB-H2 saves where b > tf, and lets the next step start earlier (`Timeline.period`).

    Reference: Qi et al. 2024, Section 2, whose bubbles (p - 1)(tf + b - tw) and (p - 1)(tf + b - 2 tw) are of a
    device's own span and for passes of similar length.
    """
    b = tb - tw
    u = min(tf, b, tw)
    return m * (tf + tb) + (p - 1) * (max(tf, tf + b - 2 * u) if twice else tf + b - u)


def interleaved(p: int, m: int, v: int, tf: Number, tb: Number) -> Number:
    r"""Interleaved 1F1B without communication; tf and tb are the seconds of one of the p v stages.

    $$ m v\,T + (p - 1)\,T \;\text{ for } m \ge p, \qquad (p v + m - 1)\,T \;\text{ for } m < p $$

    The bubble is 1/v of that of 1F1B, whose stages take v T.

    Reference: Narayanan et al. 2021, Section 2.2.
    """
    return (m * v + p - 1 if m >= p else p * v + m - 1) * (tf + tb)


def peak_inflight(kind: str, p: int, m: int, stage: int) -> int:
    """Activations that a stage holds: m, min(m, p - i) or min(m, 2 (p - i) - 1) for gpipe, 1f1b, eager-1f1b.

    min(m, p) and min(m, 2 p - 1) for "zero-bubble" and "zero-bubble-2": late stages put W off.
    """
    held = {
        "gpipe": m,
        "1f1b": p - stage,
        "eager-1f1b": 2 * (p - stage) - 1,
        "zero-bubble": p,
        "zero-bubble-2": 2 * p - 1,
    }
    return min(m, held[kind])
