"""The autoregression, against series whose next value is known and against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest

from nubes.functions.policies.forecast import autoregression, best_order, forecast


@pytest.mark.parametrize(
    ("series", "following"),
    [
        ([7.0], 7.0),
        ([6.0, 12.0], 9.0),
        ([5.0] * 8, 5.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 7.0),
        ([4.0, 8.0] * 6, 4.0),
        ([10.0, 13.0, 16.0, 19.0], 22.0),
    ],
)
def test_continues_what_is_regular(series: list[float], following: float) -> None:
    assert forecast(series) == pytest.approx(following)


def series(seed: int, n: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = np.zeros(n)
    for t in range(2, n):
        values[t] = 3.0 + 0.1 * values[t - 1] - 0.4 * values[t - 2] + draw.normal()
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [16, 40, 64])
def test_agrees_with_statsmodels(seed: int, n: int) -> None:
    ar_model = pytest.importorskip("statsmodels.tsa.ar_model")
    values = series(seed, n)
    for order in (0, 1, 2, 3):
        ours, squares = autoregression(values, order, 3)
        theirs = ar_model.AutoReg(values, order, hold_back=3).fit()
        np.testing.assert_allclose(ours, theirs.params, rtol=1e-6, atol=1e-9)
        assert squares == pytest.approx(float((theirs.resid**2).sum()))
    chosen = ar_model.ar_select_order(values, 3, ic="bic").ar_lags or []
    assert best_order(values, 3) == len(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_forecasts_what_statsmodels_forecasts(seed: int) -> None:
    ar_model = pytest.importorskip("statsmodels.tsa.ar_model")
    values = series(seed, 50)
    assert np.diff(values).std() > values.std()  # nothing to difference
    order = best_order(values, 3)
    fitted = ar_model.AutoReg(values, order).fit()
    assert forecast(list(values)) == pytest.approx(float(fitted.forecast(1)[0]))


def test_differences_a_series_that_wanders() -> None:
    values = np.cumsum(np.random.default_rng(1).normal(2.0, 0.5, 60))
    assert forecast(list(values)) == pytest.approx(values[-1] + 2.0, abs=1.0)
