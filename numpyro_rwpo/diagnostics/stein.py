r"""Draws against their density, without its normalising constant: Stein's identity.

For a density :math:`\pi \propto e^{-U}` on R^d and functions that do not grow too fast,
:math:`E[\nabla\cdot\phi - \phi\cdot\nabla U] = 0`. Two uses:

* with :math:`\phi = 1` and :math:`\phi = x_i - E x_i`, coordinate by coordinate:
  :math:`E[\partial_i U] = 0` and :math:`E[(x_i - E x_i)\,\partial_i U] = 1`. The second is the
  virial of statistical physics: below 1 the draws are too narrow there, above 1 too wide;
* with all functions of a reproducing kernel's unit ball at once: the **kernel Stein discrepancy**,
  here with the inverse multiquadric kernel, for which it goes to zero only if the draws converge
  (Gorham and Mackey 2017, arXiv:1703.01717, theorem 8).

Not for finding modes that no draw visited: gradients do not know of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_DRAWS = 1000  # for the discrepancy: its cost is quadratic
NUM_BOOTSTRAPS = 1000
_SIGN_BLOCK = 100  # bootstrap replicates at once: bounds the memory


class SteinDiscrepancy(NamedTuple):
    """Kernel Stein discrepancy of draws, and what independent draws would give.

    Attributes:
        squared: unbiased estimate of the squared discrepancy, in whitened coordinates; about 0
            (also below) for draws from the density.
        upper: 95 % quantile of it for independent draws of the same number.
        p_value: of the hypothesis that the draws are independent and from the density.
        num_draws: number of draws that entered.
    """

    squared: float
    upper: float
    p_value: float
    num_draws: int


class SteinIdentities(NamedTuple):
    """First-order Stein identities by coordinate, each (dim,).

    Attributes:
        force: mean of dU/dx in units of one over the draws' standard deviation; 0 is right.
        virial: mean of (x - mean) dU/dx; 1 is right, below: too narrow, above: too wide.
        force_z: ``force`` in Monte Carlo standard errors of the draws.
        virial_z: ``virial - 1`` likewise.
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
        draws: (n, dim).
        gradients: of the potential U at the draws, (n, dim).
        num_effective: effective number of draws by coordinate, (dim,); n without.
    """
    draws, gradients = np.asarray(draws, np.float64), np.asarray(gradients, np.float64)
    scale = np.maximum(draws.std(0), np.finfo(float).tiny)
    force = gradients * scale
    virial = (draws - draws.mean(0)) * gradients
    root = np.sqrt(draws.shape[0] if num_effective is None else num_effective)

    def z_score(values: np.ndarray, truth: float) -> np.ndarray:
        error = values.std(0) / root
        return (values.mean(0) - truth) / np.maximum(error, np.finfo(float).tiny)

    return SteinIdentities(force.mean(0), virial.mean(0), z_score(force, 0), z_score(virial, 1))


def whitening(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A with draws = y A^T and y of unit covariance, and its inverse; (dim, dim) each.

    Diagonal with fewer than two draws a dimension, where a covariance is mostly noise.
    """
    scale = np.maximum(draws.std(0), np.finfo(float).tiny)
    dim = draws.shape[1]
    factor = np.diag(scale)
    if draws.shape[0] > 2 * dim:
        correlation = np.atleast_2d(np.corrcoef(draws / scale, rowvar=False))
        factor = scale[:, None] * np.linalg.cholesky(correlation + 1e-6 * np.eye(dim))
    return factor, np.linalg.inv(factor)


@jax.jit
def stein_kernel(positions: jax.Array, scores: jax.Array) -> jax.Array:
    r"""Langevin Stein kernel of the inverse multiquadric :math:`(d + |x-y|^2)^{-1/2}`.

    .. math:: k_0(x, y) = \nabla_x\cdot\nabla_y k + \nabla_x k \cdot s(y) + \nabla_y k \cdot s(x)
        + k\, s(x)\cdot s(y), \qquad s = \nabla\log\pi .

    The constant of the kernel is d, the mean square of a whitened coordinate vector: distances then
    count the same in few and in many dimensions.

    Args:
        positions: (n, dim), whitened.
        scores: gradients of the log density in the same coordinates, (n, dim).

    Returns:
        (n, n).

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
    # x s(y) for all pairs; (x - y) . (s(x) - s(y)) collects both mixed terms.
    cross = jnp.matmul(positions, scores.T, precision=exact)
    own = jnp.diagonal(cross)
    mixed = own[:, None] + own[None] - cross - cross.T
    score_product = jnp.matmul(scores, scores.T, precision=exact)
    trace = dim * base**-1.5 - 3 * squares * base**-2.5
    return trace + base**-1.5 * mixed + kernel * score_product


def stein_discrepancy(
    rng_key: jax.Array, draws: np.ndarray, log_density_gradients: np.ndarray
) -> SteinDiscrepancy:
    """Kernel Stein discrepancy of draws, with a wild-bootstrap reference.

    The reference multiplies draws with random signs, which leaves the distribution of the statistic
    as it is when the draws are independent and from the density (Liu, Lee and Jordan 2016,
    arXiv:1602.03253; Chwialkowski, Strathmann and Gretton 2016, arXiv:1602.02964). Draws of one
    pass over an ensemble are nearly that.

    Args:
        rng_key: one key, for the bootstrap.
        draws: (n, dim), at least 4.
        log_density_gradients: gradient of the log density at them, (n, dim).
    """
    draws = np.asarray(draws, np.float64)
    factor, inverse = whitening(draws)
    positions = (draws - draws.mean(0)) @ inverse.T
    scores = np.asarray(log_density_gradients, np.float64) @ factor
    kernel = stein_kernel(jnp.asarray(positions), jnp.asarray(scores))
    number = draws.shape[0]
    kernel = kernel * (1 - jnp.eye(number, dtype=kernel.dtype))

    def replicates(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(key, (_SIGN_BLOCK, number), kernel.dtype)
        return jnp.einsum("bi,ij,bj->b", signs, kernel, signs, precision=lax.Precision.HIGHEST)

    keys = jax.random.split(rng_key, NUM_BOOTSTRAPS // _SIGN_BLOCK)
    pairs = number * (number - 1)
    bootstrap = np.asarray(lax.map(replicates, keys), np.float64).ravel() / pairs
    squared = float(np.asarray(kernel, np.float64).sum()) / pairs
    return SteinDiscrepancy(
        squared,
        float(np.quantile(bootstrap, 0.95)),
        float((1 + np.sum(bootstrap >= squared)) / (1 + bootstrap.size)),
        number,
    )
