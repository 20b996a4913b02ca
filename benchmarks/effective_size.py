r"""Effective sample sizes: those of ArviZ, and one computed from the errors of the means.

ArviZ estimates from the draws alone how many independent draws they are worth. Chains whose moves
depend on each other, or particles that never move, can look independent and be wrong together. The
size by error uses the reference instead: the mean of n independent draws has an error of
:math:`1/\sqrt n` posterior standard deviations, so

.. math:: n_\text{error} = 1 \Big/ \operatorname{mean}_{k, s}
    \Bigl[ \Bigl(\frac{\bar x_{ks} - \mu_k}{\sigma_k}\Bigr)^2 - \frac{m_k^2}{\sigma_k^2} \Bigr]

over coordinates k and independent runs s (at least five for a reliable figure), with the mean
:math:`\mu_k` and sd :math:`\sigma_k` of the reference and the standard error :math:`m_k` of that
mean, whose square is what the reference adds to the squared error in expectation. Bias counts as
error, as it should.

The coordinates of one run are correlated but the runs are independent, so the standard error is
computed from the averages of each run over coordinates. The reference is the same in all runs, so
its error does not average out, and sizes above about
:math:`1 / \operatorname{mean} (m_k/\sigma_k)^2` cannot be distinguished.
"""

from typing import Any, NamedTuple

import arviz as az
import numpy as np
from numpy.typing import ArrayLike, NDArray

_TAILS = (0.05, 0.95)  # the quantiles that ArviZ before 1.0 uses for the tail ESS


class SizeByError(NamedTuple):
    """Effective sample size by error.

    Attributes:
        size: Point estimate; infinite where the error is below that of the reference.
        low: Size at two standard errors above the mean squared error; 0 with a single run.
        high: Size at two standard errors below it.
        resolvable: Largest size that the reference can resolve.
    """

    size: float
    low: float
    high: float
    resolvable: float


def size_by_error(errors: ArrayLike, mcse: ArrayLike) -> SizeByError:
    """Effective sample size from the errors of posterior means.

    Args:
        errors: Errors of the means over reference sds, shape (runs, coordinates).
        mcse: Standard errors of the reference means over its sds, shape (coordinates,).

    Returns:
        The size with its limits.
    """
    errors, mcse = np.asarray(errors, np.float64), np.asarray(mcse, np.float64)
    by_run = np.mean(errors**2 - mcse**2, axis=1)
    mean = by_run.mean()
    margin = 2 * by_run.std(ddof=1) / np.sqrt(len(by_run)) if len(by_run) > 1 else np.inf
    noise = np.mean(mcse**2)

    def size(mean_square: float) -> float:
        if np.isnan(mean_square):
            return 0.0  # some draws are not finite
        return float(1.0 / mean_square) if mean_square > 0 else np.inf

    return SizeByError(size(mean), size(mean + margin), size(mean - margin), size(noise))


def smallest_ess(draws: NDArray[Any], method: str) -> float:
    """ArviZ's effective sample size of the worst coordinate.

    Args:
        draws: Shape (coordinates, chains, draws).
        method: ``"bulk"`` or ``"tail"``.

    Returns:
        The smallest size; NaN if draws are not finite or do not move, or if there are fewer than
        ArviZ needs.
    """
    if draws.shape[2] < 4 or not np.all(np.isfinite(draws)) or np.any(np.ptp(draws, (1, 2)) == 0):
        return float("nan")
    options = {"prob": _TAILS} if method == "tail" else {}  # ArviZ 1.x has no default
    return float(min(np.asarray(az.ess(x, method=method, **options)) for x in draws))
