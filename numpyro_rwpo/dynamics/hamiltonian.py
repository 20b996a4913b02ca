r"""Exact correction: Hamiltonian Monte Carlo on every particle, split so that steps can be long.

With the potential U = f + g, f smooth, g the Laplace prior, a step is half a kick with the gradient
of a residual potential r, the flow of :math:`|p|^2/2 + U - r` for one step, half a kick. Whatever
the flow does well costs no energy error and no gradient of f. It is reversible and preserves
volume, so plain Metropolis acceptance leaves :math:`\exp(-U)` invariant. Three kinds of flow:

- *exact*, in a diagonal metric: r = f, and each coordinate follows g in closed form, kinks and all.
- *free*: r = f too, in the dense or low-rank metric A. With g, which has no closed form there, the
  flow is a few substeps of straight lines and kicks with g, which no gradient of f is spent on.
- *harmonic*: the same with a rotation for the straight line. The normal density with the running
  mean m and covariance :math:`A A^T` stands for the posterior, except for g: the flow's potential
  is :math:`|A^{-1}(x - m)|^2/2 + g(x) - \bar g(x)`, where :math:`\bar g` is the quadratic whose
  gradient is closest to that of g under the normal density, and :math:`r = U` minus that. On a
  normal posterior r is constant, and near one a step can be a quarter turn.

Where that normal density, or a proposal of the user's in its place, is close enough to the
posterior, sweeps with independent draws from it come before the Hamiltonian ones: one gradient
each, and a particle that accepts has forgotten its past.

Where the posterior has narrow parts, the step size that suits almost all particles leaves those in
them where they are. One sweep in a few then takes shorter steps, and more of them. Which one does
not depend on where the particles are, so every sweep leaves the posterior invariant.

References: Shahbaba, Lan, Johnson and Neal (2014), split HMC; Pakman and Paninski (2014), exact
HMC for piecewise potentials; Tuckerman, Berne and Martyna (1992), substeps for the cheap force;
Tierney (1994), Markov chains for exploring posterior distributions; Neal (2011), MCMC using
Hamiltonian dynamics, sec. 5.4.2.2, on step sizes drawn at random.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

from numpyro_rwpo.dynamics.ensemble import Ensemble, is_usable, potential
from numpyro_rwpo.dynamics.factors import (
    Factor,
    is_diagonal,
    squared,
    times_squared,
    to_position,
    to_whitened,
    to_whitened_gradient,
)
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.control_flow import run_if

TRAJECTORY_LENGTH = math.pi / 2  # a quarter turn: a Gaussian forgets its start
MAX_STEPS = 256  # of one trajectory
MAX_SWEEPS = 128  # of one refresh, between two draws of a particle
DIVERGENCE_THRESHOLD = 1000.0  # energy error, as in NUTS
STEP_JITTER = 0.25  # largest relative jitter of a particle's step size
SHORT_STEP = 1 / 3  # of short steps, in units of the step size
STUCK = 0.1  # mean acceptance probability below which a particle is called stuck
NUM_SUBSTEPS = 8  # of the flow where the Laplace prior has no closed form


class Metric(NamedTuple):
    """Coordinates in which the momentum is standard normal, and the flow in them.

    Attributes:
        factor: x = A y.
        scale: standard deviations, (dim,): the diagonal factor in which the prior flows exactly.
        is_exact: scalar; whether the prior flows exactly (then A = diag(scale)).
        is_harmonic: scalar; whether the flow rotates about the reference's mean (then A is the
            reference's factor).
        covariance: A A^T, in the form of the factor.
        prior_slope: slope at the reference's mean of the quadratic that stands for the prior in the
            residual potential, (dim,); 0 unless the flow is harmonic.
        prior_curvature: its curvature, (dim,); likewise.
    """

    factor: Factor
    scale: jax.Array
    is_exact: jax.Array
    is_harmonic: jax.Array
    covariance: Factor
    prior_slope: jax.Array
    prior_curvature: jax.Array


class Reference(NamedTuple):
    """A normal density close to the posterior, for rotations and independent proposals.

    Attributes:
        mean: (dim,).
        factor: A, the covariance being A A^T.
        inverse: the inverse of A, in the same form.
    """

    mean: jax.Array
    factor: Factor
    inverse: Factor

    def potential(self, particles: jax.Array) -> jax.Array:
        """Minus the log density up to a constant, (n, dim) -> (n,)."""
        return (to_whitened(self.inverse, particles - self.mean) ** 2).sum(-1) / 2


class Tuning(NamedTuple):
    """What a refresh needs to know; frozen before sampling.

    Attributes:
        metric: for the Hamiltonian sweeps.
        reference: for the independent proposals.
        step_size: scalar, whitened units.
        num_independent: sweeps with independent proposals, scalar; they come first.
        num_hamiltonian: Hamiltonian sweeps, scalar.
        num_short: how many of these take short steps, scalar: the first.
    """

    metric: Metric
    reference: Reference
    step_size: jax.Array
    num_independent: jax.Array
    num_hamiltonian: jax.Array
    num_short: jax.Array


class SweepInfo(NamedTuple):
    """What one sweep did.

    Attributes:
        accept_prob: acceptance probability of each particle, (num_particles,).
        diverging: energy error above 1000 or not finite, (num_particles,).
        num_steps: leapfrog steps (gradient evaluations) of each particle, scalar.
    """

    accept_prob: jax.Array
    diverging: jax.Array
    num_steps: jax.Array


class Phase(NamedTuple):
    """Position and momentum on the way.

    Attributes:
        ensemble: evaluated particles.
        momentum: whitened, (num_particles, dim).
        whitened: positions relative to the reference, A^-1 (x - m), (num_particles, dim).
        force: whitened gradient of the residual potential, (num_particles, dim).
    """

    ensemble: Ensemble
    momentum: jax.Array
    whitened: jax.Array
    force: jax.Array


def make_metric(
    factor: Factor,
    scale: jax.Array,
    mean: jax.Array,
    target: Target,
    *,
    is_exact: ArrayLike,
    is_harmonic: ArrayLike,
) -> Metric:
    """A metric with all that its flow needs and that no step changes.

    Args:
        factor: A.
        scale: standard deviations, (dim,).
        mean: of the reference, (dim,).
        target: the posterior.
        is_exact: scalar; whether the prior flows exactly.
        is_harmonic: scalar; whether the flow rotates.
    """
    slope, curvature = jnp.zeros_like(scale), jnp.zeros_like(scale)
    if target.prior is not None:
        slope, curvature = target.prior.normal_fit(mean, scale)
    return Metric(
        factor,
        scale,
        jnp.asarray(is_exact),
        jnp.asarray(is_harmonic),
        squared(factor),
        jnp.where(is_harmonic, slope, 0.0),
        jnp.where(is_harmonic, curvature, 0.0),
    )


def start_phase(ensemble: Ensemble, momentum: jax.Array, tuning: Tuning) -> Phase:
    """The phase of an evaluated ensemble with whitened momenta (num_particles, dim)."""
    metric, reference = tuning.metric, tuning.reference
    deviation = ensemble.particles - reference.mean
    whitened = to_whitened(reference.inverse, deviation)
    gradient = ensemble.gradient + metric.prior_slope + metric.prior_curvature * deviation
    force = to_whitened_gradient(metric.factor, gradient)
    force = force - jnp.where(metric.is_harmonic, whitened, 0.0)
    return Phase(ensemble, momentum, whitened, force)


def _turn(
    position: jax.Array, velocity: jax.Array, time: jax.Array, is_harmonic: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Positions and velocities, (n, dim), after a rotation by ``time`` or a straight line."""
    cos = jnp.where(is_harmonic, jnp.cos(time), 1.0)
    sin = jnp.sin(time)
    return (
        cos * position + jnp.where(is_harmonic, sin, time) * velocity,
        cos * velocity - jnp.where(is_harmonic, sin, 0.0) * position,
    )


def _flow(
    phase: Phase, step_size: jax.Array, num_substeps: jax.Array, target: Target, tuning: Tuning
) -> tuple[jax.Array, jax.Array]:
    """Positions and whitened momenta, (num_particles, dim), after the flow between two kicks."""
    metric, reference = tuning.metric, tuning.reference
    particles, momentum = phase.ensemble.particles, phase.momentum
    deviation = particles - reference.mean
    velocity = to_position(metric.factor, momentum)
    prior = target.prior
    if prior is None:
        deviation, _ = _turn(deviation, velocity, step_size, metric.is_harmonic)
        _, momentum = _turn(phase.whitened, momentum, step_size, metric.is_harmonic)
        return reference.mean + deviation, momentum

    exact, exact_momentum = prior.scaled(metric.scale).hamiltonian_flow(
        particles / metric.scale, momentum, step_size
    )
    exact = metric.scale * exact
    if is_diagonal(metric.factor):  # then warm-up tries no other flow, see warmup.Candidates
        return exact, exact_momentum

    substep = step_size / NUM_SUBSTEPS

    def one_substep(
        _: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        deviation, velocity = _turn(*carry, substep / 2, metric.is_harmonic)
        kick = prior.subgradient(reference.mean + deviation)
        kick = kick - metric.prior_slope - metric.prior_curvature * deviation
        velocity = velocity - substep * times_squared(metric.covariance, kick)
        return _turn(deviation, velocity, substep / 2, metric.is_harmonic)

    deviation, velocity = lax.fori_loop(0, num_substeps, one_substep, (deviation, velocity))
    return (
        jnp.where(metric.is_exact, exact, reference.mean + deviation),
        jnp.where(metric.is_exact, exact_momentum, to_whitened(reference.inverse, velocity)),
    )


class Jump(NamedTuple):
    """Where a sweep puts the particles instead of letting them drift, if it does.

    Attributes:
        is_taken: scalar.
        particles: independent draws, (num_particles, dim).
        potential: minus the log density that these were drawn from, (num_particles,); up to a
            constant, as is the next.
        own: the same where the particles come from.
    """

    is_taken: jax.Array
    particles: jax.Array
    potential: jax.Array
    own: jax.Array


def leapfrog_step(
    phase: Phase, step_size: jax.Array, target: Target, tuning: Tuning, jump: Jump | None = None
) -> Phase:
    """One step of kick, flow, kick; ``step_size`` (num_particles, 1)."""
    is_substepped = ~tuning.metric.is_exact
    if jump is not None:
        is_substepped = is_substepped & ~jump.is_taken
    phase = phase._replace(momentum=phase.momentum - step_size / 2 * phase.force)
    num_substeps = jnp.where(is_substepped, NUM_SUBSTEPS, 0)
    particles, momentum = _flow(phase, step_size, num_substeps, target, tuning)
    if jump is not None:
        particles = jnp.where(jump.is_taken, jump.particles, particles)
    ensemble = Ensemble(particles, *target.value_and_grad(particles))
    phase = start_phase(ensemble, momentum, tuning)
    return phase._replace(momentum=momentum - step_size / 2 * phase.force)


def independent_jump(
    rng_key: jax.Array,
    particles: jax.Array,
    momentum: jax.Array,
    target: Target,
    reference: Reference,
    is_taken: jax.Array,
) -> Jump:
    """Draws from the user's proposal; without one from the reference, driven by the momenta.

    Args:
        rng_key: one key, for draws from a proposal.
        particles: where they are, (num_particles, dim).
        momentum: standard normal, whitened, (num_particles, dim).
        target: the posterior, with the proposal if there is one.
        reference: the normal density that stands for it otherwise.
        is_taken: scalar; a proposal is only drawn from where true.
    """
    proposal = target.proposal
    if proposal is None:
        drawn = reference.mean + to_position(reference.factor, momentum)
        return Jump(is_taken, drawn, (momentum**2).sum(-1) / 2, reference.potential(particles))

    key = random.fold_in(rng_key, 0)  # the momenta's randomness comes from the key itself

    def draw(_: Any) -> Any:
        drawn = target.placement.rows(proposal.sample(key, particles.shape[0]))
        log_prob = proposal.log_prob(jnp.stack([drawn, particles]).reshape(-1, drawn.shape[1]))
        potential, own = -log_prob.reshape(2, -1)
        return drawn, potential, own

    nothing = jnp.zeros_like(particles[:, 0])
    return Jump(is_taken, *run_if(is_taken, draw, (particles, nothing, nothing)))


def trajectory_steps(step_size: jax.Array) -> jax.Array:
    """Number of leapfrog steps of a trajectory, at least one."""
    return jnp.clip(jnp.round(TRAJECTORY_LENGTH / step_size), 1, MAX_STEPS).astype(int)


def sweep(
    rng_key: jax.Array,
    ensemble: Ensemble,
    target: Target,
    tuning: Tuning,
    is_independent: ArrayLike = False,
    is_short: ArrayLike = False,
) -> tuple[Ensemble, SweepInfo]:
    """Move every particle once, with Metropolis acceptance.

    By split HMC; or, where ``is_independent``, to an independent draw. The latter shares the code:
    it is one step whose drift is a jump, and the densities of both ends under what was drawn from
    stand for the momenta's (the independence sampler of Tierney, 1994, sec. 2.3.3).

    Args:
        rng_key: one key.
        ensemble: particles with their smooth potential and gradient.
        target: the posterior.
        tuning: frozen; each particle's step size is jittered by up to 25 %.
        is_independent: scalar.
        is_short: scalar; whether steps are a third as long, and three times as many.

    Returns:
        The moved ensemble, and acceptance, divergences and number of steps.
    """
    particles = ensemble.particles
    num_particles, dim = particles.shape
    step_size = tuning.step_size * jnp.where(is_short, SHORT_STEP, 1.0)
    # One call for all randomness, flat: each call and each axis costs XLA a while to compile.
    low = jnp.nextafter(jnp.array(-1.0, particles.dtype), jnp.array(0.0, particles.dtype))
    noise = random.uniform(rng_key, (num_particles * (dim + 2),), particles.dtype, low, 1.0)
    noise = target.placement.rows(target.placement.rows(noise).reshape(num_particles, dim + 2))
    momentum = math.sqrt(2) * lax.erf_inv(noise[:, :dim])
    jitter = 1 + STEP_JITTER * noise[:, dim, None]
    uniform = (1 + noise[:, dim + 1]) / 2
    num_steps = jnp.where(is_independent, 1, trajectory_steps(step_size))
    jump = independent_jump(
        rng_key, particles, momentum, target, tuning.reference, jnp.asarray(is_independent)
    )
    start = start_phase(ensemble, momentum, tuning)
    _, end = lax.while_loop(
        lambda carry: carry[0] < num_steps,
        lambda carry: (
            carry[0] + 1,
            leapfrog_step(carry[1], step_size * jitter, target, tuning, jump),
        ),
        (jnp.zeros_like(num_steps), start),
    )
    kinetic = jnp.where(is_independent, jump.potential, (momentum**2).sum(-1) / 2)
    end_kinetic = jnp.where(is_independent, jump.own, (end.momentum**2).sum(-1) / 2)
    end_potential = potential(end.ensemble, target)
    energy_error = end_potential + end_kinetic - potential(ensemble, target) - kinetic
    valid = is_usable(end_potential, end.ensemble.gradient) & ~jnp.isnan(energy_error)
    accept_prob = jnp.where(valid, jnp.exp(-jnp.maximum(energy_error, 0.0)), 0.0)
    is_accepted = uniform < accept_prob
    moved = jax.tree.map(
        lambda new, old: jnp.where(is_accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        end.ensemble,
        ensemble,
    )
    diverging = ~jnp.asarray(is_independent) & (~valid | (energy_error > DIVERGENCE_THRESHOLD))
    return moved, SweepInfo(accept_prob, diverging, num_steps)


class Refresh(NamedTuple):
    """What the sweeps of one refresh did to each particle.

    Attributes:
        accept_prob: mean acceptance probability of the Hamiltonian sweeps, (num_particles,).
        diverging: whether any of them diverged, (num_particles,).
        num_steps: gradient evaluations of each particle, scalar.
    """

    accept_prob: jax.Array
    diverging: jax.Array
    num_steps: jax.Array


def no_refresh(particles: jax.Array) -> Refresh:
    """Before anything was refreshed."""
    count = particles.shape[0]
    return Refresh(jnp.ones(count, particles.dtype), jnp.zeros(count, bool), jnp.zeros((), int))


def refresh_ensemble(
    rng_key: jax.Array, refresh_id: jax.Array, ensemble: Ensemble, target: Target, tuning: Tuning
) -> tuple[Ensemble, Ensemble, Refresh]:
    """Sweep as often as ``tuning`` says, at most ``MAX_SWEEPS`` times.

    Args:
        rng_key: one key for all refreshes.
        refresh_id: scalar integer that tells this refresh from all others under the same key.
        ensemble: evaluated particles.
        target: the posterior.
        tuning: metric, step size and number of sweeps.

    Returns:
        The ensemble, the ensemble one sweep earlier, and what was done.
    """
    num_sweeps = tuning.num_independent + tuning.num_hamiltonian

    def one_sweep(carry: tuple[jax.Array, Ensemble, Ensemble, Refresh]) -> tuple[Any, ...]:
        done, _, current, total = carry
        key = random.fold_in(rng_key, MAX_SWEEPS * refresh_id + done)
        is_independent = done < tuning.num_independent
        is_short = ~is_independent & (done < tuning.num_independent + tuning.num_short)
        moved, info = sweep(key, current, target, tuning, is_independent, is_short)
        share = jnp.where(is_independent, 0.0, 1 / jnp.maximum(tuning.num_hamiltonian, 1))
        total = Refresh(
            total.accept_prob + info.accept_prob * share,
            total.diverging | info.diverging,
            total.num_steps + info.num_steps,
        )
        return done + 1, current, moved, total

    nothing = no_refresh(ensemble.particles)
    start = nothing._replace(accept_prob=jnp.zeros_like(nothing.accept_prob))
    _, previous, ensemble, total = lax.while_loop(
        lambda carry: carry[0] < num_sweeps,
        one_sweep,
        (jnp.zeros((), int), ensemble, ensemble, start),
    )
    return ensemble, previous, total
