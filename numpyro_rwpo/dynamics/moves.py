r"""Exact moves of an ensemble: propose, evaluate once, accept or reject.

Each particle is moved independently of the others and accepted with the Metropolis probability, so
that every sweep leaves :math:`\exp(-U)` invariant. There are two kinds of proposal:

- a Hamiltonian trajectory (:mod:`numpyro_rwpo.dynamics.flows`) of about a quarter turn, after which
  a particle of a normal posterior is independent of its start;
- a jump to an independent draw from a density that the user provides.

References: Neal (2011), MCMC using Hamiltonian dynamics; Tierney (1994), Markov chains for
exploring posterior distributions, sec. 2.3.3, on independence proposals.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.ensemble import Ensemble, is_usable, potential
from numpyro_rwpo.dynamics.flows import Flow, FlowLike, leapfrog
from numpyro_rwpo.model.target import Proposal, Target
from numpyro_rwpo.support.sharding import Placement

# The length of a trajectory in whitened time: a quarter turn, after which the position in a normal
# posterior is independent of where the trajectory began.
TRAJECTORY_LENGTH = math.pi / 2
# Half the width of the uniform distribution of the particles' step sizes, relative to their mean.
# Trajectories of equal length would return to their start in directions whose period they share.
STEP_JITTER = 0.25
# The energy error above which a trajectory counts as divergent; NumPyro and Stan use this value.
DIVERGENCE_THRESHOLD = 1000.0


class Sweep(NamedTuple):
    """Statistics of the way from one kept state of each particle to the next, (num_particles,).

    Attributes:
        accept_prob: mean acceptance probability.
        diverging: whether an energy error was above 1000 or not finite.
        energy: potential plus kinetic energy at the end of the last trajectory.
        num_steps: number of gradient evaluations.
    """

    accept_prob: jax.Array
    diverging: jax.Array
    energy: jax.Array
    num_steps: jax.Array


class Move(Protocol):
    """A Markov kernel that takes particles from one kept state to the next.

    A move does not change after the first draw. Moves are pytrees of arrays, and their type
    determines the compiled program, so that a saved state can contain its move.

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
    """The number of steps of about ``step_size`` in a quarter turn, between one and ``most``."""
    # A step may be longer than the step size by as much as its jitter, which often saves one step.
    steps = jnp.ceil(TRAJECTORY_LENGTH / step_size - STEP_JITTER)
    return jnp.clip(steps, 1, most).astype(int)


def accept(
    uniform: jax.Array,
    old: Ensemble,
    new: Ensemble,
    change: jax.Array,
    target: Target,
    is_allowed: jax.Array | None = None,
) -> tuple[Ensemble, jax.Array, jax.Array]:
    """Accept or reject the particles of ``new``.

    Args:
        uniform: random numbers between 0 and 1, (num_particles,).
        old: evaluated particles.
        new: evaluated proposals.
        change: minus the log of the Metropolis ratio, (num_particles,).
        target: the posterior.
        is_allowed: whether the way back exists, (num_particles,); ``None`` if it always does.

    Returns:
        The particles after the step, the acceptance probabilities, and whether the proposals
        diverged, both (num_particles,).
    """
    valid = is_usable(potential(new, target), new.gradient) & ~jnp.isnan(change)
    accept_prob = jnp.where(valid, jnp.exp(-jnp.maximum(change, 0.0)), 0.0)
    if is_allowed is not None:
        accept_prob = jnp.where(is_allowed, accept_prob, 0.0)
    is_accepted = uniform < accept_prob
    moved = jax.tree.map(
        lambda a, b: jnp.where(is_accepted.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )
    return moved, accept_prob, ~valid | (change > DIVERGENCE_THRESHOLD)


def hamiltonian_sweep(
    rng_key: jax.Array,
    ensemble: Ensemble,
    flow: FlowLike,
    step_size: jax.Array,
    num_steps: jax.Array,
    target: Target,
    is_allowed: Callable[[Ensemble], jax.Array] | None = None,
) -> tuple[Ensemble, Sweep]:
    """Move every particle along a trajectory of its own, with Metropolis acceptance.

    Args:
        rng_key: one key.
        ensemble: evaluated particles.
        flow: flow between two kicks.
        step_size: mean step size, scalar; each particle has its own, within 25 % of it.
        num_steps: number of leapfrog steps, scalar.
        target: the posterior.
        is_allowed: maps the evaluated ends of the trajectories to whether the way back exists,
            (num_particles,); ``None`` if it always does.

    Returns:
        The moved ensemble and the statistics of the sweep.
    """
    num_particles, dim = ensemble.particles.shape
    dtype = ensemble.particles.dtype
    # All random numbers come from one call and in one axis, because each call and each axis adds
    # to the time that XLA takes to compile the program.
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
    allowed = None if is_allowed is None else is_allowed(end.ensemble)
    moved, accept_prob, diverging = accept(
        uniform, ensemble, end.ensemble, after - before, target, allowed
    )
    energy = jnp.where(uniform < accept_prob, after, before)
    taken = jnp.broadcast_to(num_steps, energy.shape)
    return moved, Sweep(accept_prob, diverging, energy, taken)


class Jump(NamedTuple):
    """Proposals for all particles that no trajectory leads to.

    Attributes:
        position: where the particles jump, (num_particles, dim).
        log_ratio: log of the Metropolis ratio, except for the posterior density, (num_particles,).
        is_allowed: whether the way back exists, (num_particles,).
    """

    position: jax.Array
    log_ratio: jax.Array
    is_allowed: jax.Array


def draw_jump(
    rng_key: jax.Array, position: jax.Array, proposal: Proposal, placement: Placement
) -> Jump:
    """An independent draw of a proposal for each position (num_particles, dim)."""
    number = position.shape[0]
    drawn = placement.rows(proposal.sample(rng_key, number))
    there, here = proposal.log_prob(jnp.concatenate([drawn, position])).reshape(2, -1)
    return Jump(drawn, here - there, jnp.ones(number, bool))


def jump_sweep(
    rng_key: jax.Array, ensemble: Ensemble, jump: Jump, target: Target
) -> tuple[Ensemble, jax.Array]:
    """Every particle jumps, with Metropolis acceptance.

    Returns:
        The moved ensemble and each particle's acceptance probability, (num_particles,).
    """
    new = Ensemble(jump.position, *target.value_and_grad(jump.position))
    change = potential(new, target) - potential(ensemble, target) - jump.log_ratio
    uniform = random.uniform(rng_key, change.shape, change.dtype)
    moved, accept_prob, _ = accept(uniform, ensemble, new, change, target, jump.is_allowed)
    return moved, accept_prob


def proposal_sweep(
    rng_key: jax.Array, ensemble: Ensemble, target: Target
) -> tuple[Ensemble, jax.Array]:
    """Every particle jumps to a draw of the user's density; see :func:`jump_sweep`."""
    assert target.proposal is not None
    key_draw, key_accept = random.split(rng_key)
    jump = draw_jump(key_draw, ensemble.particles, target.proposal, target.placement)
    return jump_sweep(key_accept, ensemble, jump, target)


def repeated(
    rng_key: jax.Array,
    ensemble: Ensemble,
    num_sweeps: jax.Array,
    num_steps: jax.Array,
    sweep: Callable[[jax.Array, Ensemble], tuple[Ensemble, Sweep]],
) -> tuple[Ensemble, Sweep]:
    """Several sweeps, and their statistics together.

    Args:
        rng_key: one key, into which the number of the sweep is folded, from 0 on.
        ensemble: evaluated particles.
        num_sweeps: number of sweeps, scalar.
        num_steps: number of gradient evaluations of each particle to report, (num_particles,).
        sweep: moves an ensemble, with a key.
    """

    def once(i: jax.Array, carry: tuple[Ensemble, Sweep]) -> tuple[Ensemble, Sweep]:
        ensemble, total = carry
        moved, last = sweep(random.fold_in(rng_key, i), ensemble)
        return moved, total._replace(
            accept_prob=total.accept_prob + last.accept_prob / num_sweeps,
            diverging=total.diverging | last.diverging,
            energy=last.energy,
        )

    zero = jnp.zeros_like(ensemble.smooth)
    return lax.fori_loop(0, num_sweeps, once, (ensemble, Sweep(zero, zero > 0, zero, num_steps)))


class HamiltonianMove(NamedTuple):
    """A few trajectories of equal length, which follow jumps if the user gave a proposal.

    Attributes:
        flow: flow between two kicks.
        step_size: leapfrog step size in whitened units, scalar.
        num_steps: number of leapfrog steps in a trajectory, scalar.
        num_sweeps: number of trajectories between two kept states, scalar.
        num_jumps: number of jumps to draws of the proposal before the trajectories, scalar.
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
                # The keys of trajectories have the numbers from 0 on.
                return proposal_sweep(random.fold_in(rng_key, 2**20 + i), ensemble, target)[0]

            ensemble = lax.fori_loop(0, self.num_jumps, jump, ensemble)

        def sweep(key: jax.Array, ensemble: Ensemble) -> tuple[Ensemble, Sweep]:
            flow, step_size = self.flow, self.step_size
            return hamiltonian_sweep(key, ensemble, flow, step_size, self.num_steps, target)

        return repeated(rng_key, ensemble, self.num_sweeps, num_steps, sweep)
