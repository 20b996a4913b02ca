r"""Exact moves of an ensemble: propose, evaluate once, accept or reject.

Each particle is moved on its own and accepted with the Metropolis probability, so every sweep
leaves :math:`\exp(-U)` invariant. There are two kinds of proposal:

- a Hamiltonian trajectory (:mod:`numpyro_rwpo.dynamics.flows`), about a quarter turn long, after
  which a particle of a normal posterior has forgotten its start;
- a jump to an independent draw from a density of the user's, where there is one.

References: Neal (2011), MCMC using Hamiltonian dynamics; Tierney (1994), Markov chains for
exploring posterior distributions, sec. 2.3.3, on independence proposals.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.ensemble import Ensemble, is_usable, potential
from numpyro_rwpo.dynamics.flows import Flow, leapfrog
from numpyro_rwpo.model.target import Target

# A quarter turn, in whitened time: the position of a normal posterior is then independent of where
# the trajectory began.
TRAJECTORY_LENGTH = math.pi / 2
# Relative half width of the uniform step size of each particle. Trajectories of one length would
# return in step with directions whose period they share.
STEP_JITTER = 0.25
# Energy error above which a trajectory counts as divergent; NumPyro's and Stan's value.
DIVERGENCE_THRESHOLD = 1000.0


class Move(NamedTuple):
    """What a refresh needs to know; frozen before the first draw. Its type names its flow.

    Attributes:
        flow: flow between two kicks.
        step_size: scalar, whitened units.
        num_steps: leapfrog steps of a trajectory, scalar.
        num_sweeps: trajectories between two draws of a particle that are kept, scalar.
        num_jumps: jumps to draws of the user's proposal before these, scalar.
    """

    flow: Flow
    step_size: jax.Array
    num_steps: jax.Array
    num_sweeps: jax.Array
    num_jumps: jax.Array


class Sweep(NamedTuple):
    """What one sweep did to each particle, (num_particles,).

    Attributes:
        accept_prob: acceptance probability.
        diverging: whether the energy error was above 1000 or not finite.
        energy: potential plus kinetic energy where the particle ended.
    """

    accept_prob: jax.Array
    diverging: jax.Array
    energy: jax.Array


def num_leapfrog_steps(step_size: jax.Array, most: jax.Array | int) -> jax.Array:
    """Steps of about ``step_size`` that make a quarter turn, at least one, at most ``most``."""
    # A quarter more than the step size is within its jitter; it often saves the second step.
    steps = jnp.ceil(TRAJECTORY_LENGTH / step_size - STEP_JITTER)
    return jnp.clip(steps, 1, most).astype(int)


def _accept(
    uniform: jax.Array, old: Ensemble, new: Ensemble, change: jax.Array, target: Target
) -> tuple[Ensemble, jax.Array, jax.Array]:
    """Metropolis acceptance of ``new`` (n particles) where the log ratio is minus ``change``."""
    valid = is_usable(potential(new, target), new.gradient) & ~jnp.isnan(change)
    accept_prob = jnp.where(valid, jnp.exp(-jnp.maximum(change, 0.0)), 0.0)
    is_accepted = uniform < accept_prob
    moved = jax.tree.map(
        lambda a, b: jnp.where(is_accepted.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )
    return moved, accept_prob, ~valid | (change > DIVERGENCE_THRESHOLD)


def hamiltonian_sweep(
    rng_key: jax.Array,
    ensemble: Ensemble,
    flow: Flow,
    step_size: jax.Array,
    num_steps: jax.Array,
    target: Target,
) -> tuple[Ensemble, Sweep]:
    """Move every particle along a trajectory of its own, with Metropolis acceptance.

    Args:
        rng_key: one key.
        ensemble: evaluated particles.
        flow: flow between two kicks.
        step_size: scalar; each particle's own is jittered by up to 25 %.
        num_steps: leapfrog steps, scalar.
        target: the posterior.

    Returns:
        The moved ensemble, and what was done.
    """
    num_particles, dim = ensemble.particles.shape
    dtype = ensemble.particles.dtype
    # One call for all randomness, flat: each call and each axis costs XLA a while to compile.
    low = jnp.nextafter(jnp.array(-1.0, dtype), jnp.array(0.0, dtype))
    noise = random.uniform(rng_key, (num_particles * (dim + 2),), dtype, low, 1.0)
    noise = target.placement.rows(target.placement.rows(noise).reshape(num_particles, dim + 2))
    momentum = math.sqrt(2) * lax.erf_inv(noise[:, :dim])
    step = step_size * (1 + STEP_JITTER * noise[:, dim, None])
    uniform = (1 + noise[:, dim + 1]) / 2

    _, end = lax.while_loop(
        lambda carry: carry[0] < num_steps,
        lambda carry: (carry[0] + 1, leapfrog(flow, carry[1], step, target)),
        (jnp.zeros_like(num_steps), flow.phase(ensemble, momentum)),
    )
    before = potential(ensemble, target) + (momentum**2).sum(-1) / 2
    after = potential(end.ensemble, target) + (end.momentum**2).sum(-1) / 2
    moved, accept_prob, diverging = _accept(uniform, ensemble, end.ensemble, after - before, target)
    energy = jnp.where(uniform < accept_prob, after, before)
    return moved, Sweep(accept_prob, diverging, energy)


def jump_sweep(
    rng_key: jax.Array, ensemble: Ensemble, target: Target
) -> tuple[Ensemble, jax.Array]:
    """Propose an independent draw of the user's density to every particle.

    Returns:
        The moved ensemble and each particle's acceptance probability, (num_particles,).
    """
    proposal = target.proposal
    assert proposal is not None
    key_draw, key_accept = random.split(rng_key)
    particles = ensemble.particles
    drawn = target.placement.rows(proposal.sample(key_draw, particles.shape[0]))
    there, here = proposal.log_prob(jnp.concatenate([drawn, particles])).reshape(2, -1)
    new = Ensemble(drawn, *target.value_and_grad(drawn))
    change = potential(new, target) + there - potential(ensemble, target) - here
    uniform = random.uniform(key_accept, change.shape, change.dtype)
    moved, accept_prob, _ = _accept(uniform, ensemble, new, change, target)
    return moved, accept_prob


class Step(NamedTuple):
    """One kept state of every particle and what led to it.

    Attributes:
        ensemble: evaluated particles.
        sweep: mean acceptance, any divergence and the last energy of its trajectories.
    """

    ensemble: Ensemble
    sweep: Sweep


def advance(rng_key: jax.Array, ensemble: Ensemble, move: Move, target: Target) -> Step:
    """Take all particles from one kept state to the next: jumps, then trajectories.

    Args:
        rng_key: one key.
        ensemble: evaluated particles.
        move: frozen tuning.
        target: the posterior.
    """
    if target.proposal is not None:

        def jump(i: jax.Array, ensemble: Ensemble) -> Ensemble:
            return jump_sweep(random.fold_in(rng_key, -1 - i), ensemble, target)[0]

        ensemble = lax.fori_loop(0, move.num_jumps, jump, ensemble)

    def trajectory(i: jax.Array, step: Step) -> Step:
        key = random.fold_in(rng_key, i)
        moved, sweep = hamiltonian_sweep(
            key, step.ensemble, move.flow, move.step_size, move.num_steps, target
        )
        return Step(
            moved,
            Sweep(
                step.sweep.accept_prob + sweep.accept_prob / move.num_sweeps,
                step.sweep.diverging | sweep.diverging,
                sweep.energy,
            ),
        )

    return lax.fori_loop(0, move.num_sweeps, trajectory, Step(ensemble, no_sweep(ensemble)))


def no_sweep(ensemble: Ensemble) -> Sweep:
    """Before anything was moved."""
    zero = jnp.zeros_like(ensemble.smooth)
    return Sweep(zero, zero > 0, zero)
