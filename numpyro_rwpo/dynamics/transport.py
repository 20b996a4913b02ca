r"""Noise-free transport: the preconditioned regularized-Wasserstein-proximal flow of an ensemble.

With :math:`\log\rho_T` the log density that the attention head fits to the particles, the flow is

.. math:: v_i = \nabla f(x_i) + \tfrac12 (x_i - \mathrm{prox}_{\lambda T}(x_i)) / T
                + \nabla \log \mathrm{heat}(x_i), \qquad x_i^+ = x_i - h\, G v_i,

where :math:`\rho_T = e^{-g/2}\,\mathrm{heat}`: half of the prior's force is explicit through the
proximal map, the other half is inside the fitted density. G is the metric of
:mod:`numpyro_rwpo.dynamics.metric`. The fixed point is close to the posterior, not equal to it: its
bias is that of the bandwidth T and of finitely many particles.

References: Tan, Osher and Li, arXiv:2308.14945; Han, Osher and Li, arXiv:2502.16773 (splitting and
attention); Tan, Osher and Li, arXiv:2509.01685 (preconditioning).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.ensemble import Ensemble, thinned
from numpyro_rwpo.dynamics.factors import to_position, to_whitened_gradient
from numpyro_rwpo.dynamics.metric import Preconditioner
from numpyro_rwpo.heads.density import relative_prox_time
from numpyro_rwpo.heads.registry import Head
from numpyro_rwpo.heads.ring import shared_heat_score
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.priors.laplace import no_prior

MAX_TRANSPORT_STEPS = 40
_PATIENCE = 6  # steps without a smaller residual before the flow is at rest
_SMALL_RESIDUAL = 0.3  # from where corrected moves go farther per gradient than the flow
_STIFFNESS = 1.5  # largest stable step of the heat part, in units of the relative prox time
_WIDE_STEP = 0.5  # step along directions in which the ensemble is more than twice too wide
_OUTLIER = 10.0  # velocities are clipped at this multiple of the median speed
_LONGEST_MOVE = 3.0  # of a particle in one step, in root-mean-square radii of the ensemble


class Progress(NamedTuple):
    """Progress of the transport.

    Attributes:
        residual: smallest speed so far of the median particle, whitened units, root mean square
            over coordinates.
        stalled: steps since the residual last fell.
        steps: steps taken.
    """

    residual: jax.Array
    stalled: jax.Array
    steps: jax.Array


def initial_progress(dtype: jnp.dtype) -> Progress:
    """A transport that has not moved."""
    zero = jnp.zeros((), int)
    return Progress(jnp.full((), jnp.inf, dtype), zero, zero)


def is_at_rest(progress: Progress, corrected: bool) -> jax.Array:
    """Whether the residual has stopped falling or, if ``corrected``, is small, scalar."""
    is_small = (progress.residual < _SMALL_RESIDUAL) & corrected
    return (progress.stalled >= _PATIENCE) | is_small


def _at_most(limit: jax.Array, norm: jax.Array) -> jax.Array:
    """What to multiply vectors with to shorten those whose ``norm`` exceeds ``limit``."""
    return jnp.minimum(1.0, limit / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))


def transport_step(
    ensemble: Ensemble,
    progress: Progress,
    preconditioner: Preconditioner,
    target: Target,
    *,
    attention: Head,
    relative_time: float,
) -> tuple[Ensemble, Progress]:
    """Move the ensemble one step along the flow.

    Args:
        ensemble: evaluated particles (num_particles, dim).
        progress: so far.
        preconditioner: the metric of this ensemble's moments.
        target: the posterior.
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.

    Returns:
        The ensemble with its particles moved, potentials and gradients still the old ones, and the
        progress.
    """
    particles = ensemble.particles
    num_particles, dim = particles.shape
    factor, width = preconditioner.factor, jnp.sqrt(preconditioner.spectrum)
    prior = target.prior or no_prior(dim, particles.dtype)
    prox_time = relative_prox_time(particles, relative_time)
    density = attention.fit(particles, prior, prox_time)
    explicit = ensemble.gradient + prior.moreau_gradient(particles, prox_time) / 2
    implicit = shared_heat_score(density, particles, target.placement)
    velocity = to_whitened_gradient(factor, explicit + implicit)
    speed = jnp.linalg.norm(velocity, axis=1, keepdims=True)
    typical = jnp.median(thinned(speed))
    velocity = velocity * _at_most(_OUTLIER * typical, speed)

    # The width sqrt(m) is the ensemble's variance over the target's along each direction. Too
    # narrow: at most double it; too wide: the heat part is weak there and allows a longer step.
    step_size = jnp.where(width > 2.0, _WIDE_STEP, jnp.minimum(_STIFFNESS * relative_time, width))
    move = -step_size[None] * velocity
    # In whitened coordinates the ensemble's mean squared radius is the sum of its widths.
    longest = _LONGEST_MOVE * jnp.sqrt(width.sum())
    move = move * _at_most(longest, jnp.linalg.norm(move, axis=1, keepdims=True))

    residual = typical / math.sqrt(dim)
    fell = residual < 0.98 * progress.residual
    progress = Progress(
        residual=jnp.minimum(progress.residual, residual),
        stalled=jnp.where(fell, 0, progress.stalled + 1),
        steps=progress.steps + 1,
    )
    return ensemble._replace(particles=particles + to_position(factor, move)), progress
