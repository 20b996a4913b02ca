"""Whether the ensembles of all chains look like draws from one distribution that stays the same.

Chains that start alike can agree long before they have arrived. They are therefore compared with
each other and, particle by particle, with themselves some updates ago.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.model.target import Target

# Largest disagreement of the ensembles of all chains. Of 64 independent draws each it is 1/64 on
# average, and below 0.1 for all of a thousand statistics of four chains. It makes R-hat 1.05.
MAX_DISAGREEMENT = 0.1
# Standard deviations at which statistics are clipped: one straggler must not decide for all.
CLIP = 3.0
# Updates after which the ensemble is compared with its past, relative to those of the past: from
# closer by, it cannot have gone far.
AGE = 1.5


class Past(NamedTuple):
    """The ensemble after an earlier update, the latest whose number is a power of two.

    Attributes:
        particles: positions, (num_particles, dim).
        potential: prior included, (num_particles,).
        updates: number of that update, scalar.
    """

    particles: jax.Array
    potential: jax.Array
    updates: jax.Array


def no_past(num_particles: int, dim: int, dtype: jnp.dtype) -> Past:
    """A past before the first update."""
    zeros = jnp.zeros((num_particles, dim), dtype)
    return Past(zeros, jnp.zeros(num_particles, dtype), jnp.zeros((), int))


def remember(past: Past, ensemble: Ensemble, height: jax.Array, updates: jax.Array) -> Past:
    """The past of the next update.

    Args:
        past: of this update.
        ensemble: particles after this update.
        height: potential at them, (num_particles,).
        updates: number of this update, scalar.
    """
    is_new = is_renewed(updates)
    now = Past(ensemble.particles, height, updates)
    return jax.tree.map(lambda new, old: jnp.where(is_new, new, old), now, past)


def is_renewed(updates: jax.Array) -> jax.Array:
    """Whether the past is that after this number of updates, a power of two."""
    return (updates & (updates - 1)) == 0


def largest_allowed_disagreement(num_statistics: int, num_particles: int) -> float:
    """The disagreement below which ensembles agree.

    It is larger for few particles, whose means scatter more, and for many statistics. Of m
    statistics of independent draws in four chains of N particles each, the largest disagreement is
    near 2 log(m) / (3 N), the largest of m chi-squared variables over 3 N; twice that is allowed.
    """
    few = MAX_DISAGREEMENT * max(1.0, 64 / num_particles)
    return max(few, 4 * math.log(num_statistics) / (3 * num_particles))


def disagreement(
    ensemble: Ensemble, height: jax.Array, center: jax.Array, target: Target
) -> jax.Array:
    """The largest ratio of the variance of the chains' means to the variance within chains, scalar.

    This is about the square of R-hat, minus one. It is computed for the positions, their absolute
    deviations, and the potential, and every particle counts as a draw. For a single chain it is 0.

    Args:
        ensemble: particles of one chain.
        height: potential at them, (num_particles,).
        center: approximate mean of the positions, (dim,).
        target: the posterior, whose placement has the name of the axis of chains.
    """
    placement = target.placement
    deviation = ensemble.particles - placement.chain_mean(center)[None]
    above = (height - placement.chain_mean(height.mean()))[:, None]
    values = jnp.concatenate([deviation, jnp.abs(deviation), above], axis=1)
    mean = values.mean(0)
    within = placement.chain_mean(values.var(0, ddof=1))
    between = placement.chain_mean((mean - placement.chain_mean(mean)) ** 2)
    number = placement.num_chains
    between = between * number / max(number - 1, 1)
    ratio = between / jnp.maximum(within, jnp.finfo(within.dtype).tiny)
    return jnp.max(jnp.where(jnp.isnan(ratio), jnp.inf, ratio))


def largest_allowed_drift(num_statistics: int) -> float:
    """The drift below which the ensembles may be at rest.

    The largest of m standard normal variables is near sqrt(2 log m). About every other look at
    ensembles at rest finds less, so that these wait for no more than a few further updates.
    """
    return math.sqrt(2 * math.log(num_statistics))


def drift(
    ensemble: Ensemble, height: jax.Array, past: Past, center: jax.Array, target: Target
) -> jax.Array:
    """How far the particles of all chains have moved in one direction since the past, scalar.

    It is the largest z score of a mean change, over the positions, their squared deviations and the
    potential, in which every particle counts as one pair of before and after. Pairs have in common
    what a particle has not forgotten, and so a drift shows long before two separate ensembles of
    the same size would differ.

    Args:
        ensemble: particles of one chain.
        height: potential at them, (num_particles,).
        past: the same particles after an earlier update.
        center: approximate mean of the positions, (dim,).
        target: the posterior, whose placement has the name of the axis of chains.
    """
    placement = target.placement
    center = jnp.append(placement.chain_mean(center), placement.chain_mean(height.mean()))
    now = jnp.concatenate([ensemble.particles, height[:, None]], axis=1) - center[None]
    before = jnp.concatenate([past.particles, past.potential[:, None]], axis=1) - center[None]
    scale = jnp.sqrt(placement.chain_mean((now**2).mean(0, keepdims=True)))
    scale = jnp.where(scale > 0, scale, 1.0)
    now, before = jnp.clip(now / scale, -CLIP, CLIP), jnp.clip(before / scale, -CLIP, CLIP)
    change = jnp.concatenate([now - before, (now**2 - before**2)[:, :-1]], axis=1)
    mean = placement.chain_mean(change.mean(0))
    square = placement.chain_mean((change**2).mean(0))
    number = placement.num_chains * change.shape[0]
    z = jnp.abs(mean) * jnp.sqrt(number / jnp.maximum(square, jnp.finfo(square.dtype).tiny))
    return jnp.max(jnp.where(jnp.isnan(z), jnp.inf, z))
