"""The next value of a short series: an autoregression whose order and differencing the series chooses."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any


def forecast(series: Sequence[float], max_order: int = 3) -> float:
    """One step ahead by ARIMA(p, d, 0) with a constant, p <= `max_order`, d <= 1. Fewer than four values: their mean.

    d is 1 if differences spread less than values do; p has the least Bayesian information criterion; the
    coefficients are least squares.
    """
    import numpy as np  # only the rare function whose gaps leave its histogram needs it

    values = np.asarray(series, dtype=float)
    if len(values) < 4:
        return float(values.mean())
    steps = np.diff(values)
    if steps.std() < values.std():
        return float(values[-1] + _ahead(steps, max_order))
    return _ahead(values, max_order)


def autoregression(values: Any, order: int, skip: int) -> tuple[Any, float]:
    """Least squares of `values[t]` on a constant and `order` lags, for t >= `skip`: coefficients, residual squares."""
    import numpy as np

    rows = len(values) - skip
    lags = np.column_stack([np.ones(rows), *(values[skip - lag : len(values) - lag] for lag in range(1, order + 1))])
    wanted = values[skip:]
    coefficients = np.linalg.lstsq(lags, wanted, rcond=None)[0]
    return coefficients, float(((wanted - lags @ coefficients) ** 2).sum())


def best_order(values: Any, max_order: int) -> int:
    """The order with the least Bayesian information criterion, all orders judged on the same values."""
    most = max(0, min(max_order, (len(values) - 3) // 2))
    rows = len(values) - most
    floor = 1e-12 * float(values.var()) + 1e-300  # what fits exactly fits no better with one lag more

    def criterion(order: int) -> float:
        squares = autoregression(values, order, most)[1]
        return rows * log(max(squares / rows, floor)) + (order + 1) * log(rows)

    return min(range(most + 1), key=criterion)


def _ahead(values: Any, max_order: int) -> float:
    order = best_order(values, max_order)
    coefficients, _ = autoregression(values, order, order)
    return float(coefficients[0] + sum(c * values[-lag] for lag, c in enumerate(coefficients[1:], 1)))
