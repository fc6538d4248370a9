# pyrefly: ignore-errors
# ruff: noqa: SIM108
# (a kernel is not Python to a type checker, and its branches on constants are Triton's)
"""The kernels of the fused loss, in Triton.

A program takes a few samples with all their members, so that what couples members stays in registers: tiles have the
axes members, samples, classes. Where all classes fit one tile, logits are read once and the gradient comes from the
same registers. Otherwise two loops over the classes follow each other, the second from the end, where the cache still
holds them.
"""

import triton
import triton.language as tl

__all__ = ["scale_kernel", "terms_kernel"]


@triton.jit
def _excess(u, WIDE: tl.constexpr):
    """exp(u) - 1 - u; by its series where the difference would cancel, so never negative."""
    near = tl.abs(u) < 0.5
    small = tl.where(near, u, 0.0)
    series = tl.full(u.shape, 1.0, WIDE)
    for k in tl.static_range(14):  # u^2/2 (1 + u/3 (1 + u/4 (... (1 + u/16))))
        series = 1.0 + small * series / (16.0 - k)
    return tl.where(near, small * small * 0.5 * series, tl.exp(u) - 1.0 - u)


@triton.jit
def _finite(x):
    """-inf, the maximum of nothing, as 0: it is subtracted from -inf."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def _label_relative_mean(z, reference, real, M: tl.constexpr):
    """mean_m (z_mc - z_m,label), shape [SAMPLES, WIDTH]: logits of the geometric ensemble."""
    return tl.sum(tl.where(real[:, None, None], z - reference[:, :, None], 0.0), 0) / M


@triton.jit
def _load(z_ptr, start, c, zc, inside, C: tl.constexpr, WIDE: tl.constexpr):
    """Logits of all members, shape [ROWS, SAMPLES, WIDTH]; what is outside is -inf."""
    places = start[:, :, None] + (c.to(tl.int64) * zc)[None, None, :]
    mask = inside[:, :, None] & (c < C)[None, None, :]
    return tl.load(z_ptr + places, mask=mask, other=-float("inf")).to(WIDE)


@triton.jit
def _statistics(
    z_ptr, start, zc, inside, real, reference,
    M: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, GEOMETRIC: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of exp(z - largest) over the classes in a loop, of members and geometric ensemble."""
    c = tl.arange(0, WIDTH)
    top = tl.full(inside.shape, -float("inf"), WIDE)
    total = tl.zeros(inside.shape, WIDE)
    top_g = tl.max(top, 0)
    total_g = tl.zeros(top_g.shape, WIDE)
    for first in range(0, C, WIDTH):
        z = _load(z_ptr, start, first + c, zc, inside, C, WIDE)
        new = tl.maximum(top, tl.max(z, 2))
        base = _finite(new)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(z - base[:, :, None]), 2)
        top = new
        if GEOMETRIC:
            a = _label_relative_mean(z, reference, real, M)
            new_g = tl.maximum(top_g, tl.max(a, 1))
            base_g = _finite(new_g)
            total_g = total_g * tl.exp(top_g - base_g) + tl.sum(tl.exp(a - base_g[:, None]), 1)
            top_g = new_g
    return _finite(top), total, _finite(top_g), total_g


@triton.jit
def _store_gradient(
    grad_ptr, goes, c, gc, inside, y, share, own, p, common, g, C: tl.constexpr, GEOMETRIC: tl.constexpr
):  # fmt: skip
    """Own (p - 1[c = y]), and common (g - 1[c = y]) of the geometric ensemble's g; 0 where a sample counts nothing."""
    hot = (c[None, :] == y[:, None]).to(p.dtype)
    value = own[:, :, None] * (p - hot[None, :, :])
    if GEOMETRIC:
        value += (common[:, None] * (g - hot))[None, :, :]
    value = tl.where((share == 0.0)[None, :, None], 0.0, value)
    places = goes[:, :, None] + (c.to(tl.int64) * gc)[None, None, :]
    mask = inside[:, :, None] & (c < C)[None, None, :]
    tl.store(grad_ptr + places, value.to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["batch"])
def terms_kernel(
    z_ptr, target_ptr, lam_ptr, weight_ptr, total_ptr, factor_ptr,
    member_ptr, ensemble_ptr, ambiguity_ptr, row_ptr, grad_ptr,
    batch, zm, zb, zc, gm, gb, gc,
    M: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    GEOMETRIC: tl.constexpr, SUMMED: tl.constexpr, WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Terms of the loss and its gradient for SAMPLES samples; see `kernel_arguments`."""
    WHOLE: tl.constexpr = WIDTH >= C
    m = tl.arange(0, ROWS)
    b = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    c = tl.arange(0, WIDTH)
    real, sample = m < M, b < batch
    inside = real[:, None] & sample[None, :]
    m64 = m.to(tl.int64)
    start = (m64[:, None] * zm + b[None, :] * zb) * UNIT
    y = tl.load(target_ptr + b, mask=sample, other=0).to(tl.int64)
    # a label out of range makes the loss NaN: there is nobody to raise to
    known = inside & ((y >= 0) & (y < C))[None, :]
    label = tl.load(z_ptr + start + y[None, :] * zc, mask=known, other=float("nan")).to(WIDE)
    label = tl.where(inside, label, 0.0)
    reference = tl.where(label > -float("inf"), label, 0.0)  # NaN and -inf: 0
    lam = tl.load(lam_ptr).to(WIDE)

    if WHOLE:
        z = _load(z_ptr, start, c, zc, inside, C, WIDE)
        top = _finite(tl.max(z, 2))
        p = tl.exp(z - top[:, :, None])
        total = tl.sum(p, 2)
        if GEOMETRIC:
            g = _label_relative_mean(z, reference, real, M)
            top_g = _finite(tl.max(g, 1))
            g = tl.exp(g - top_g[:, None])
            total_g = tl.sum(g, 1)
    else:
        top, total, top_g, total_g = _statistics(
            z_ptr, start, zc, inside, real, reference, M, C, WIDTH, WIDE, GEOMETRIC
        )
    total = tl.where(inside, total, 1.0)
    log_total = tl.log(total)
    likelihood = tl.where(real[:, None], (label - top) - log_total, -float("inf"))
    ce = -tl.sum(tl.where(real[:, None], likelihood, 0.0), 0) / M
    if GEOMETRIC:
        total_g = tl.where(sample, total_g, 1.0)
        partition = top_g + tl.log(total_g)
        over = tl.sum(tl.where(real[:, None], (top - reference) + log_total, 0.0), 0) / M
        ambiguity = tl.maximum(over - partition, 0.0)
        ensemble = partition - tl.sum(tl.where(real[:, None], label - reference, 0.0), 0) / M
    else:
        best = _finite(tl.max(likelihood, 0))
        mean = tl.sum(tl.exp(likelihood - best[None, :]), 0) / M
        log_mean = tl.log(tl.where(sample, mean, 1.0))
        u = tl.where(real[:, None], (likelihood - best[None, :]) - log_mean[None, :], 0.0)
        ambiguity = tl.sum(_excess(u, WIDE), 0) / M
        ensemble = -(best + log_mean)

    if WEIGHTED:
        counted = tl.load(weight_ptr + b, mask=sample, other=0.0).to(WIDE)
        share = tl.where(counted == 0.0, 0.0, counted / tl.load(total_ptr))
    else:
        counted = tl.full((SAMPLES,), 1.0, WIDE)
        share = counted / (tl.zeros((SAMPLES,), WIDE) + batch)
    if SUMMED:
        counted = counted * M
    else:
        share = share / M
    if not SCALED:
        value = (1.0 - lam) * ce + lam * ensemble
        # the ends leave out a term that may be infinite: a member that excludes the label
        value = tl.where(lam == 1.0, ensemble, tl.where(lam == 0.0, ce, value))
        tl.store(row_ptr + b, tl.where(counted == 0.0, 0.0, counted * value), mask=sample)
        tl.store(ensemble_ptr + b, ensemble, mask=sample)
        tl.store(ambiguity_ptr + b, ambiguity, mask=sample)
        tl.store(member_ptr + m64[:, None] * batch + b[None, :], -likelihood, mask=inside)
    if GRADIENT:
        if SCALED:
            share = share * tl.load(factor_ptr).to(WIDE)
        goes = (m64[:, None] * gm + b[None, :] * gb) * UNIT
        common = lam * share
        if GEOMETRIC:
            own = tl.zeros((ROWS, SAMPLES), WIDE) + ((1.0 - lam) * share)[None, :]
        else:
            own = share[None, :] * ((1.0 - lam) + lam * tl.exp(u))
        if WHOLE:
            p = p / total[:, :, None]
            if GEOMETRIC:
                g = g / total_g[:, None]
            else:
                g = p
            _store_gradient(grad_ptr, goes, c, gc, inside, y, share, own, p, common, g, C, GEOMETRIC)
        else:
            BLOCKS: tl.constexpr = (C + WIDTH - 1) // WIDTH
            for i in range(BLOCKS):
                places = (BLOCKS - 1 - i) * WIDTH + c
                z = _load(z_ptr, start, places, zc, inside, C, WIDE)
                p = tl.exp(z - top[:, :, None]) / total[:, :, None]
                if GEOMETRIC:
                    g = _label_relative_mean(z, reference, real, M)
                    g = tl.exp(g - top_g[:, None]) / total_g[:, None]
                else:
                    g = p
                _store_gradient(
                    grad_ptr, goes, places, gc, inside, y, share, own, p, common, g, C, GEOMETRIC
                )  # fmt: skip


@triton.jit
def scale_kernel(x_ptr, factor_ptr, numel, BLOCK: tl.constexpr):
    """Multiplies in place by a number on the device; nothing else is read if it is 1."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < numel:  # a range with such bounds is too much for the interpreter of Triton 3.6
            places = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + places, mask=places < numel)
            tl.store(x_ptr + places, (x.to(factor.dtype) * factor).to(x.dtype), mask=places < numel)
            start += tl.num_programs(0) * BLOCK
