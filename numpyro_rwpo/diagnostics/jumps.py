r"""Whether a density jumps near its draws, as at a change point or at the border of its support.

Stein's identities (:mod:`numpyro_rwpo.diagnostics.stein`) hold for continuous densities. The
gradient of a density that jumps contains nothing of the jumps, so that exact draws violate them.

A jump shows in a short segment from :math:`a` to :math:`b`: the log density changes by more than
its gradients at the two ends account for,

.. math:: e = \bigl| \log\pi(b) - \log\pi(a) - \tfrac12 (b-a)\cdot(s(a) + s(b)) \bigr|,
    \qquad s = \nabla\log\pi .

Each segment is halved several times, always keeping the half with the larger :math:`e`. In every
halving :math:`e` falls by a factor of eight where the density is smooth, by a factor of two where
it has a kink, as a Laplace prior does, and not at all where it jumps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

ValueAndGradient = Callable[[Any], tuple[np.ndarray, np.ndarray]]


class Jumps(NamedTuple):
    """Jumps of a log density in short segments that start at draws.

    Attributes:
        share: share of the segments in which the log density jumps.
        largest: largest jump in nats; infinite where the density falls to zero, 0 without jumps.
        name: coordinate in which the largest jump lies; empty without jumps.
    """

    share: float
    largest: float
    name: str


class _Points(NamedTuple):
    """One end of each segment.

    Attributes:
        positions: (n, dim).
        values: log density, (n,).
        gradients: its gradient, 0 where it is not defined, (n, dim).
    """

    positions: np.ndarray
    values: np.ndarray
    gradients: np.ndarray


def find_jumps(
    rng_key: jax.Array, draws: np.ndarray, names: list[str], evaluate: ValueAndGradient
) -> Jumps:
    """Look for jumps of a density near its draws, in some 6000 evaluations.

    Args:
        rng_key: one key, for the directions of the segments.
        draws: finite draws in unconstrained space, (n, dim), at least 2.
        names: names of the coordinates.
        evaluate: log density and its gradient at positions, (n, dim) -> (n,), (n, dim).
    """

    def points(positions: np.ndarray) -> _Points:
        values, gradients = evaluate(positions.astype(draws.dtype))
        return _Points(positions, values, np.nan_to_num(gradients, posinf=0.0, neginf=0.0))

    start, step = _segments(rng_key, draws)
    left, right = points(start), points(start + step)
    errors = [_error(left, right)]
    # After ten halvings a segment is about 1e-4 posterior standard deviations long.
    for _ in range(10):
        middle = points((left.positions + right.positions) / 2)
        first, second = _error(left, middle), _error(middle, right)
        left = _where(first >= second, left, middle)
        right = _where(first >= second, middle, right)
        errors.append(np.maximum(first, second))
    jump = errors[-1]
    # In the last four halvings the error must not have fallen by half; at a kink it falls to a
    # sixteenth.
    is_jump = (jump > _rounding(left, draws.dtype)) & (jump >= 0.5 * errors[-5])
    if not is_jump.any():
        return Jumps(0.0, 0.0, "")
    largest = int(np.argmax(np.where(is_jump, jump, -1.0)))
    coordinate = _coordinate(left, right, largest, points)
    return Jumps(float(is_jump.mean()), float(jump[largest]), names[coordinate])


def _segments(rng_key: jax.Array, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and steps of the segments, half of them toward another draw, half away from one.

    Those that lead away from other draws cross the border of a support, which the draws never do.
    A segment is a tenth as long as the distance between two draws; of a posterior with one jump in
    its middle, some five percent of the segments then contain it.
    """
    # As many as the positions that `posterior.evaluate` computes at once.
    number = min(500, len(draws))
    order = np.asarray(jax.random.permutation(rng_key, len(draws)))
    start = draws[order[:number]].astype(np.float64)
    other = draws[np.roll(order, len(order) // 2)[:number]].astype(np.float64)
    sign = np.where(np.arange(number) % 2 == 0, 1.0, -1.0)[:, None]
    return start, 0.1 * sign * (other - start)


def _where(chosen: np.ndarray, points: _Points, others: _Points) -> _Points:
    """Row by row one or the other, ``chosen`` (n,)."""
    rows = chosen[:, None]
    return _Points(
        np.where(rows, points.positions, others.positions),
        np.where(chosen, points.values, others.values),
        np.where(rows, points.gradients, others.gradients),
    )


def _error(left: _Points, right: _Points) -> np.ndarray:
    """What the gradients at the two ends do not account for, (n,); infinite at a border."""
    step = right.positions - left.positions
    expected = 0.5 * np.sum(step * (left.gradients + right.gradients), axis=1)
    with np.errstate(invalid="ignore"):  # Both ends may lie outside the support.
        error = np.abs(right.values - left.values - expected)
    is_border = np.isfinite(left.values) != np.isfinite(right.values)
    return np.where(is_border, np.inf, np.nan_to_num(error, posinf=0.0))


def _rounding(points: _Points, dtype: Any) -> np.ndarray:
    """Errors that are not reported: small ones, and what rounding may cause, (n,).

    A jump of a tenth of a nat changes Stein's identities by as much. The sum of 10,000 terms, each
    rounded at random, is off by 100 roundings of their size.
    """
    size = np.abs(np.nan_to_num(points.values, posinf=0.0, neginf=0.0))
    size = size + np.sum(np.abs(points.positions * points.gradients), axis=1)
    return np.maximum(0.1, 100 * float(np.finfo(dtype).eps) * size)


def _coordinate(
    left: _Points, right: _Points, segment: int, points: Callable[[np.ndarray], _Points]
) -> int:
    """The coordinate whose own step across a segment changes the log density most."""
    a, b = left.positions[segment], right.positions[segment]
    if not np.isfinite(left.values[segment]):
        a, b = b, a
    moved = points(np.where(np.eye(len(a), dtype=bool), b, a)).values
    change = np.abs(moved - points(a[None]).values)
    return int(np.argmax(np.nan_to_num(change, nan=np.inf, posinf=np.inf)))
