"""Variable selection from draws of coefficients: signs, negligible effects, false discoveries.

Under a continuous prior no coefficient is exactly 0, so a coefficient counts as null when it is
negligible, ``|beta| < epsilon``. The posterior probability of that is its local false-discovery
rate. The mean of this rate over a set of coefficients is the expected share of nulls among them,
the **Bayesian false-discovery rate** of the set (Mueller, Parmigiani and Rice 2006, "FDR and
Bayesian multiple comparisons rules").
"""

from typing import NamedTuple

import numpy as np


class Selection(NamedTuple):
    """Posterior summary of coefficients, each array (num_coefficients,).

    Attributes:
        prob_positive: probability of a positive sign.
        prob_null: probability of ``|beta| < epsilon``, the local false-discovery rate.
        selected: the largest set whose Bayesian false-discovery rate is within the limit.
        false_discovery_rate: Bayesian false-discovery rate of the selected set; 0 if it is empty.
    """

    prob_positive: np.ndarray
    prob_null: np.ndarray
    selected: np.ndarray
    false_discovery_rate: float


def select_variables(draws: np.ndarray, epsilon: float, max_fdr: float = 0.05) -> Selection:
    """Select the coefficients that differ from 0 by more than ``epsilon``.

    Args:
        draws: draws of the coefficients, (..., num_coefficients); all leading axes are draws.
        epsilon: effect below which a coefficient is negligible, in its own units, > 0.
        max_fdr: largest Bayesian false-discovery rate of the selected set, in (0, 1).

    Raises:
        ValueError: ``draws`` has fewer than two axes, or a number is out of range.
    """
    draws = np.asarray(draws, np.float64)
    if draws.ndim < 2:
        raise ValueError(
            "`draws` must have shape (..., num_coefficients) with at least one axis of draws; got "
            f"{draws.shape}."
        )
    if not epsilon > 0:
        raise ValueError(
            f"`epsilon` must be positive, in units of the coefficients; got {epsilon}."
        )
    if not 0 < max_fdr < 1:
        raise ValueError(f"`max_fdr` must lie strictly between 0 and 1; got {max_fdr}.")
    draws = draws.reshape(-1, draws.shape[-1])
    prob_null = (np.abs(draws) < epsilon).mean(0)
    order = np.argsort(prob_null, kind="stable")
    # Running means of an increasing sequence increase, so the last one within the limit belongs to
    # the largest set.
    running = np.cumsum(prob_null[order]) / np.arange(1, len(order) + 1)
    number = int(np.searchsorted(running, max_fdr, side="right"))
    selected = np.zeros(len(order), bool)
    selected[order[:number]] = True
    rate = float(running[number - 1]) if number else 0.0
    return Selection((draws > 0).mean(0), prob_null, selected, rate)
