r"""Bayesian inverse problems with Laplace priors, on which learned flows are trained.

* ``deconvolution``: a train of a few spikes, blurred, with noise of 5% of the blurred signal's
  maximum; 100 unknowns, one at each of the 100 measurements.
* ``elliptic``: the coefficient :math:`e^{a}` of :math:`-(e^{a} u')' = 1, u(0) = u(1) = 0` from
  noisy values of u at points; :math:`a = \sum_k \theta_k \varphi_k` with 16 cosines.

In one dimension the flux is known up to a constant, :math:`e^a u' = C - x`, so that u is a
quadrature: :math:`u(x) = \int_0^x e^{-a(s)} (C - s)\,ds` with the C for which :math:`u(1) = 0`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

NUM_CELLS = 200  # number of cells of the quadrature
NUM_MODES = 16
_BLUR_SD = 1.5  # in units of the spacing of the measurements


class InverseProblem(NamedTuple):
    r"""A posterior :math:`\propto \exp(-|y - F(\theta)|^2/2\sigma^2 - \sum_k|\theta_k|/b_k)`.

    Attributes:
        forward: F, unknowns (dim,) to noise-free measurements (m,).
        truth: The unknowns from which the measurements were simulated, (dim,).
        y: Measurements, (m,).
        noise: Standard deviation of the measurement noise.
        scale: Scales b of the Laplace prior, (dim,).
    """

    forward: Callable[[jax.Array], jax.Array]
    truth: np.ndarray
    y: np.ndarray
    noise: float
    scale: np.ndarray

    @property
    def dim(self) -> int:
        """Number of unknowns."""
        return self.scale.size

    def model(self) -> None:
        """The posterior as a NumPyro model with the site ``theta``."""
        theta = numpyro.sample("theta", dist.Laplace(0.0, self.scale).to_event(1))
        numpyro.sample("y", dist.Normal(self.forward(theta), self.noise).to_event(1), obs=self.y)

    def log_density(self, theta: jax.Array) -> jax.Array:
        """Log joint density of unknowns (n, dim) and measurements, with all constants, (n,)."""
        residual = (self.y[None] - jax.vmap(self.forward)(theta)) / self.noise
        likelihood = -0.5 * jnp.sum(residual**2, -1)
        prior = -jnp.sum(jnp.abs(theta) / self.scale[None], -1)
        normal = self.y.size * np.log(np.sqrt(2 * np.pi) * self.noise)
        return likelihood + prior - normal - np.log(2 * self.scale).sum()


def blur_matrix(size: int, sd: float) -> np.ndarray:
    """Convolution with a normal kernel that sums to 1, zero beyond the ends, (size, size)."""
    offset = np.subtract.outer(np.arange(size), np.arange(size))
    kernel = np.exp(-0.5 * (offset / sd) ** 2)
    return kernel / (sd * np.sqrt(2 * np.pi))


def cosines(x: np.ndarray, num_modes: int = NUM_MODES) -> np.ndarray:
    """Orthonormal cosines on [0, 1] at points (n,), (n, num_modes); the first is constant."""
    k = np.arange(num_modes)
    return np.where(k == 0, 1.0, np.sqrt(2.0)) * np.cos(np.pi * np.multiply.outer(x, k))


def solve_elliptic(log_coefficient: jax.Array) -> jax.Array:
    """Solution u of -(exp(a) u')' = 1 with u = 0 at both ends, by the midpoint rule.

    Args:
        log_coefficient: a at the midpoints of n equal cells of [0, 1], (n,).

    Returns:
        u at the n + 1 ends of the cells, the first and the last of them 0.
    """
    n = log_coefficient.shape[0]
    midpoint = (jnp.arange(n) + 0.5) / n
    resistance = jnp.exp(-log_coefficient)
    constant = jnp.sum(resistance * midpoint) / jnp.sum(resistance)
    steps = resistance * (constant - midpoint) / n
    return jnp.concatenate([jnp.zeros(1, steps.dtype), jnp.cumsum(steps)])


def _measure(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)


@cache
def deconvolution(size: int = 100, num_spikes: int = 5, seed: int = 0) -> InverseProblem:
    """A few spikes of either sign and size about 1; the prior's scale is their mean size."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size)
    where = rng.choice(size, num_spikes, replace=False)
    truth[where] = rng.choice([-1.0, 1.0], num_spikes) * rng.uniform(0.5, 1.5, num_spikes)
    forward = partial(_measure, blur_matrix(size, _BLUR_SD).astype(np.float32))
    scale = np.full(size, num_spikes / size)
    return _measured(forward, truth, scale, 0.05, rng)


@cache
def elliptic(num_points: int = 40, seed: int = 0) -> InverseProblem:
    """Three modes of sixteen are active; prior scales fall with the frequency."""
    rng = np.random.default_rng(seed)
    basis = cosines((np.arange(NUM_CELLS) + 0.5) / NUM_CELLS).astype(np.float32)
    points = NUM_CELLS * np.arange(1, num_points + 1) // (num_points + 1)

    def forward(theta: jax.Array) -> jax.Array:
        return solve_elliptic(_measure(basis, theta))[points]

    truth = np.zeros(NUM_MODES)
    truth[[0, 2, 5]] = 0.5, -0.6, 0.4
    return _measured(forward, truth, 0.5 / (1 + np.arange(NUM_MODES)) ** 0.5, 0.02, rng)


def _measured(
    forward: Any, truth: np.ndarray, scale: np.ndarray, share: float, rng: np.random.Generator
) -> InverseProblem:
    """Add normal noise whose sd is a share of the largest noise-free measurement."""
    clean = np.asarray(forward(jnp.asarray(truth, jnp.float32)), np.float64)
    noise = share * float(np.abs(clean).max())
    y = clean + noise * rng.normal(size=clean.shape)
    single = np.float32
    return InverseProblem(forward, truth, y.astype(single), noise, scale.astype(single))


PROBLEMS: dict[str, Callable[[], InverseProblem]] = {
    "deconvolution": deconvolution,
    "elliptic": elliptic,
}
