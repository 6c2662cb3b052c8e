from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.stability.sweep import Sweep

RATES = (0.001, 0.01, 0.1)


def sweep(finals: list[list[float]], stable: bool = True, rates: tuple[float, ...] = RATES) -> Sweep:
    """``finals``: a list of final NLLs by rate for each seed."""
    places = {(rate, seed): value for seed, own in enumerate(finals) for rate, value in zip(rates, own, strict=True)}
    return Sweep(rates, tuple(range(len(finals))), places, dict.fromkeys(places, stable))


def test_sensitivity_is_the_mean_over_the_rates_minus_the_lowest() -> None:
    assert sweep([[5.0, 4.0, 6.0], [4.5, 4.0, 4.0]]).sensitivity() == pytest.approx({0: 1.0, 1: 0.5 / 3})
    assert sweep([[5.0]], rates=(0.1,)).sensitivity() == {}


def test_the_best_rate_of_a_seed_is_chosen_without_it() -> None:
    one = sweep([[5.0, 4.0, 6.0], [3.0, 4.0, 6.0]])
    assert (one.best(0), one.best(1), one.best()) == (0.001, 0.01, 0.001)


def test_a_single_seed_chooses_for_itself_and_none_has_no_best_rate() -> None:
    assert sweep([[5.0, 4.0, 6.0]]).best(0) == 0.01
    assert sweep([]).best() is None
    assert (sweep([]).stable_range(), sweep([]).largest_stable(), sweep([]).best_between()) == (None, None, None)


def test_a_parabola_in_the_logarithm_of_the_rate_has_its_vertex() -> None:
    lowest = math.log(0.02)
    finals = [[3 + 0.1 * (math.log(rate) - lowest) ** 2 for rate in RATES] for _ in range(2)]
    assert sweep(finals).vertices() == pytest.approx({0: 0.02, 1: 0.02})
    assert sweep(finals).best_between().mean == pytest.approx(0.02)  # type: ignore[union-attr]


def test_a_best_rate_at_an_end_has_no_vertex_and_is_told() -> None:
    one = sweep([[5.0, 4.0, 3.0], [4.0, 3.0, 5.0]])
    assert list(one.vertices()) == [1]
    assert one.best_between() is None
    assert not sweep([[3.0, 4.0, 5.0]]).inside
    assert one.inside == (one.best() == 0.01)


def test_the_stable_range_has_no_gap() -> None:
    rates = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert sweep([[4.0, 4.2, 4.04, 4.0, 4.03]], rates=rates).stable_range() == (1.0, 1.0)
    assert sweep([[4.3, 4.04, 4.0, 4.03, 4.2]], rates=rates).stable_range() == (2.0, 4.0)


def test_the_largest_stable_rate_is_before_the_first_that_fails() -> None:
    rates = (1.0, 2.0, 3.0, 4.0)
    assert sweep([[4.5, 4.0, 4.1, 4.15]], rates=rates).largest_stable() == 4.0
    assert sweep([[4.5, 4.0, 4.3, 4.1]], rates=rates).largest_stable() == 2.0
    assert sweep([[4.5, 4.0, 4.1, 4.1]], stable=False, rates=rates).largest_stable() is None
    noisy = [
        [4.5, 4.0, 4.3, 4.1],
        [4.5, 4.3, 4.0, 4.1],
    ]  # each seed has a lucky rate, which is no instability of the others
    assert sweep(noisy, rates=rates).largest_stable() == 4.0


def test_a_mean_over_one_seed_left_out_is_that_of_the_others() -> None:
    finals = np.random.default_rng(0).normal(size=(4, 3)).tolist()
    assert sweep(finals).means(without=2)[0.01] == pytest.approx(np.mean([finals[s][1] for s in (0, 1, 3)]))


def lacking(finals: list[list[float | None]]) -> Sweep:
    """As :func:`sweep`; None: no run."""
    whole = sweep([[value or 0.0 for value in own] for own in finals], rates=RATES[: len(finals[0])])
    kept = {(r, s): whole.final[r, s] for r, s in whole.final if finals[s][whole.rates.index(r)] is not None}
    return Sweep(whole.rates, whole.seeds, kept, dict.fromkeys(kept, True))


def test_a_seed_that_lacks_a_rate_costs_its_sensitivity_alone() -> None:
    one = lacking([[5.0, 4.0, 6.0], [5.0, 4.0, None], [5.0, 4.1, 4.2]])
    assert one.complete == (0, 2)
    assert set(one.sensitivity()) == set(one.vertices()) == {0, 2}
    assert one.best() == one.best(0) == 0.01
    assert one.largest_stable() == 0.01  # the mean is higher beyond
    assert lacking([[5.0, 4.0, None], [None, 4.0, 4.1], [5.0, None, 4.1]]).largest_stable() == 0.1
    assert one.at((0.001, 0.01)).sensitivity() == pytest.approx({0: 0.5, 1: 0.5, 2: 0.45})


def test_without_any_complete_seed_there_is_a_best_rate() -> None:
    one = lacking([[5.0, 4.0, None], [None, 4.0, 4.5], [5.0, None, 4.4]])
    assert (one.complete, one.sensitivity(), one.best_between()) == ((), {}, None)
    assert (one.best(), one.stable_range()) == (0.01, (0.01, 0.01))


def test_a_rate_does_not_gain_by_an_easy_seed_that_the_others_lack() -> None:
    """Seed 2 is a nat below the others, and has no run at the lower rate, which is a tenth of a nat better for both others."""
    one = lacking([[4.0, 4.1], [4.0, 4.1], [None, 3.0]])
    assert one.means() == pytest.approx({0.001: (4.0 + 4.0 + 2.9) / 3, 0.01: (4.1 + 4.1 + 3.0) / 3})
    assert one.best() == 0.001
    assert one.means(without=0) == pytest.approx({0.001: (4.0 + 2.9) / 2, 0.01: (4.1 + 3.0) / 2})
