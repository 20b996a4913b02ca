r"""The update of Han, Osher and Li (2025), "BRWP-splitting", arXiv:2502.16773, as published.

For a target exp(-beta (f + g)) with g the L1 norm times a rate, one step of size h is

.. math:: y_i = x_i - h \nabla f(x_i), \qquad
    x_i^+ = y_i + \tfrac12 \Bigl( S_{\lambda h}(y_i) - \sum_j w_{ij} y_j \Bigr),

with the soft threshold S and the attention weights of the regularized Wasserstein proximal operator
at prox time T = h. This is a gradient step on f, followed by a step on g and the entropy together.
The update is provided for comparison with the paper; the sampler itself uses
:mod:`numpyro_rwpo.dynamics.transport`.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_rwpo.heads.density import check_particles
from numpyro_rwpo.heads.online_softmax import streamed_attention
from numpyro_rwpo.priors.laplace import laplace_prior
from numpyro_rwpo.support.checks import check_choice


def splitting_step(
    particles: ArrayLike,
    grad_f: Callable[[jax.Array], jax.Array],
    rate: ArrayLike,
    step_size: ArrayLike,
    *,
    inverse_temperature: ArrayLike = 1.0,
    attention: Literal["joint", "marginal"] = "joint",
    normalizer: Literal["exact", "laplace"] = "exact",
) -> jax.Array:
    """Move every particle by one noise-free step of BRWP-splitting.

    Attention is exact and takes O(num_particles^2 dim) time. It is streamed, so memory is linear.

    Args:
        particles: x, (num_particles, dim).
        grad_f: Gradient of the smooth potential f, (num_particles, dim) to the same shape.
        rate: lambda >= 0, scalar or (dim,), one over position units; the kink is at 0.
        step_size: h > 0, position units squared; also the prox time.
        inverse_temperature: beta > 0.
        attention: ``"joint"`` for one softmax over d-dimensional distances, as in the paper;
            ``"marginal"`` for one softmax per coordinate, as in the authors' MATLAB code.
        normalizer: ``"exact"``, or ``"laplace"`` for the authors' Laplace approximation of Z.

    Returns:
        The particles after the step, (num_particles, dim).

    Raises:
        TypeError: If ``rate`` is not a real number or array.
        ValueError: If a shape does not fit, a concrete ``rate`` is negative, a concrete
            ``step_size`` or ``inverse_temperature`` is not a positive number, or ``attention`` or
            ``normalizer`` is unknown.
    """
    particles = jnp.asarray(particles)
    particles = particles.astype(jnp.result_type(float, particles))
    check_particles(particles)
    check_choice("attention", attention, ("joint", "marginal"))
    check_choice("normalizer", normalizer, ("exact", "laplace"))
    _check_positive_scalar("step_size", step_size)
    _check_positive_scalar("inverse_temperature", inverse_temperature)
    prior = laplace_prior(rate)
    if prior.rate_right.shape not in ((), particles.shape[1:]):
        raise ValueError(
            f"`rate` must be a scalar or have shape (dim,) = {particles.shape[1:]}; "
            f"got shape {prior.rate_right.shape}."
        )
    gradient = _checked_gradient(grad_f, particles)
    prior = jax.tree.map(lambda field: field.astype(particles.dtype), prior)
    step_size = jnp.asarray(step_size, particles.dtype)
    moved = particles - step_size * gradient
    log_normalizer = prior.log_normalizer(moved, step_size, inverse_temperature, method=normalizer)
    if attention == "joint":
        log_normalizer = jnp.sum(log_normalizer, 1, keepdims=True)
    scale = jnp.sqrt(2 * step_size / inverse_temperature)
    _, displacement = streamed_attention(moved, moved, log_normalizer, scale)
    return moved + 0.5 * (prior.prox(moved, step_size) - moved - displacement)


def _checked_gradient(grad_f: Callable[[jax.Array], jax.Array], particles: jax.Array) -> jax.Array:
    """The gradient at the particles, after a check of its shape."""
    gradient = jnp.asarray(grad_f(particles))
    if gradient.shape != particles.shape:
        raise ValueError(
            "`grad_f` must return gradients in the shape of the particles, "
            f"{particles.shape}; got {gradient.shape}. Wrap a gradient of one particle in jax.vmap."
        )
    return gradient


def _check_positive_scalar(name: str, value: ArrayLike) -> None:
    if jnp.shape(value) != ():
        raise ValueError(f"`{name}` must be a scalar; got shape {jnp.shape(value)}.")
    if not isinstance(value, jax.core.Tracer):
        number = float(np.asarray(value))
        if not (number > 0 and np.isfinite(number)):
            raise ValueError(f"`{name}` must be positive and finite; got {value!r}.")
