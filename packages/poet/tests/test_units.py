"""Bytes and deadlines as people write them."""

import math
from fractions import Fraction

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet.units import parse_bytes, parse_deadline, show_bytes

FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


@pytest.mark.property
@given(st.integers(0, 10**6), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", " "]))
def test_whole_numbers_of_units(count, unit, space):
    for text in (f"{count}{space}{unit}", f"{count}{space}{unit.lower()}", f" {count}{space}{unit.upper()} "):
        assert parse_bytes(text) == count * FACTORS[unit]


@pytest.mark.property
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(sorted(unit for unit in FACTORS if "T" not in unit)))
def test_fractions_of_units_are_right_to_a_byte(digits, places, unit):
    exact = Fraction(digits, 10**places) * FACTORS[unit]
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}{unit}"
    assert abs(parse_bytes(text) - exact) <= 1


@pytest.mark.property
@given(st.integers(0, 2**60))
def test_integers_are_bytes(count):
    assert parse_bytes(count) == count


@pytest.mark.property
@given(st.integers(0, 100), st.integers(0, 2**40))
def test_whole_percentages(percent, whole):
    assert parse_bytes(f"{percent}%", whole=whole) == percent * whole // 100


def test_percentages_of_more_than_all():
    assert parse_bytes("150%", whole=10) == 15
    assert parse_bytes(".5 %", whole=1000) == 5


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1", "1e6", "1 kilobyte", "1.2.3", "0x10", "5 5", "nan", "1,5MB", None, 1.5, True]
)
def test_refuses_what_are_no_bytes(text, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(ValueError, match=r"expected bytes such as 262144, '256KiB', '1.5MB', got") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


def test_refuses_negative_bytes():
    with pytest.raises(ValueError, match="bytes must not be negative, got -1"):
        parse_bytes(-1)


def test_percentages_need_a_whole():
    with pytest.raises(ValueError, match=r"'1\.5MB', got '40%'"):
        parse_bytes("40%")
    with pytest.raises(ValueError, match="or '40%', got 'x'"):
        parse_bytes("x", whole=1)


@pytest.mark.property
@given(st.integers(1, 10**6), st.floats(1e-6, 1e6))
def test_deadlines(thousandths, baseline):
    number = f"{thousandths / 1000:.3f}"
    factor = float(number)
    assert parse_deadline(factor, baseline) == factor * baseline
    assert parse_deadline(f"{number}x", baseline) == factor * baseline
    assert parse_deadline(f" {number} s ", baseline) == factor
    assert parse_deadline(f"{number}ms", baseline) == factor * 1e-3


def test_no_deadline_and_steps_that_take_no_time():
    assert parse_deadline(None, 1.0) == math.inf
    assert parse_deadline(1.5, 0.0) == math.inf
    assert parse_deadline("2s", 0.0) == 2.0


@pytest.mark.parametrize("deadline", [0.0, -1.0, math.nan, math.inf, "", "fast", "1h", "-1s", "0s", "1", True])
def test_refuses_what_is_no_deadline(deadline, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(ValueError, match=r"expected a deadline such as 1\.5, '1.5x', '90s', '200ms' or None") as caught:
        parse_deadline(deadline, 1.0)
    assert repr(deadline) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**30 // 2, "2.5 GiB"),
        (2**40, "1024.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes_for_people(size, text):
    assert show_bytes(float(size)) == text


@pytest.mark.property
@given(st.integers(0, 2**50))
def test_what_is_shown_can_be_read(size):
    assert abs(parse_bytes(show_bytes(float(size))) - size) <= max(0.05 * size, 1)
