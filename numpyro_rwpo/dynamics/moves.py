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
from typing import NamedTuple, Protocol

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
# Number of the first jump's random key; those of trajectories count from 0.
_JUMPS = 2**20


class Sweep(NamedTuple):
    """What the way from one kept state to the next did to each particle, (num_particles,).

    Attributes:
        accept_prob: mean acceptance probability.
        diverging: whether an energy error was above 1000 or not finite.
        energy: potential plus kinetic energy where the last trajectory ended.
        num_steps: gradient evaluations.
    """

    accept_prob: jax.Array
    diverging: jax.Array
    energy: jax.Array
    num_steps: jax.Array


class Move(Protocol):
    """What takes particles from one state that is kept to the next; frozen before the first draw.

    Moves are pytrees of arrays. Their type decides what is compiled, so a state brings its move
    with it.

    Attributes:
        step_size: leapfrog step size, scalar, whitened units.
    """

    @property
    def step_size(self) -> jax.Array:
        """See the class."""

    def advance(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep]:
        """Take all particles to their next state.

        Args:
            rng_key: one key.
            ensemble: evaluated particles.
            target: the posterior.
        """


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
    taken = jnp.broadcast_to(num_steps, energy.shape)
    return moved, Sweep(accept_prob, diverging, energy, taken)


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


class HamiltonianMove(NamedTuple):
    """A few trajectories of one length, after jumps where the user gave a proposal.

    Attributes:
        flow: flow between two kicks.
        step_size: scalar, whitened units.
        num_steps: leapfrog steps of a trajectory, scalar.
        num_sweeps: trajectories between two states that are kept, scalar.
        num_jumps: jumps to draws of the user's proposal before these, scalar.
    """

    flow: Flow
    step_size: jax.Array
    num_steps: jax.Array
    num_sweeps: jax.Array
    num_jumps: jax.Array

    def advance(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep]:
        """Jumps, then trajectories; see :meth:`Move.advance`."""
        zero = jnp.zeros_like(ensemble.smooth)
        num_steps = jnp.broadcast_to(self.num_sweeps * self.num_steps, zero.shape)
        if target.proposal is not None:
            num_steps = num_steps + self.num_jumps

            def jump(i: jax.Array, ensemble: Ensemble) -> Ensemble:
                return jump_sweep(random.fold_in(rng_key, _JUMPS + i), ensemble, target)[0]

            ensemble = lax.fori_loop(0, self.num_jumps, jump, ensemble)

        def trajectory(i: jax.Array, carry: tuple[Ensemble, Sweep]) -> tuple[Ensemble, Sweep]:
            key, (ensemble, total) = random.fold_in(rng_key, i), carry
            moved, sweep = hamiltonian_sweep(
                key, ensemble, self.flow, self.step_size, self.num_steps, target
            )
            return moved, total._replace(
                accept_prob=total.accept_prob + sweep.accept_prob / self.num_sweeps,
                diverging=total.diverging | sweep.diverging,
                energy=sweep.energy,
            )

        nothing = Sweep(zero, zero > 0, zero, num_steps)
        return lax.fori_loop(0, self.num_sweeps, trajectory, (ensemble, nothing))
