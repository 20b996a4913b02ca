r"""The centering of an ensemble: in which coordinates sites with latent scales are moved.

A site b = location + scale z can be moved in z or in b (:mod:`numpyro_rwpo.model.laplace_sites`).
Since the moves suit normal densities, the better coordinates are those in which the ensemble is
closer to normal. With the ensemble's density q, the normal density N with the same moments, and the
entropy H,

.. math:: \mathrm{KL}(q_b \| N_b) - \mathrm{KL}(q_z \| N_z)
          = H(N_b) - H(N_z) - \mathrm{E} \sum \log \mathrm{scale},

which depends on the particles alone and needs no gradient. Every site is asked on its own whether
it should change over, as the data may inform one well and another hardly. All chains decide
together, because their coordinates must have the same meaning.

Reference: Gorinova, Moore and Hoffman (2020), Automatic reparameterisation of probabilistic
programs, who choose centerings by variational inference.
"""

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.metric import ensemble_moments, without_outliers
from numpyro_rwpo.model.site_bits import is_centered
from numpyro_rwpo.model.target import Target

# A site that is standardized is centered if the ensembles are closer to normal then by this number
# of nats. A smaller difference may be due to chance with 64 particles. A centered site is
# standardized if that is any better: if its scale has a neck, in which particles hardly move, it
# looks closer to normal than it is.
CLEARLY = 0.5


def recentered(
    particles: jax.Array, target: Target, dense: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The particles with each site in the centering in which all ensembles are closer to normal.

    Args:
        particles: particles in the target's centering, (num_particles, dim).
        target: a posterior with sites that have two centerings.
        dense: whether the metric contains correlations, or only variances.

    Returns:
        The particles, which are not evaluated if a site has changed over; the centering, scalar;
        and whether any site has changed over, scalar.
    """
    assert target.recenter is not None
    assert target.site_bits is not None
    centering = target.centering
    there, log_scale = target.recenter(particles, jnp.broadcast_to(centering, particles.shape[:1]))
    bits = 2.0 ** jnp.arange(log_scale.shape[1])
    is_site = target.site_bits[None] == bits[:, None]
    each = jnp.where(is_site[:, None], there[None], particles[None])
    # The median is used, because a single particle far out must not decide.
    jacobian = jnp.where(is_centered(centering, bits), -1, 1) * jnp.median(log_scale, axis=0)
    entropy = jax.vmap(lambda x: _normal_entropy(x, dense))(each)
    excess = entropy - _normal_entropy(particles, dense) - jacobian
    least = jnp.where(is_centered(centering, bits), 0.0, CLEARLY)
    is_new = target.placement.chain_mean(excess) < -least
    turned = jnp.where(is_centered(centering, bits), -bits, bits)
    return (
        jnp.where((is_site & is_new[:, None]).any(0)[None], there, particles),
        centering + jnp.where(is_new, turned, 0.0).sum(),
        is_new.any(),
    )


def _normal_entropy(particles: jax.Array, dense: bool) -> jax.Array:
    """Entropy of the normal density with the particles' moments, up to a constant, scalar."""
    particles, _ = without_outliers(particles, particles)
    return log_determinant(ensemble_moments(particles, particles, dense).covariance) / 2


def log_determinant(covariance: jax.Array) -> jax.Array:
    """Log determinant of a dense or diagonal covariance, scalar; -inf if it is singular."""
    if covariance.ndim == 1:
        return jnp.log(covariance).sum()
    sign, log_det = jnp.linalg.slogdet(covariance)
    return jnp.where(sign > 0, log_det, -jnp.inf)
