r"""Singular values of matrices with the density of the nuclear norm: normalizer and exact draws.

For matrices of p rows and q <= p columns with density proportional to :math:`e^{-\sum_i s_i}`, the
singular values have the density

.. math:: \prod_{i<j} |s_i^2 - s_j^2| \prod_i s_i^{p-q} e^{-s_i}

up to a constant, and the singular vectors are uniform (Muirhead 1982, Aspects of Multivariate
Statistical Theory, theorems 2.1.13 and 3.2.17). The integral of this density is a Pfaffian
(de Bruijn 1955, J. Indian Math. Soc. 19, section 4), of integers up to powers of two, and therefore
known to all digits. The sum of the singular values has a Gamma distribution of shape pq and is
independent of their proportions. Those are drawn by rejection, from powers of the singular values
of a normal matrix.
"""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from scipy.optimize import minimize
from scipy.special import gammaln, multigammaln

# Smallest probability of acceptance with which proportions are drawn by rejection.
LEAST_ACCEPTANCE = 0.01
# Steps of the Markov chain otherwise, each of which proposes an independent draw.
NUM_STEPS = 200
# Differences of logarithms below which a quotient of differences is its limit.
_CLOSE = 1e-4


def log_normalizer(rows: int, columns: int) -> float:
    """Log of the integral of ``exp(-nuclear norm)`` over all matrices.

    Args:
        rows: Number of rows.
        columns: Number of columns.
    """
    p, q = max(rows, columns), min(rows, columns)
    return _log_orbits(p, q) + _log_integral(p, q)


def _log_orbits(p: float, q: int) -> float:
    """Log of how much volume of matrices belongs to a unit of descending singular values."""
    log_volume = q * (p + q) / 2 * math.log(math.pi) + q * math.log(2)
    return float(log_volume - multigammaln(p / 2, q) - multigammaln(q / 2, q))


@lru_cache(maxsize=1024)
def _log_integral(p: int, q: int) -> float:
    """Log of the integral of the singular values' density over descending singular values.

    Entry (j, k) of the Pfaffian is the difference between the probabilities that a Gamma variable
    of shape ``n_j`` is the smaller and the larger one beside one of shape ``n_k``: of tosses of a
    coin, whether ``n_j`` heads or ``n_k`` tails come first. Entries are integers after
    multiplication by ``2^(n_j + n_k)``. An odd number of columns has a border of ones.
    """
    shapes = [2 * j + p - q + 1 for j in range(q)]
    size = q + q % 2
    entries = [[0] * size for _ in range(size)]
    for j, first in enumerate(shapes):
        for k in range(j + 1, q):
            # The shapes differ by 2 (k - j): with half of an odd number of tosses both win equally
            # often, and k - j numbers of heads remain.
            tosses = first + shapes[k] - 1
            rest = range(first, first + k - j)
            entries[j][k] = 4 * sum(math.comb(tosses, heads) for heads in rest)
        if q % 2:
            entries[j][q] = 2**first
    log_factors = sum(math.lgamma(n) - n * math.log(2) for n in shapes)
    return math.log(_pfaffian(entries)) + log_factors


def _pfaffian(entries: list[list[int]]) -> int:
    """Pfaffian of integers above the diagonal, by exact elimination.

    Every number on the way is the Pfaffian of a part of the matrix, so that all divisions are exact
    (as in Bareiss 1968, Math. Comp. 22, for determinants), and pivots are integrals of fewer
    singular values, which are positive.
    """
    entries = [list(row) for row in entries]
    size, previous = len(entries), 1
    for k in range(0, size - 2, 2):
        first, second = entries[k], entries[k + 1]
        pivot = first[k + 1]
        for i in range(k + 2, size):
            row = entries[i]
            for j in range(i + 1, size):
                crossed = first[i] * second[j] - first[j] * second[i]
                row[j] = (pivot * row[j] - crossed) // previous
        previous = pivot
    return entries[-2][-1]


class Envelope(NamedTuple):
    r"""How proportions of singular values are proposed.

    With :math:`s_i = g_i^\gamma` of the singular values g of a normal matrix of n rows, which need
    not be an integer, the quotient of the densities is bounded and nearly constant.

    Attributes:
        power: :math:`\gamma`, between 1 (a normal matrix) and 2 (a Wishart matrix).
        num_rows: n.
        log_bound: Largest log quotient.
        acceptance: Probability of acceptance with this bound.
    """

    power: float
    num_rows: float
    log_bound: float
    acceptance: float


def _log_quotient(log_g: Any, p: int, power: Any, xp: Any = np) -> Any:
    """Log of the quotient of the densities at logarithms of g, (..., q), by NumPy or JAX."""
    q = log_g.shape[-1]
    gap = xp.abs(log_g[..., :, None] - log_g[..., None, :])
    is_close = gap < _CLOSE
    wide = xp.where(is_close, 1.0, gap)
    log_ratio = xp.log(xp.expm1(-2 * power * wide) / xp.expm1(-2 * wide)) + (power - 1) * wide
    log_ratio = xp.where(is_close, math.log(power), log_ratio)
    # Every pair counts once, and the diagonal, which is close to itself, does not.
    pairs = (log_ratio.sum((-2, -1)) - q * math.log(power)) / 2
    log_s = xp.log(xp.exp(power * log_g).sum(-1))
    log_square = xp.log(xp.exp(2 * log_g).sum(-1))
    pairs = pairs + (power - 1) * (q - 1) * log_g.sum(-1)
    return pairs + q * _num_rows(p, q, power) / 2 * log_square - p * q * log_s


def _quotient_slope(log_g: np.ndarray, p: int, power: float) -> np.ndarray:
    """Gradient of :func:`_log_quotient` at one point, (q,)."""
    q = len(log_g)
    gap = log_g[:, None] - log_g[None]
    wide = np.where(np.abs(gap) < _CLOSE, 1.0, gap)
    slope = power / np.tanh(power * wide) - 1 / np.tanh(wide)
    slope = np.where(np.abs(gap) < _CLOSE, (power**2 - 1) / 3 * gap, slope).sum(1)
    s, square = np.exp(power * log_g), np.exp(2 * log_g)
    slope = slope + (power - 1) * (q - 1) + q * _num_rows(p, q, power) * square / square.sum()
    return np.asarray(slope - p * q * power * s / s.sum())


def _num_rows(p: int, q: int, power: float) -> float:
    """Rows of the normal matrix for which small singular values are as likely as they should be."""
    return q - 1 + power * (p - q + 1)


def _log_mean(p: int, q: int, power: float) -> float:
    """Log of the mean quotient over proposals, from the normalizers of both densities."""
    n = _num_rows(p, q, power)
    target = _log_integral(p, q) - gammaln(p * q)
    log_normal = n * q / 2 * math.log(2 * math.pi) - _log_orbits(n, q)
    normal = log_normal - gammaln(n * q / 2) - (n * q / 2 - 1) * math.log(2)
    return float(target - normal + (1 - q) * math.log(power))


def _log_largest(p: int, q: int, power: float, num_starts: int) -> float:
    """Largest log quotient, by ascents from as many starts, half of them far from equal values."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(scale=2.0 if k % 2 else 0.3, size=q) for k in range(num_starts)]
    starts[0] = np.linspace(0.0, 1e-3, q)

    def negative(log_g: np.ndarray) -> tuple[float, np.ndarray]:
        return -float(_log_quotient(log_g, p, power)), -_quotient_slope(log_g, p, power)

    bounds = [(-12.0, 12.0)] * q
    ascents = [minimize(negative, x, jac=True, method="L-BFGS-B", bounds=bounds) for x in starts]
    return -min(float(ascent.fun) for ascent in ascents)


@lru_cache(maxsize=256)
def envelope(p: int, q: int) -> Envelope:
    """The proposal for matrices of p rows and q <= p columns.

    The two powers fit those with the largest probability of acceptance, and with the least variance
    of the log quotient, in shapes from 2 x 2 to 100 x 20. The bound is found numerically.
    """
    if q == 1:
        return Envelope(2.0, _num_rows(p, q, 2.0), 0.0, 1.0)
    power = 2.0 if q == 2 else 2 - 0.42 * q / p
    log_bound = _log_largest(p, q, power, 20) + 1e-3
    acceptance = math.exp(_log_mean(p, q, power) - log_bound)
    if acceptance < LEAST_ACCEPTANCE:
        power, log_bound, acceptance = 2 - 0.57 * q / p, math.inf, 0.0
    return Envelope(power, _num_rows(p, q, power), log_bound, acceptance)


def draw_singular_values(
    key: jax.Array, shape: tuple[int, ...], rows: int, columns: int, dtype: Any
) -> jax.Array:
    """Singular values of matrices with density proportional to ``exp(-nuclear norm)``.

    Exact up to the numerical maximum of :func:`envelope`, wherever this accepts one proposal in
    100 or more: the tests list shapes. In larger shapes, they are the last states of Metropolis
    chains of 200 independent proposals.

    Args:
        key: Random key.
        shape: Shape of the batch.
        rows: Number of rows.
        columns: Number of columns.
        dtype: Floating-point type.

    Returns:
        Singular values in no order, (*shape, min(rows, columns)).
    """
    p, q = max(rows, columns), min(rows, columns)
    how = envelope(p, q)
    key_total, key_proportions = random.split(key)
    total = random.gamma(key_total, float(p * q), shape, dtype)
    keys = random.split(key_proportions, math.prod(shape))
    draw = _by_rejection if how.acceptance > 0 else _by_chain
    # One after another: together, all would wait for the last one to be accepted.
    log_g = lax.map(partial(draw, p=p, q=q, how=how, dtype=dtype), keys)
    proportions = jax.nn.softmax(how.power * log_g, axis=-1).reshape(*shape, q)
    return total[..., None] * proportions


def _propose(
    key: jax.Array, p: int, q: int, how: Envelope, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logarithms of g, the log quotient, and the log of a uniform variable.

    The normal matrix is replaced by the triangular factor of its square (Bartlett 1933).
    """
    key_normal, key_diagonal, key_uniform = random.split(key, 3)
    factor = jnp.tril(random.normal(key_normal, (q, q), dtype), -1)
    freedom = jnp.asarray(how.num_rows - np.arange(q), dtype)
    factor = factor + jnp.diag(jnp.sqrt(random.chisquare(key_diagonal, freedom, dtype=dtype)))
    g = jnp.linalg.svd(factor, compute_uv=False)
    log_g = jnp.log(jnp.maximum(g, jnp.finfo(dtype).tiny))
    # The quotient does not depend on the unit; in this one, its terms lose the fewest digits.
    log_g = log_g - 0.5 * jax.nn.logsumexp(2 * log_g, keepdims=True)
    # Uniform in (0, 1]: the logarithm of 0 would accept whatever is proposed.
    log_uniform = jnp.log1p(-random.uniform(key_uniform, dtype=dtype))
    return log_g, _log_quotient(log_g, p, how.power, jnp), log_uniform


def _by_rejection(key: jax.Array, p: int, q: int, how: Envelope, dtype: Any) -> jax.Array:
    """Propose until the first acceptance, (q,)."""

    def again(state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        key, key_proposal = random.split(state[0])
        log_g, value, log_uniform = _propose(key_proposal, p, q, how, dtype)
        return key, log_g, log_uniform <= value - how.log_bound

    start = (key, jnp.zeros(q, dtype), jnp.asarray(False))
    return lax.while_loop(lambda state: ~state[2], again, start)[1]


def _by_chain(key: jax.Array, p: int, q: int, how: Envelope, dtype: Any) -> jax.Array:
    """The last state of a Metropolis chain of independent proposals, (q,)."""
    key_start, key_steps = random.split(key)
    log_g, value, _ = _propose(key_start, p, q, how, dtype)

    def step(state: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
        log_g, value, log_uniform = _propose(key, p, q, how, dtype)
        is_accepted = log_uniform <= value - state[1]
        return (
            jnp.where(is_accepted, log_g, state[0]),
            jnp.where(is_accepted, value, state[1]),
        ), None

    (log_g, _), _ = lax.scan(step, (log_g, value), random.split(key_steps, NUM_STEPS))
    return log_g
