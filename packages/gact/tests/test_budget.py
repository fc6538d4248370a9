"""From a target to bits, in bytes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gact.allocation import RAW, AllocationError
from gact.budget import Size, average_bytes, choose_bits, other_bytes
from gact.capture import Settled
from gact.collector import Sensitivity
from gact.ledger import affine_bytes
from gact.rules import Treatment
from gact.target import Target, parse_target

G = 256


def settled(key, form, *, storage=0, nbytes=0, storage_bytes=0, outside=False, reason="", item=None):
    return Settled(
        key, item or key, "", "Op", "x", Treatment("exact", "unknown"), reason, (1,), torch.float32, storage,
        storage_bytes, outside, form, 1.0, nbytes, False,
    )  # fmt: skip


sizes_of_tensors = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        Size,
        st.integers(1, 5000),
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 50),
    ),
    min_size=1,
)


@pytest.mark.property
@given(sizes_of_tensors, st.sampled_from([1, 2, 4, 8]))
def test_an_average_takes_what_a_fixed_width_takes(sizes, bits):
    assert average_bytes(sizes.values(), float(bits), G) == sum(s.nbytes(bits, G) for s in sizes.values())
    assert sum(affine_bytes(s.numel, bits, G, s.dtype) + s.extra for s in sizes.values()) == sum(
        s.nbytes(bits, G) for s in sizes.values()
    )


@pytest.mark.property
@settings(max_examples=40)
@given(sizes_of_tensors, st.data())
def test_the_choice_is_the_best_of_all_that_fit(sizes, data):
    sensitivities = {k: Sensitivity(data.draw(st.floats(0, 10))) for k in sizes}
    least = sum(s.nbytes(s.least_bits, G) for s in sizes.values())
    budget = least + data.draw(st.integers(0, 20000))
    others = data.draw(st.integers(0, 1000))
    found = choose_bits(
        Target("bytes", float(budget + others)), sizes, sensitivities, others=others, overhead=None, group_size=G
    )
    assert found.nbytes <= budget
    choices = [[b for b in (1, 2, 4, 8) if b >= s.least_bits] + [RAW] for s in sizes.values()]
    best = min(
        sum(sensitivities[k].variance(b) for k, b in zip(sizes, bits, strict=True))
        for bits in itertools.product(*choices)
        if sum(s.nbytes(b, G) for s, b in zip(sizes.values(), bits, strict=True)) <= budget
    )
    assert found.cost == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert all(found.bits[k] >= sizes[k].least_bits for k in sizes)


@pytest.mark.parametrize("nothing", [None, Sensitivity(float("nan")), Sensitivity(float("inf"))])
@pytest.mark.parametrize(("target", "first"), [("auto:4", 4), ("auto:2", 2), ("bytes:4kB", 2)])
def test_tensors_of_which_nothing_is_known_keep_their_first_bits(nothing, target, first):
    sizes = {"known": Size(4096, torch.float32), "new": Size(4096, torch.float32), "steep": Size(64, torch.float32, 4)}
    sensitivities = {"known": Sensitivity(1.0)} | ({} if nothing is None else {"new": nothing, "steep": nothing})
    found = choose_bits(parse_target(target), sizes, sensitivities, others=0, overhead=None, group_size=G)
    assert found.bits["new"] == first
    assert found.bits["steep"] == max(first, 4)
    assert found.status == "optimal"


def test_other_bytes_count_each_storage_and_each_form_once():
    rows = [
        settled("a", "exact", storage=1, storage_bytes=100),
        settled("b", "exact", storage=1, storage_bytes=100),
        settled("c", "exact", storage=2, storage_bytes=50, outside=True),
        settled("d", "exact", storage=3, storage_bytes=70, reason="bits"),
        settled("e", "affine", storage=4, nbytes=30),
        settled("f", "sign", storage=5, nbytes=8),
        settled("g", "mask", storage=6, nbytes=4, item="f"),
        settled("h", "sign", storage=5, nbytes=8, item="f"),
        settled("i", "shape only", storage=7, nbytes=0),
    ]
    assert other_bytes(rows) == 100 + 8 + 4


def test_what_cannot_be_met_says_what_can():
    sizes = {"a": Size(4096, torch.float32), "b": Size(4096, torch.float32, least_bits=4)}
    known = dict.fromkeys(sizes, Sensitivity(1.0))
    smallest = sizes["a"].nbytes(1, G) + sizes["b"].nbytes(4, G)
    with pytest.raises(AllocationError, match=rf"the smallest possible is {smallest + 500:,}$"):
        choose_bits(Target("bytes", 1000.0), sizes, known, others=500, overhead=None, group_size=G)
    with pytest.raises(AllocationError, match=rf"temporaries; the smallest possible is {smallest + 500 + 10000:,}$"):
        choose_bits(Target("fit", 1000.0), sizes, known, others=500, overhead=10000, group_size=G)
    choose_bits(Target("bytes", smallest + 500.0), sizes, known, others=500, overhead=None, group_size=G)
    choose_bits(Target("fit", smallest + 10500.0), sizes, known, others=500, overhead=10000, group_size=G)


def test_a_peak_needs_a_measurement_first():
    with pytest.raises(ValueError, match=r"call calibrate\(closure\) once before training"):
        choose_bits(Target("fit", 1e9), {"a": Size(10, torch.float32)}, {}, others=0, overhead=None, group_size=G)


def test_an_average_below_what_operations_allow_is_no_budget():
    sizes = {"a": Size(4096, torch.float32, least_bits=4)}
    with pytest.raises(AllocationError):
        choose_bits(Target("average", 1.0), sizes, {}, others=0, overhead=None, group_size=G)
