r"""The centering of an ensemble: in which coordinates sites with latent scales are moved.

A site b = location + scale z can be moved in z or in b (:mod:`numpyro_rwpo.model.laplace_sites`).
Since the moves suit normal densities, the better coordinates are those in which the ensemble is
closer to normal. With the ensemble's density q, the normal density N with the same moments, and the
entropy H,

.. math:: \mathrm{KL}(q_b \| N_b) - \mathrm{KL}(q_z \| N_z)
          = H(N_b) - H(N_z) - \mathrm{E} \sum \log \mathrm{scale},

which depends on the particles alone and needs no gradient. All chains decide together, because
their coordinates must have the same meaning.

Reference: Gorinova, Moore and Hoffman (2020), Automatic reparameterisation of probabilistic
programs, who choose centerings by variational inference.
"""

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.metric import ensemble_moments, without_outliers
from numpyro_rwpo.model.target import Target

# The ensembles change over to the other centering if they are closer to normal there by this number
# of nats. A smaller difference may be due to chance with 64 particles.
CLEARLY = 0.5


def recentered(
    particles: jax.Array, target: Target, dense: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The particles in the centering in which the ensembles of all chains are closest to normal.

    Args:
        particles: particles in the target's centering, (num_particles, dim).
        target: a posterior with sites that have two centerings.
        dense: whether the metric contains correlations, or only variances.

    Returns:
        The particles, which are not evaluated if the centering has changed; the centering, scalar;
        and whether it has changed, scalar.
    """
    assert target.recenter is not None
    centering = target.centering
    there, log_scale = target.recenter(particles, jnp.broadcast_to(centering, particles.shape[:1]))
    # The median is used, because a single particle far out must not decide.
    jacobian = jnp.where(centering > 0, -1, 1) * jnp.median(log_scale)
    excess = _normal_entropy(there, dense) - _normal_entropy(particles, dense) - jacobian
    is_new = target.placement.chain_mean(excess) < -CLEARLY
    return (
        jnp.where(is_new, there, particles),
        jnp.where(is_new, 1 - centering, centering),
        is_new,
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
