"""Numbers as they are printed."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.show.text import estimate

VALUES = st.floats(-1e9, 1e9)


@given(mean=VALUES, low=VALUES, half=st.floats(1e-12, 1e8))
def test_an_estimate_is_rounded_to_two_digits_of_its_half_width(mean: float, low: float, half: float) -> None:
    high = low + 2 * half
    half = (high - low) / 2  # as far as float64 has it
    if not half:
        return
    unit = 10.0 ** max(
        math.floor(math.log10(half)) - 1, math.floor(math.log10(max(abs(mean), abs(low), abs(high)))) - 5
    )
    shown = [
        float(part.strip(" [],").replace(",", "")) for part in estimate(mean, low, high).replace(", ", " ").split(" ")
    ]
    for value, told in zip((mean, low, high), shown, strict=True):
        assert abs(told - value) <= unit / 2 * (1 + 1e-6) + 1e-9 * abs(value)
        assert abs(told) < unit or Decimal(repr(told)).adjusted() >= math.floor(math.log10(unit)) - 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((0.123456, 0.1, 0.146912), "0.123 [0.100, 0.147]"),
        ((5.43219, 4.1, 6.9), "5.4 [4.1, 6.9]"),
        ((12345.6, 11000.0, 13691.2), "12,300 [11,000, 13,700]"),
        ((-0.0001, -0.2, 0.2), "0.00 [-0.20, 0.20]"),
        ((1.2345e-8, 1.1e-8, 1.369e-8), "1.23e-08 [1.10e-08, 1.37e-08]"),
        ((5.43219, None, None), "5.432"),
        ((5.0, 5.0, 5.0), "5.000"),
        ((3.99999899, 3.99999802, 3.99999995), "4.00000 [4.00000, 4.00000]"),
        ((math.nan, None, None), "-"),
    ],
)
def test_estimates_as_they_are_printed(given: tuple[float, float, float], told: str) -> None:
    assert estimate(*given) == told


def test_a_difference_has_its_sign() -> None:
    assert estimate(0.123456, -0.1, 0.35, signed=True) == "+0.12 [-0.10, +0.35]"
    assert estimate(0.123456, None, None, signed=True) == "+0.1235"
    assert estimate(0.0, None, None, signed=True) == "0"
    assert estimate(math.inf, 1.0, 2.0) == "∞"
