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

# The largest number of steps that are taken where exact moves follow. Each of them takes one
# gradient for every particle.
MAX_TRANSPORT_STEPS = 40


class Progress(NamedTuple):
    """Progress of the transport.

    Attributes:
        residual: the smallest median speed of the particles so far, in whitened units, as a root
            mean square over coordinates.
        stalled: number of steps since the residual last fell.
        steps: number of steps.
    """

    residual: jax.Array
    stalled: jax.Array
    steps: jax.Array


def initial_progress(dtype: jnp.dtype) -> Progress:
    """The progress before the first step."""
    zero = jnp.zeros((), int)
    return Progress(jnp.full((), jnp.inf, dtype), zero, zero)


def is_at_rest(progress: Progress, corrected: bool) -> jax.Array:
    """Whether the flow has come to rest, scalar: no smaller residual for six steps in succession.

    If ``corrected``, it need not come to rest: once the residual is below 0.3, exact moves go
    farther per gradient than the flow.
    """
    is_small = (progress.residual < 0.3) & corrected
    return (progress.stalled >= 6) | is_small


def _at_most(limit: jax.Array, norm: jax.Array) -> jax.Array:
    """Factors that shorten the vectors whose ``norm`` exceeds ``limit`` to that length."""
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
        ensemble: evaluated particles.
        progress: the progress before this step.
        preconditioner: the metric that follows from this ensemble's moments.
        target: the posterior.
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.

    Returns:
        The ensemble with its particles moved, but with the potentials and gradients from before
        the step, and the progress.
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
    # Particles on a wall must not be carried far beyond the others.
    velocity = velocity * _at_most(10.0 * typical, speed)

    # The width sqrt(m) is the ensemble's variance over the target's along each direction. Where the
    # ensemble is too narrow, a step at most doubles its variance. The heat part is stiff: it is
    # stable up to steps of 1.5 relative prox times. Where the ensemble is more than twice too wide,
    # the heat part is weak and allows a longer step.
    step_size = jnp.where(width > 2.0, 0.5, jnp.minimum(1.5 * relative_time, width))
    move = -step_size[None] * velocity
    # No particle moves by more than three root-mean-square radii of the ensemble. In whitened
    # coordinates the mean squared radius is the sum of the widths.
    longest = 3.0 * jnp.sqrt(width.sum())
    move = move * _at_most(longest, jnp.linalg.norm(move, axis=1, keepdims=True))

    residual = typical / math.sqrt(dim)
    # A residual that falls by less than 2 % in a step counts as constant.
    fell = residual < 0.98 * progress.residual
    progress = Progress(
        residual=jnp.minimum(progress.residual, residual),
        stalled=jnp.where(fell, 0, progress.stalled + 1),
        steps=progress.steps + 1,
    )
    return ensemble._replace(particles=particles + to_position(factor, move)), progress
