"""The move for posteriors with several modes: jumps between modes, then trajectories within them.

Every mode has a flow of its own, with its mean and its metric. A trajectory follows the flow of the
mode to which its start belongs, and is rejected if its end belongs to another mode, because the way
back would follow another flow. Moves from mode to mode are left to the jumps, which are accepted or
rejected by the same rule as everything else, so that the draws come from the posterior whether the
list of modes is good or bad.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.flows import ExactFlow, Flow, HarmonicFlow, Phase
from numpyro_rwpo.dynamics.modes import Modes, hop_jump, mixture, mode_of
from numpyro_rwpo.dynamics.moves import (
    Jump,
    Sweep,
    draw_jump,
    hamiltonian_sweep,
    jump_sweep,
    repeated,
)
from numpyro_rwpo.model.target import Target


class OwnFlow(NamedTuple):
    """A flow for each particle.

    Attributes:
        flow: flows with a leading axis of particles.
    """

    flow: Flow

    def phase(self, ensemble: Ensemble, momentum: jax.Array) -> Phase:
        """The phase of evaluated particles with whitened momenta."""

        def one(flow: Flow, ensemble: Ensemble, momentum: jax.Array) -> Phase:
            row = jax.tree.map(lambda x: x[None], (ensemble, momentum))
            return jax.tree.map(lambda x: x[0], flow.phase(*row))

        return jax.vmap(one)(self.flow, ensemble, momentum)

    def drift(
        self, phase: Phase, momentum: jax.Array, step_size: jax.Array, target: Target
    ) -> tuple[jax.Array, jax.Array]:
        """Positions and whitened momenta after one step, (num_particles, dim)."""

        def one(
            flow: Flow, phase: Phase, momentum: jax.Array, step_size: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            row: Phase = jax.tree.map(lambda x: x[None], phase)
            position, momentum = flow.drift(row, momentum[None], step_size[None], target)
            return position[0], momentum[0]

        return jax.vmap(one)(self.flow, phase, momentum, step_size)


class Tally(NamedTuple):
    """Jumps from one mode to another, by kind (draws first) and mode of departure.

    Attributes:
        proposed: number of proposals, (2, num_modes).
        accepted: sum of their acceptance probabilities, (2, num_modes).
    """

    proposed: jax.Array
    accepted: jax.Array


class ModeMove(NamedTuple):
    """Jumps between modes, then a few trajectories of equal length within them.

    Attributes:
        modes: the list of modes, the same for all chains.
        flow: flow of each mode, with a leading axis of modes.
        step_size: leapfrog step size in whitened units, scalar.
        num_steps: number of leapfrog steps in a trajectory, scalar.
        num_sweeps: number of trajectories between two kept states, scalar.
        num_jumps: number of jumps before the trajectories, scalar.
        hop_share: probability that a jump is a hop and not a draw, scalar.
        jump_rate: acceptance of jumps from each mode to others, as warm-up measured it,
            (num_modes,).
        is_found: whether this chain found the mode by itself in warm-up, (num_modes,).
    """

    modes: Modes
    flow: HarmonicFlow | ExactFlow
    step_size: jax.Array
    num_steps: jax.Array
    num_sweeps: jax.Array
    num_jumps: jax.Array
    hop_share: jax.Array
    jump_rate: jax.Array
    is_found: jax.Array

    def advance(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep]:
        """Jumps, then trajectories; see :meth:`numpyro_rwpo.dynamics.moves.Move.advance`."""
        ensemble, sweep, _ = self.advance_and_count(rng_key, ensemble, target)
        return ensemble, sweep

    def advance_and_count(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep, Tally]:
        """The same as :meth:`advance`, with a count of the jumps."""
        zero = jnp.zeros_like(ensemble.smooth)
        nothing = jnp.zeros((2, self.modes.log_det.size), zero.dtype)

        def jump(i: jax.Array, carry: tuple[Ensemble, Tally]) -> tuple[Ensemble, Tally]:
            # The keys of trajectories have the numbers from 0 on.
            return self._jump(random.fold_in(rng_key, 2**20 + i), *carry, target)

        start = ensemble, Tally(nothing, nothing)
        ensemble, tally = lax.fori_loop(0, self.num_jumps, jump, start)
        num_steps = jnp.broadcast_to(self.num_jumps + self.num_sweeps * self.num_steps, zero.shape)
        ensemble, sweep = repeated(
            rng_key,
            ensemble,
            self.num_sweeps,
            num_steps,
            lambda key, ensemble: self._trajectory(key, ensemble, target),
        )
        return ensemble, sweep, tally

    def _trajectory(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep]:
        """One trajectory of each particle, which has to end in the mode where it began."""
        number = mode_of(self.modes, ensemble.particles)
        flow = OwnFlow(jax.tree.map(lambda x: x[number], self.flow))
        return hamiltonian_sweep(
            rng_key,
            ensemble,
            flow,
            self.step_size,
            self.num_steps,
            target,
            is_allowed=lambda end: mode_of(self.modes, end.particles) == number,
        )

    def _jump(
        self, rng_key: jax.Array, ensemble: Ensemble, tally: Tally, target: Target
    ) -> tuple[Ensemble, Tally]:
        """One jump of each particle, of a kind that is drawn."""
        key_kind, key_draw, key_hop, key_accept = random.split(rng_key, 4)
        particles = ensemble.particles
        kind = random.uniform(key_kind, ensemble.smooth.shape, particles.dtype) < self.hop_share
        proposal = mixture(self.modes, target.proposal)
        draw = draw_jump(key_draw, particles, proposal, target.placement)
        hop = hop_jump(key_hop, particles, self.modes)
        proposed = Jump(
            *(
                jnp.where(kind.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
                for a, b in zip(hop, draw, strict=True)
            )
        )
        moved, accept_prob = jump_sweep(key_accept, ensemble, proposed, target)
        here, there = (mode_of(self.modes, x) for x in (particles, proposed.position))
        counts = (here != there).astype(accept_prob.dtype)
        row = kind.astype(int)
        return moved, Tally(
            tally.proposed.at[row, here].add(counts),
            tally.accepted.at[row, here].add(counts * accept_prob),
        )
