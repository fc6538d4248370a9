"""The quantiser: its law of variance, its lack of bias, its exact cases, and its bytes."""

import math
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gact import affine, counter_rng, ledger, masks, theory

KEY = counter_rng.stream_key(2, 7, 1)
# rounding of a result to its type, relative, and what fp32 (or fp64) arithmetic adds
ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SUBNORMAL = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149, torch.float64: 2.0**-1074}
KINDS = {dtype: (2.0**-24 if dtype != torch.float64 else 2.0**-53) for dtype in affine.DTYPES}


def normal(n, dtype=torch.float32, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def round_trip(x, bits, key=KEY, group_size=256, dtype=None):
    return affine.dequantise(affine.quantise(x, bits, key=key, group_size=group_size), dtype=dtype)


def raw_codes(codes):
    payload = codes.payload
    return payload if codes.bits == 8 else masks.unpack_fields(payload, codes.bits, payload.numel() * 8 // codes.bits)


def same(a, b):
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class TestMoments:
    @pytest.mark.parametrize("bits", affine.BITS)
    def test_variance_of_each_number(self, bits):
        """Monte Carlo against Δ²f(1 − f). The mean over numbers of squared errors, against its own spread."""
        x = normal(256)
        low, high = theory.group_ranges(x.double().numpy(), 256)
        exact = theory.rounding_variance(x.double().numpy(), low[0], high[0], bits)
        draws = np.stack([(round_trip(x, bits, key=k).double() - x.double()).numpy() for k in range(1000)])
        squares = (draws**2).mean(1)
        z = (squares.mean() - exact.mean()) / (squares.std(ddof=1) / math.sqrt(len(squares)))
        assert abs(z) < stats.norm.isf(5e-7)  # false alarm: 1e-6
        # number by number: the squared error is (Δf)² or (Δ(1 − f))²; Bernstein, union over 256, false alarm 1e-6
        delta2 = theory.step(low[0], high[0], bits) ** 2
        squared_spread = exact * (delta2 - 4 * exact)  # Δ⁴ f(1 − f)(1 − 2f)²
        log = math.log(2 * 256 / 1e-6)
        allowed = np.sqrt(2 * squared_spread * log / len(draws)) + delta2 * (log / (3 * len(draws)) + 2.0**-14)
        assert (np.abs((draws**2).mean(0) - exact) < allowed).all()

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_law_for_uniform_fractions(self, bits):
        """R²/6B² where fractions are uniform by construction: numbers uniform on [low, high], ends present."""
        group, groups = 256, 400
        x = torch.rand(groups, group, generator=torch.Generator().manual_seed(5))
        x[:, 0], x[:, 1] = 0.0, 1.0
        error = (round_trip(x.view(-1), bits).view(groups, group) - x)[:, 2:].double().numpy()
        squares = error**2
        z = (squares.mean() - theory.variance_law(1.0, bits)) / (squares.std() / math.sqrt(squares.size))
        assert abs(z) < stats.norm.isf(5e-7)  # false alarm: 1e-6 (numbers are independent)

    def test_one_bit_is_bernoulli(self):
        """At 1 bit the variance is (x − m)(M − x), above the law for bell-shaped numbers."""
        x = normal(1 << 16).double().numpy()
        low, high = theory.group_ranges(x, 256)
        exact = ((x - low) * (high - x)).mean()
        assert exact > 1.2 * theory.variance_law((high - low).mean(), 1)
        squares = (round_trip(torch.from_numpy(x), 1).numpy() - x) ** 2
        z = (squares.mean() - exact) / (squares.std() / math.sqrt(squares.size))
        assert abs(z) < stats.norm.isf(5e-7)  # false alarm: 1e-6

    @pytest.mark.parametrize("dtype", affine.DTYPES)
    @pytest.mark.parametrize("bits", affine.BITS)
    def test_no_bias(self, bits, dtype):
        """Mean over keys, within z of its spread plus the bound on what 16 bits and rounding cut off."""
        x, keys = normal(512, dtype), 600
        mean = torch.stack([round_trip(x, bits, key=k, dtype=torch.float64) for k in range(keys)]).mean(0)
        low, high = theory.group_ranges(x.double().numpy(), 256)
        error = mean.numpy() - x.double().numpy()
        for part in (slice(0, 256), slice(256, 512)):
            m, top = low[part][0], high[part][0]
            variance = theory.rounding_variance(x.double().numpy()[part], m, top, bits)
            bound = theory.bias_bound(m, top, bits)
            # sum of 256 independent errors, z below its normal quantile; false alarm 1e-6 / part and case
            allowed = stats.norm.isf(5e-7) * math.sqrt(variance.sum() / keys) + 256 * bound
            assert abs(error[part].sum()) < allowed
            # number by number, a union bound over 256 with Bernstein's tail
            delta = theory.step(m, top, bits)
            log = math.log(2 * 256 / 1e-6)
            each = np.sqrt(2 * variance * log / keys) + 2 * delta * log / (3 * keys) + bound
            assert (np.abs(error[part]) < each).all()

    @pytest.mark.parametrize("bits", affine.BITS)
    def test_exact_mean_of_the_integer_rule(self, bits):
        for numerator in (1, 2, 333, 999):
            x = Fraction(numerator, 1000)
            mean = theory.expected_code(x, Fraction(0), Fraction(1), bits)
            assert 0 <= x * (2**bits - 1) - mean < Fraction(1, 2**16)


class TestNumbers:
    @pytest.mark.parametrize("dtype", affine.DTYPES)
    @pytest.mark.parametrize("bits", affine.BITS)
    @pytest.mark.parametrize("group_size", affine.GROUP_SIZES)
    def test_error_ends_and_containment(self, dtype, bits, group_size):
        x = normal(5 * 2048 + 77, dtype) + 3
        codes = affine.quantise(x, bits, key=KEY, group_size=group_size)
        back = affine.dequantise(codes).double().numpy()
        exact = x.double().numpy()
        low, high = theory.group_ranges(exact, group_size)
        np.testing.assert_array_equal(codes.low.double().numpy(), low[::group_size])
        np.testing.assert_array_equal(codes.high.double().numpy(), high[::group_size])
        assert ((low <= back) & (back <= high)).all()
        assert (back[exact == low] == low[exact == low]).all()
        assert (back[exact == high] == high[exact == high]).all()
        largest = np.maximum(np.abs(low), np.abs(high))
        slack = (ULP[dtype] + 16 * KINDS[dtype]) * largest
        assert (np.abs(back - exact) <= (high - low) / (2**bits - 1) * (1 + 2.0**-14) + slack).all()

    @pytest.mark.parametrize("bits", affine.BITS)
    @pytest.mark.parametrize("dtype", affine.DTYPES)
    def test_representable_numbers_stay(self, bits, dtype):
        """Integers 0 … B times a power of two are their own codes, whatever the key."""
        q = torch.arange(256) % (1 << bits)
        x = (q.double() * 0.25).to(dtype)
        for key in range(5):
            codes = affine.quantise(x, bits, key=key)
            assert torch.equal(raw_codes(codes).int(), q.int())
            assert torch.equal(affine.dequantise(codes), x)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_no_code_beyond_the_last(self, dtype):
        """Arithmetic in the tensor's own 16 bits gives the code B + 1 now and then, which wraps to 0."""
        x = normal(1 << 19, dtype)
        for bits in (4, 8):
            codes = affine.quantise(x, bits, key=KEY)
            at_top = x.view(-1, 256) == codes.high[:, None]
            assert (raw_codes(codes).view(-1, 256)[at_top] == (1 << bits) - 1).all()

    @pytest.mark.parametrize("bits", affine.BITS)
    def test_constant_groups_are_exact(self, bits):
        for dtype in affine.DTYPES:
            for value in (0.0, -0.0, 1 / 3, -6e4, 1e-7):
                x = torch.full((1000,), value, dtype=dtype)
                assert torch.equal(round_trip(x, bits), x)

    def test_a_seed_repeats_and_another_does_not(self):
        x = normal(10_000)
        a, b, c = (affine.quantise(x, 2, key=key) for key in (1, 1, 2))
        assert torch.equal(a.buffer, b.buffer)
        assert not torch.equal(a.payload, c.payload)

    def test_parts_of_a_tensor_are_coded_alike(self):
        """Chunks and blocks leave no seam: a prefix has the codes of the whole."""
        x = normal(affine.STRIDE + 3 * counter_rng.BLOCK + 999)
        whole = raw_codes(affine.quantise(x, 4, key=KEY))
        for n in (1, 255, 257, counter_rng.BLOCK, counter_rng.BLOCK + 300, affine.STRIDE, affine.STRIDE + 5 * 256):
            n_whole = n - n % 256
            part = raw_codes(affine.quantise(x[:n].clone(), 4, key=KEY))
            assert torch.equal(part[:n_whole], whole[:n_whole])

    def test_codes_follow_the_formula(self):
        """Second method: the formula in exact rational arithmetic, up to the last of 16 bits."""
        x, bits = normal(256), 8
        codes = raw_codes(affine.quantise(x, bits, key=KEY)).tolist()
        low, high = Fraction(x.min().item()), Fraction(x.max().item())
        for i, value in enumerate(x.tolist()):
            fixed = (Fraction(value) - low) * 255 / (high - low) * 2**16
            r = theory.random16(i, KEY)
            near = {min(255, (math.floor(fixed) + off + r) >> 16) for off in (-8, 8)}
            assert codes[i] in near
            if len(near) == 2:  # within 8 of 65536 steps of a jump: about once in 4096 numbers
                assert max(near) - min(near) == 1

    def test_another_type_on_the_way_back(self):
        x = normal(3000, torch.bfloat16)
        codes = affine.quantise(x, 4, key=KEY)
        full = affine.dequantise(codes, dtype=torch.float32)
        assert full.dtype == torch.float32
        for dtype in affine.DTYPES:
            assert torch.equal(affine.dequantise(codes, dtype=dtype), full.to(dtype))

    def test_inference_mode_and_gradients(self):
        x = normal(2000).requires_grad_()
        with torch.inference_mode():
            inside = affine.quantise(x, 4, key=KEY)
        outside = affine.quantise(x, 4, key=KEY)
        assert torch.equal(inside.buffer, outside.buffer)
        assert not affine.dequantise(outside).requires_grad


class TestNotNumbers:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("dtype", affine.DTYPES)
    @pytest.mark.parametrize("bits", affine.BITS)
    def test_spoils_its_group_only(self, bad, dtype, bits):
        x = normal(1000, dtype)
        clean = round_trip(x, bits)
        x[300] = bad
        back = round_trip(x, bits)
        assert back[256:512].isnan().all()
        assert torch.equal(back[:256], clean[:256])
        assert torch.equal(back[512:], clean[512:])

    @pytest.mark.parametrize("dtype", affine.DTYPES)
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_minus_infinity_stays(self, dtype, bits):
        x = normal(1000, dtype)
        gone = torch.rand(1000, generator=torch.Generator().manual_seed(1)) < 0.4
        x[gone] = -math.inf
        codes = affine.quantise(x, bits, key=KEY)
        back = affine.dequantise(codes)
        assert torch.equal(back == -math.inf, gone)
        assert (codes.low > codes.high).all()
        for start in range(0, 1000, 256):
            part, there = x[start : start + 256], ~gone[start : start + 256]
            exact, got = part[there].double(), back[start : start + 256][there].double()
            delta = (exact.max() - exact.min()) / ((1 << bits) - 2)
            assert ((got - exact).abs() <= delta * (1 + 2.0**-14) + 4 * ULP[dtype] * exact.abs().max()).all()
            assert got.max() == exact.max()
            assert got.min() == exact.min()

    @pytest.mark.parametrize("bits", affine.BITS)
    def test_masked_constants_are_exact(self, bits):
        for value in (0.0, 5.0, -3e38, -math.inf):
            x = torch.full((512,), -math.inf)
            x[::3] = value
            assert torch.equal(round_trip(x, bits), x)

    def test_one_bit_has_no_room_for_minus_infinity(self):
        x = normal(256)
        x[7] = -math.inf
        assert round_trip(x, 1).isnan().all()

    def test_overflowing_range(self):
        x = torch.tensor([3e38, -3e38]).repeat(64)
        assert round_trip(x, 4, group_size=64).isnan().all()
        assert round_trip(x.double(), 4, group_size=64).isfinite().all()

    @pytest.mark.parametrize("bits", affine.BITS)
    @pytest.mark.parametrize("dtype", affine.DTYPES)
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_largest_numbers(self, bits, dtype, sign):
        """A mask of the most negative number among ordinary ones: both ends are exact, the rest is one of two codes."""
        x = normal(256, dtype).clamp_(-2.5, 2.5)
        x[::9] = sign * torch.finfo(dtype).max
        back = round_trip(x, bits)
        assert torch.equal(back[::9], x[::9])
        other = x.max() if sign < 0 else x.min()
        assert back[x == other].eq(other).all()
        assert ((x.min() <= back) & (back <= x.max())).all()

    @pytest.mark.parametrize("bits", affine.BITS)
    @pytest.mark.parametrize("dtype", affine.DTYPES)
    def test_smallest_numbers(self, bits, dtype):
        """Multiples of the smallest subnormal: the codes' own grid, where 1/Δ overflows."""
        top = (1 << bits) - 1
        x = (torch.arange(256) % (top + 1)).double().mul(SUBNORMAL[dtype]).to(dtype)
        assert torch.equal(round_trip(x, bits), x)


@st.composite
def tensors(draw):
    """Sizes around groups and blocks, all types, magnitudes from subnormal to the largest, and non-numbers."""
    dtype = draw(st.sampled_from(affine.DTYPES))
    n = draw(st.one_of(st.integers(0, 600), st.sampled_from([2047, 2048, 2049, 65536, 65537])))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    exponent = draw(st.floats(math.log2(info.tiny) - 8, math.log2(info.max) - 3))
    x = torch.randn(n, generator=generator, dtype=torch.float64) * 2.0 ** max(exponent, -1070)
    x = x.clamp(info.min, info.max).to(dtype)
    for value in draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, info.max, info.min]), max_size=3)):
        x[torch.rand(n, generator=generator) < draw(st.sampled_from([0.001, 0.05, 0.9]))] = value
    return x


@pytest.mark.property
@given(
    x=tensors(),
    bits=st.sampled_from(affine.BITS),
    group_size=st.sampled_from(affine.GROUP_SIZES),
    key=st.integers(0, 2**64 - 1),
)
def test_any_tensor(x, bits, group_size, key):
    codes = affine.quantise(x, bits, key=key, group_size=group_size)
    assert codes.nbytes == ledger.affine_bytes(x.numel(), bits, group_size, x.dtype)
    back = affine.dequantise(codes)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    for start in range(0, x.numel(), group_size):
        part, got = x[start : start + group_size].double(), back[start : start + group_size].double()
        gone = part == -math.inf
        there = part[~gone]
        span = there.max() - there.min() if len(there) else torch.zeros(())
        if x.dtype != torch.float64:
            span = span.float().double()  # a range that fp32 rounds to its largest number is in range
        crowded = bits == 1 and bool(gone.any()) and span > 0
        if there.isnan().any() or (there == math.inf).any() or crowded or not span.isfinite():
            assert got.isnan().all()
            continue
        assert torch.equal(got == -math.inf, gone)
        if len(there) == 0:
            continue
        delta = span / max(1, (1 << bits) - 1 - bool(gone.any()))
        largest = there.abs().max()
        slack = (ULP[x.dtype] + 16 * KINDS[x.dtype]) * largest + SUBNORMAL[x.dtype]
        assert ((got[~gone] - there).abs() <= delta * (1 + 2.0**-14) + slack).all()
        assert got[~gone].min() >= there.min()
        assert got[~gone].max() <= there.max()


@pytest.fixture
def unchecked(monkeypatch):
    """Our own messages, not those of the shape checker that the tests run under."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
class TestArguments:
    def test_buffer_of_the_caller(self):
        x = normal(1000)
        buffer = torch.full((ledger.affine_bytes(1000, 4, 256, x.dtype),), 7, dtype=torch.uint8)
        codes = affine.quantise(x, 4, key=KEY, out=buffer)
        assert codes.buffer is buffer
        assert torch.equal(buffer, affine.quantise(x, 4, key=KEY).buffer)
        out = torch.empty(1000)
        assert affine.dequantise(codes, out=out) is out
        assert torch.equal(out, affine.dequantise(codes))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(4, dtype=torch.int32)}, TypeError, "fp16"),
            ({"x": torch.zeros(2, 2)}, ValueError, "one contiguous dimension"),
            ({"x": torch.zeros(8)[::2]}, ValueError, "one contiguous dimension"),
            ({"bits": 3}, ValueError, "bits=3"),
            ({"group_size": 100}, ValueError, "group_size=100"),
            ({"key": -1}, ValueError, "stream_key"),
            ({"out": torch.zeros(3, dtype=torch.uint8)}, ValueError, "affine_bytes"),
            ({"out": torch.zeros(136)}, ValueError, "uint8"),
            ({"out": torch.zeros(140, dtype=torch.uint8)[4:]}, ValueError, "multiple of 16"),
        ],
    )
    def test_bad_arguments_of_quantise(self, change, error, message):
        arguments = {"x": torch.zeros(4), "bits": 4, "key": 0, "group_size": 256, "out": None} | change
        with pytest.raises(error, match=message):
            affine.quantise(arguments.pop("x"), arguments.pop("bits"), **arguments)

    def test_bad_arguments_of_dequantise(self):
        codes = affine.quantise(torch.zeros(4), 4, key=0)
        with pytest.raises(TypeError, match=r"dtype=torch\.int8"):
            affine.dequantise(codes, dtype=torch.int8)
        with pytest.raises(ValueError, match=r"need torch\.float32"):
            affine.dequantise(codes, out=torch.zeros(5))
        with pytest.raises(ValueError, match="contiguous"):
            affine.dequantise(codes, out=torch.zeros(8)[::2])

    def test_empty(self):
        codes = affine.quantise(torch.zeros(0), 2, key=KEY)
        assert (codes.nbytes, codes.groups, codes.low.numel()) == (0, 0, 0)
        assert affine.dequantise(codes).shape == (0,)


class Storages(TorchDispatchMode):
    """Remembers the size of the storage of everything that an operator returns."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[storage.data_ptr()] = storage.nbytes()
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_temporaries_do_not_grow_with_the_tensor(dtype):
    x = normal(affine.STRIDE * 4, dtype)
    with Storages() as seen:
        codes = affine.quantise(x, 4, key=KEY)
        back = affine.dequantise(codes)
    for tensor in (x, codes.buffer, back):
        assert seen.sizes.pop(tensor.untyped_storage().data_ptr()) == tensor.untyped_storage().nbytes()
    assert max(seen.sizes.values()) <= 4 * affine.STRIDE  # one stride in fp32, kept by the thread
