"""What R-hat and ESS cannot see: whether a particle forgets its last draw before its next one.

Draw t of a chain is particle t modulo the number of particles: the draws of one pass are different
particles. When particles move slowly, each pass is a set of nearly independent draws *of the
wrong distribution*, R-hat and ESS look good, and only the same particle in successive passes tells.
"""

import math
from typing import NamedTuple

import numpy as np

_CLIP = 3.0  # standard deviations: a single straggler must not speak for all


class Passes(NamedTuple):
    """Statistics of particles from pass to pass, each (num_statistics,).

    Attributes:
        correlation: of a statistic of a particle with itself one pass later.
        correlation_error: standard error of these under independence, a number.
        drift_z: change of a statistic's mean from the first pass to the last, in standard errors
            over particles.
        num_passes: complete passes over the ensemble.
    """

    correlation: np.ndarray
    correlation_error: float
    drift_z: np.ndarray
    num_passes: int


def statistics(draws: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """Positions, their squared deviations and the log density, standardised and clipped.

    Args:
        draws: (chains, draws, dim).
        log_density: (chains, draws).

    Returns:
        (chains, draws, 2 dim + 1).
    """

    def standardised(x: np.ndarray) -> np.ndarray:
        deviation = x - x.mean((0, 1))
        return deviation / np.maximum(x.std((0, 1)), np.finfo(float).tiny)

    raw = np.concatenate([draws, log_density[..., None]], axis=2).astype(np.float64)
    clipped = np.clip(standardised(raw), -_CLIP, _CLIP)
    return standardised(np.concatenate([clipped, clipped[..., :-1] ** 2], axis=2))


def compare_passes(values: np.ndarray, draws_per_pass: int) -> Passes | None:
    """Correlation and drift between passes; ``None`` with fewer than two complete passes.

    Args:
        values: standardised statistics (chains, draws, num_statistics).
        draws_per_pass: draws between two of the same particle.
    """
    num_passes = values.shape[1] // draws_per_pass
    if num_passes < 2:
        return None
    first, later = values[:, :-draws_per_pass], values[:, draws_per_pass:]
    number = first.shape[0] * first.shape[1]
    begin = values[:, :draws_per_pass].reshape(-1, values.shape[2])
    start = (num_passes - 1) * draws_per_pass
    end = values[:, start : start + draws_per_pass].reshape(-1, values.shape[2])
    change = end - begin
    error = change.std(0, ddof=1) / math.sqrt(len(change))
    return Passes(
        (first * later).mean((0, 1)),
        1 / math.sqrt(number),
        change.mean(0) / np.maximum(error, np.finfo(float).tiny),
        num_passes,
    )
