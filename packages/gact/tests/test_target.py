"""What a user may ask for, in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gact.target import Target, parse_size, parse_target


@pytest.mark.parametrize(
    ("bits", "target"),
    [
        (8, Target("fixed", 8.0)),
        (1, Target("fixed", 1.0)),
        ("auto:4", Target("average", 4.0)),
        ("auto:2.5", Target("average", 2.5)),
        ("auto:1", Target("average", 1.0)),
        ("bytes:500MiB", Target("bytes", 500.0 * 2**20)),
        ("bytes:1000", Target("bytes", 1000.0)),
        ("fit:6GB", Target("fit", 6e9)),
        ("fit: 1.5 gib", Target("fit", 1.5 * 2**30)),
        (Target("average", 3.0), Target("average", 3.0)),
    ],
)
def test_targets(bits, target):
    assert parse_target(bits) == target


NONE = [0, 3, 16, True, "4", "auto", "auto:", "auto:0.5", "auto:9", "auto:nan", "fit", "fix:4"]


@pytest.mark.parametrize("bits", NONE)
def test_what_is_no_target(bits):
    with pytest.raises(ValueError, match="give 1, 2, 4 or 8 for that many everywhere"):
        parse_target(bits)


@pytest.mark.parametrize("text", ["", "MiB", "-5", "5 XB", "1e9", "5 MiB/s", "0x10", "५"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is no size: give bytes, or a number with a unit"):
        parse_size(text)


UNITS = [("", 1), ("B", 1), ("kB", 10**3), ("KiB", 2**10), ("GB", 10**9), ("TiB", 2**40)]


@pytest.mark.property
@given(st.integers(0, 2**40), st.sampled_from(UNITS))
def test_sizes_are_whole_bytes(number, unit):
    name, factor = unit
    assert parse_size(f"{number} {name}") == pytest.approx(number * factor, rel=1e-12)
    assert parse_size(f"{number}{name.lower()}") == parse_size(f" {number} {name.upper()} ")


FIRST = {
    8: 8,
    1: 1,
    "auto:8": 8,
    "auto:7.9": 4,
    "auto:4": 4,
    "auto:2.5": 2,
    "auto:1.5": 1,
    "bytes:1GB": 2,
    "fit:1GB": 2,
}


@pytest.mark.parametrize(("bits", "first"), FIRST.items())
def test_bits_while_nothing_is_known(bits, first):
    target = parse_target(bits)
    assert target.first_bits == first
    assert target.adaptive == isinstance(bits, str)
    if target.kind == "average":
        assert math.isfinite(target.value)
        assert target.first_bits <= target.value
