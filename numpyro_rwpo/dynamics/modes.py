r"""The list of separated modes that warm-up found, and the proposals that lead from one to another.

Each mode has a weight :math:`w_k` and a normal density with mean :math:`m_k` and covariance
:math:`A_k A_k^\top`. A particle belongs to the mode whose weighted density is largest at its
position. This rule is fixed before the first draw, as is the list. There are two kinds of jumps:

- a *draw* of the mixture of all modes, as an independence proposal, in which the density that the
  user may have given is one more component;
- a *hop* to the same place in another mode, :math:`x' = m_j + A_j A_i^{-1} (x - m_i)`, where i is
  the particle's mode and j is drawn with probability :math:`w_j`. Since the way back has the
  probability :math:`w_i` and the inverse map, if x' belongs to mode j, the Metropolis ratio is
  :math:`\pi(x') w_i |A_j| / (\pi(x) w_j |A_i|)`.

A draw does not depend on where the particle is. A hop keeps what the modes have in common beyond
mean and covariance, such as tails, skewness, or a curved ridge.

Reference: Pompe, Holmes and Latuszynski (2020), A framework for adaptive MCMC targeting multimodal
distributions, Annals of Statistics 48, secs. 2.1 and 2.2 (jumps between modes).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from numpyro_rwpo.dynamics.factors import Factor, to_position, to_whitened
from numpyro_rwpo.dynamics.moves import Jump
from numpyro_rwpo.model.target import Proposal


class Modes(NamedTuple):
    """Separated modes, in the sampler's coordinates.

    Attributes:
        mean: of each mode, (num_modes, dim).
        factor: factors A of the covariances, with a leading axis of modes.
        inverse: their inverses, likewise.
        log_det: log determinants of the factors, (num_modes,).
        log_weight: logs of the weights, which sum to one, (num_modes,).
    """

    mean: jax.Array
    factor: Factor
    inverse: Factor
    log_det: jax.Array
    log_weight: jax.Array


def whitened(modes: Modes, position: jax.Array) -> jax.Array:
    """Positions (n, dim) in the coordinates of each mode, (num_modes, n, dim)."""
    return jax.vmap(lambda mean, inverse: to_whitened(inverse, position - mean[None]))(
        modes.mean, modes.inverse
    )


@jax.jit
def log_densities(modes: Modes, position: jax.Array) -> jax.Array:
    """Weighted log density of each mode at positions (n, dim), (num_modes, n)."""
    constant = modes.log_weight - modes.log_det - position.shape[1] / 2 * math.log(2 * math.pi)
    return constant[:, None] - (whitened(modes, position) ** 2).sum(-1) / 2


@jax.jit
def mode_of(modes: Modes, position: jax.Array) -> jax.Array:
    """Number of the mode to which each position (n, dim) belongs, (n,)."""
    return jnp.argmax(log_densities(modes, position), 0)


@jax.jit
def place_in(modes: Modes, number: jax.Array, noise: jax.Array) -> jax.Array:
    """Map whitened vectors (n, dim) to positions in the modes of that ``number`` (n,)."""
    factor = jax.tree.map(lambda x: x[number], modes.factor)
    return modes.mean[number] + jax.vmap(to_position)(factor, noise)


def mixture(modes: Modes, other: Proposal | None = None) -> Proposal:
    """The mixture of the modes' normal densities; half of it is the ``other`` density if given."""
    dim = modes.mean.shape[1]

    def sample(rng_key: jax.Array, num_samples: int) -> jax.Array:
        key_mode, key_noise = random.split(rng_key)
        number = random.categorical(key_mode, modes.log_weight, shape=(num_samples,))
        noise = random.normal(key_noise, (num_samples * dim,), modes.mean.dtype)
        return place_in(modes, number, noise.reshape(num_samples, dim))

    def log_prob(position: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_densities(modes, position), 0)

    normals = Proposal(sample, log_prob)
    return normals if other is None else _halves(normals, other)


def _halves(first: Proposal, second: Proposal) -> Proposal:
    """The mixture of two densities in equal parts."""

    def sample(rng_key: jax.Array, num_samples: int) -> jax.Array:
        key_which, key_first, key_second = random.split(rng_key, 3)
        is_first = random.bernoulli(key_which, shape=(num_samples,))
        drawn = (first.sample(key_first, num_samples), second.sample(key_second, num_samples))
        return jnp.where(is_first[:, None], *drawn)

    def log_prob(position: jax.Array) -> jax.Array:
        both = jnp.logaddexp(first.log_prob(position), second.log_prob(position))
        return both - math.log(2)

    return Proposal(sample, log_prob)


def hop_jump(rng_key: jax.Array, position: jax.Array, modes: Modes) -> Jump:
    """The same place in a mode that is drawn by weight, for each position (n, dim)."""
    here = mode_of(modes, position)
    there = random.categorical(rng_key, modes.log_weight, shape=here.shape)
    place = whitened(modes, position)[here, jnp.arange(here.size)]
    # Within the same mode, the map is the identity, up to rounding.
    moved = jnp.where((here == there)[:, None], position, place_in(modes, there, place))
    gain = modes.log_det - modes.log_weight
    return Jump(moved, gain[there] - gain[here], mode_of(modes, moved) == there)
