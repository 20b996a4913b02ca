"""Whether particles decorrelate between their draws, and whether they drift.

A chain draws a number of successive states of one particle, then those of the next. R-hat and ESS
detect slow particles by the correlation within these runs, but not by the correlation that remains
from one refresh to the next. A comparison of each particle with itself shows both.
"""

import math
from typing import NamedTuple

import numpy as np


class Mixing(NamedTuple):
    """How the statistics of single particles change between their draws.

    Attributes:
        correlation: correlation of each statistic between successive draws of the same particle,
            (num_statistics,).
        correlation_error: standard error that these correlations have if draws are independent.
        drift_z: change in the mean of each statistic from the first draw of a particle to its
            last, in standard errors over particles, (num_statistics,).
        draws_per_particle: draws of a chain for each particle, on average and rounded down.
    """

    correlation: np.ndarray
    correlation_error: float
    drift_z: np.ndarray
    draws_per_particle: int


def statistics(draws: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """Positions, log density, and squared deviations of the positions, standardized and clipped.

    Args:
        draws: draws in unconstrained space, (chains, draws, dim).
        log_density: log density at the draws, (chains, draws).

    Returns:
        The statistics in that order, (chains, draws, 2 dim + 1).
    """

    def standardized(x: np.ndarray) -> np.ndarray:
        deviation = x - x.mean((0, 1))
        return deviation / np.maximum(x.std((0, 1)), np.finfo(float).tiny)

    raw = np.concatenate([draws, log_density[..., None]], axis=2).astype(np.float64)
    # Clipped at three standard deviations, so that the product of one straggler's values does not
    # dominate a correlation. A normal coordinate exceeds them in 0.3% of its draws, too few for the
    # clipping to matter.
    clipped = np.clip(standardized(raw), -3.0, 3.0)
    return standardized(np.concatenate([clipped, clipped[..., :-1] ** 2], axis=2))


def particle_mixing(values: np.ndarray, particles: np.ndarray) -> Mixing | None:
    """Compare every particle with itself from draw to draw.

    Args:
        values: standardized statistics, (chains, draws, num_statistics).
        particles: index of the particle of which each draw is a state, (draws,), in any order.

    Returns:
        The comparison; ``None`` where there are fewer than two draws of each particle on average.
    """
    draws_per_particle = len(particles) // len(np.unique(particles))
    if draws_per_particle < 2:
        return None
    order = np.argsort(particles, kind="stable")  # the draws of one particle side by side
    is_successor = np.diff(particles[order]) == 0
    pairs = values[:, order[:-1][is_successor]], values[:, order[1:][is_successor]]
    starts = np.flatnonzero(np.concatenate([[True], ~is_successor]))
    ends = np.append(starts[1:], len(order)) - 1
    first, last = order[starts], order[ends]
    again = first != last  # particles with more than one draw
    change = (values[:, last[again]] - values[:, first[again]]).reshape(-1, values.shape[2])
    error = change.std(0, ddof=1) / math.sqrt(len(change))
    return Mixing(
        correlation=(pairs[0] * pairs[1]).mean((0, 1)),
        correlation_error=1 / math.sqrt(pairs[0].shape[0] * pairs[0].shape[1]),
        drift_z=change.mean(0) / np.maximum(error, np.finfo(float).tiny),
        draws_per_particle=draws_per_particle,
    )
