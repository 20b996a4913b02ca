r"""Whether draws fit their density, without its normalizing constant: Stein's identity.

For a density :math:`\pi \propto e^{-U}` on R^d and functions that do not grow too fast,
:math:`E[\nabla\cdot\phi - \phi\cdot\nabla U] = 0`. Two uses:

* With :math:`\phi = 1` and :math:`\phi = x_i - E x_i` it says, coordinate by coordinate, that
  :math:`E[\partial_i U] = 0` and :math:`E[(x_i - E x_i)\,\partial_i U] = 1`. The second mean is
  the virial of statistical physics. Where it is below 1 the draws are too narrow; where it is above
  1 they are too wide.
* The largest violation over the unit ball of a reproducing-kernel Hilbert space is the **kernel
  Stein discrepancy**. With the inverse multiquadric kernel, which is used here, it goes to zero
  only if the draws converge to the density (Gorham and Mackey 2017, arXiv:1703.01717, theorem 8).

Neither can find a mode that no draw has visited, because gradients elsewhere do not depend on it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_rwpo.diagnostics.thresholds import FALSE_ALARM_RATE

# Draws from which the discrepancy is computed. Its cost is quadratic: at this number the matrix of
# kernel values takes 4 MB in single precision, and so do the signs of all bootstrap replicates.
MAX_DRAWS = 1000

# Bootstrap replicates: as many as it takes for a p-value to be as small as the false-alarm rate.
NUM_BOOTSTRAPS = round(1 / FALSE_ALARM_RATE)


class SteinDiscrepancy(NamedTuple):
    """Kernel Stein discrepancy of draws, and what independent draws would give.

    Attributes:
        squared: unbiased estimate of the squared discrepancy, in whitened coordinates; it scatters
            about 0 for draws from the density.
        upper: 95% quantile of that estimate for as many independent draws from the density.
        p_value: p-value of the hypothesis that the draws are independent and from the density.
        num_draws: number of draws that were used.
    """

    squared: float
    upper: float
    p_value: float
    num_draws: int


class SteinIdentities(NamedTuple):
    """First-order Stein identities by coordinate, each (dim,).

    Attributes:
        force: mean of dU/dx in units of one over the draws' standard deviation; 0 is exact.
        virial: mean of (x - mean) dU/dx; 1 is exact, less is too narrow, more is too wide.
        force_z: ``force`` in Monte Carlo standard errors.
        virial_z: ``virial - 1`` in Monte Carlo standard errors.
    """

    force: np.ndarray
    virial: np.ndarray
    force_z: np.ndarray
    virial_z: np.ndarray


def stein_identities(
    draws: np.ndarray, gradients: np.ndarray, num_effective: np.ndarray | None = None
) -> SteinIdentities:
    """First-order Stein identities.

    Args:
        draws: draws in unconstrained space, (n, dim).
        gradients: gradients of the potential U at the draws, (n, dim).
        num_effective: effective number of draws of each coordinate, (dim,); without, n.
    """
    draws, gradients = np.asarray(draws, np.float64), np.asarray(gradients, np.float64)
    scale = np.maximum(draws.std(0), np.finfo(float).tiny)
    force = gradients * scale
    virial = (draws - draws.mean(0)) * gradients
    root = np.sqrt(draws.shape[0] if num_effective is None else num_effective)

    def z_score(values: np.ndarray, truth: float) -> np.ndarray:
        difference, error = values.mean(0) - truth, values.std(0) / root
        # A flat density has the same gradient everywhere: any difference is then beyond chance.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(difference == 0, 0.0, difference / error)

    return SteinIdentities(force.mean(0), virial.mean(0), z_score(force, 0), z_score(virial, 1))


def whitened(draws: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws of zero mean and unit covariance, and the scores in their coordinates.

    Only the variances are one where there are fewer than two draws per dimension, because a full
    covariance matrix would then be mostly noise. No array is then larger than the draws.

    Args:
        draws: draws in unconstrained space, (n, dim).
        scores: gradients of the log density at the draws, (n, dim).

    Returns:
        Positions and scores, (n, dim) each.
    """
    scale = np.maximum(draws.std(0), np.finfo(float).tiny)
    dim = draws.shape[1]
    positions = (draws - draws.mean(0)) / scale
    if draws.shape[0] <= 2 * dim:
        return positions, scores * scale
    correlation = np.atleast_2d(np.corrcoef(draws / scale, rowvar=False))
    # What single-precision draws can tell from zero keeps the factor invertible.
    jitter = dim * np.finfo(np.float32).eps
    factor = np.linalg.cholesky(correlation + jitter * np.eye(dim))
    return positions @ np.linalg.inv(factor).T, (scores * scale) @ factor


@jax.jit
def stein_kernel(positions: jax.Array, scores: jax.Array) -> jax.Array:
    r"""Langevin Stein kernel of the inverse multiquadric :math:`(d + |x-y|^2)^{-1/2}`.

    .. math:: k_0(x, y) = \nabla_x\cdot\nabla_y k + \nabla_x k \cdot s(y) + \nabla_y k \cdot s(x)
        + k\, s(x)\cdot s(y), \qquad s = \nabla\log\pi .

    The constant of the kernel is d, the mean square of a whitened vector, so that the kernel sees
    typical distances alike in few and in many dimensions.

    Args:
        positions: whitened draws, (n, dim).
        scores: gradients of the log density in the same coordinates, (n, dim).

    Returns:
        Kernel values of all pairs of draws, (n, n).

    References:
        Gorham and Mackey (2017), arXiv:1703.01717, sec. 3; the kernel with exponent -1/2.
    """
    dim = positions.shape[1]
    exact = lax.Precision.HIGHEST
    inner = jnp.matmul(positions, positions.T, precision=exact)
    norms = jnp.diagonal(inner)
    squares = jnp.maximum(norms[:, None] + norms[None] - 2 * inner, 0.0)
    base = dim + squares
    kernel = base**-0.5
    # The two mixed terms together are (x - y) . (s(x) - s(y)) times a power of the base.
    cross = jnp.matmul(positions, scores.T, precision=exact)
    own = jnp.diagonal(cross)
    mixed = own[:, None] + own[None] - cross - cross.T
    score_product = jnp.matmul(scores, scores.T, precision=exact)
    trace = dim * base**-1.5 - 3 * squares * base**-2.5
    return trace + base**-1.5 * mixed + kernel * score_product


def stein_discrepancy(
    rng_key: jax.Array, draws: np.ndarray, log_density_gradients: np.ndarray
) -> SteinDiscrepancy:
    """Kernel Stein discrepancy of draws, and its distribution by a wild bootstrap.

    The bootstrap multiplies the terms of the statistic with random signs of the draws. If the draws
    are independent and from the density, this leaves the distribution of the statistic as it is
    (Liu, Lee and Jordan 2016, arXiv:1602.03253; Chwialkowski, Strathmann and Gretton 2016,
    arXiv:1602.02964). States of different particles are close to independent.

    Args:
        rng_key: one key, for the bootstrap.
        draws: draws in unconstrained space, (n, dim), at least 4.
        log_density_gradients: gradients of the log density at the draws, (n, dim).
    """
    draws = np.asarray(draws, np.float64)
    positions, scores = whitened(draws, np.asarray(log_density_gradients, np.float64))
    kernel = stein_kernel(jnp.asarray(positions), jnp.asarray(scores))
    number = draws.shape[0]
    kernel = kernel * (1 - jnp.eye(number, dtype=kernel.dtype))
    signs = jax.random.rademacher(rng_key, (NUM_BOOTSTRAPS, number), kernel.dtype)
    products = jnp.matmul(signs, kernel, precision=lax.Precision.HIGHEST)
    pairs = number * (number - 1)
    bootstrap = np.asarray((products * signs).sum(1), np.float64) / pairs
    squared = float(np.asarray(kernel, np.float64).sum()) / pairs
    return SteinDiscrepancy(
        squared,
        float(np.quantile(bootstrap, 0.95)),
        float((1 + np.sum(bootstrap >= squared)) / (1 + bootstrap.size)),
        number,
    )
