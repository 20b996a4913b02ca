"""The state of one ensemble as NumPyro carries it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.moves import Move
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.transport import Progress
from numpyro_rwpo.dynamics.warmup import WarmUp
from numpyro_rwpo.support.sharding import Placement


class Buffer(NamedTuple):
    """States that a refresh has made and that are drawn one after another.

    Draw t since the refresh is state t mod S of particle t // S, with S the number of states, so
    that what ArviZ sees as neighbors are successive states of one particle.

    Attributes:
        particles: (num_particles, S, dim).
        potential: the whole potential, (num_particles, S).
        accept_prob: mean acceptance probability since the state before, (num_particles, S).
        diverging: whether a trajectory diverged since the state before, (num_particles, S).
        energy: potential plus kinetic energy where the last trajectory ended, (num_particles, S).
    """

    particles: jax.Array
    potential: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    energy: jax.Array


class WarmUpReport(NamedTuple):
    """What warm-up did, for :func:`numpyro_rwpo.diagnose`.

    Attributes:
        progress: of the transport.
        evidence: lower bounds of descent and plain start, (2,).
        is_descent: whether the descent's placement was kept.
        num_updates: sweeps of adaptation.
        is_settled: whether adaptation ended because its estimates were steady.
        num_gradients: gradient evaluations of the whole ensemble.
        num_rows: gradient evaluations one after another.
        correlation: of the slowest statistic from one sweep to the next.
    """

    progress: Progress
    evidence: jax.Array
    is_descent: jax.Array
    num_updates: jax.Array
    is_settled: jax.Array
    num_gradients: jax.Array
    num_rows: jax.Array
    correlation: jax.Array


class StepSize(NamedTuple):
    """Where NUTS has its step size: ``adapt_state.step_size``.

    Attributes:
        step_size: leapfrog step size, whitened units.
    """

    step_size: jax.Array


class RWPOState(NamedTuple):
    """State of one ensemble (with a leading chain axis when chains are vectorized).

    The fields from ``z`` to ``energy``, and ``i``, ``mean_accept_prob`` and
    ``adapt_state.step_size``, have the names that NUTS gives them; any of them may be among the
    ``extra_fields`` of ``MCMC.run``.

    Attributes:
        iteration: NumPyro iteration, negative during warm-up, 0 at the first draw; never batched.
        z: the emitted particle, unconstrained, in the user's structure.
        diverging: whether the emitted particle diverged since its state before.
        potential_energy: minus the log density at ``z``, up to a constant.
        accept_prob: the emitted particle's mean acceptance probability since its state before.
        num_steps: gradient evaluations of the emitted particle since its state before.
        energy: `potential_energy` plus the kinetic energy where the particle's last trajectory
            ended.
        num_gradients: gradient evaluations of the whole ensemble since the start, warm-up included.
        step_size: leapfrog step size, whitened units.
        rng_key: random key; each refresh folds its iteration into it.
        centring: parametrization of Laplace sites with latent scales, see
            :mod:`numpyro_rwpo.model.laplace_sites`.
        ensemble: the particles, evaluated.
        move: frozen tuning.
        buffer: states to draw.
        warm_up: what warm-up did.
    """

    iteration: jax.Array
    z: Any
    diverging: jax.Array
    potential_energy: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array
    energy: jax.Array
    num_gradients: jax.Array
    step_size: jax.Array
    rng_key: jax.Array
    centring: jax.Array
    ensemble: Ensemble
    move: Move
    buffer: Buffer
    warm_up: WarmUpReport

    @property
    def i(self) -> jax.Array:
        """NumPyro's count of iterations, 0 at the first draw, of each chain."""
        return jnp.broadcast_to(self.iteration, jnp.shape(self.step_size))

    @property
    def mean_accept_prob(self) -> jax.Array:
        """Mean acceptance probability of the last refresh, of each chain."""
        return self.buffer.accept_prob.mean((-2, -1))

    @property
    def adapt_state(self) -> StepSize:
        """The step size under the name that NUTS gives it."""
        return StepSize(self.step_size)

    def __getitem__(self, name: Any) -> Any:
        """A field by its number; a name comes here where no field has it.

        Raises:
            ValueError: There is no such field.
        """
        if not isinstance(name, str):
            return tuple.__getitem__(self, name)
        known = ["diverging", "potential_energy", "accept_prob", "num_steps", "energy"]
        known += ["num_gradients", "step_size", "adapt_state.step_size", "mean_accept_prob", "i"]
        raise ValueError(
            f"`extra_fields` names {name!r}, which the state of RWPO does not have; its fields are "
            f"{known}."
        )


_AXES: Any = [None if field == "iteration" else 0 for field in RWPOState._fields]
STATE_AXES = RWPOState(*_AXES)


def placed_state(state: RWPOState, placement: Placement) -> RWPOState:
    """The state with its particles shared out, and a copy of all else on every device."""
    if placement.mesh is None:
        return state
    ensemble, buffer = placement.rows((state.ensemble, state.buffer))
    return placement.whole(state)._replace(ensemble=ensemble, buffer=buffer)


def initial_state(rng_key: jax.Array, warm: WarmUp, number: int, settings: Settings) -> RWPOState:
    """State before NumPyro's first iteration.

    Args:
        rng_key: one key, for all refreshes.
        warm: the ensemble after warm-up.
        number: of the flow on trial that was chosen.
        settings: of the run.
    """
    particles = warm.ensemble.particles
    shape = (particles.shape[0], settings.num_states)
    dtype = particles.dtype
    height = jnp.broadcast_to(warm.potential[:, None], shape)
    buffer = Buffer(
        jnp.broadcast_to(particles[:, None], (*shape, particles.shape[1])),
        height,
        jnp.ones(shape, dtype),
        ~jnp.isfinite(height),
        height,
    )
    move = warm.moves[number]
    report = WarmUpReport(
        progress=warm.placement.placed.progress,
        evidence=warm.placement.evidence,
        is_descent=warm.placement.is_descent,
        num_updates=warm.adaptation.updates,
        is_settled=warm.adaptation.is_settled,
        num_gradients=warm.placement.num_gradients,
        num_rows=warm.placement.num_rows,
        correlation=warm.adaptation.correlation[number].max(),
    )
    state = RWPOState(
        iteration=jnp.array(-settings.num_warmup),
        z=particles[0],
        # Of the ensemble's own batching: NumPyro's buffers are shaped by the first state.
        diverging=~jnp.isfinite(particles[0]).all(),
        potential_energy=warm.potential[0],
        accept_prob=jnp.ones_like(warm.potential[0]),
        num_steps=jnp.zeros_like(move.num_steps),
        energy=warm.potential[0],
        num_gradients=warm.placement.num_gradients,
        step_size=move.step_size,
        rng_key=rng_key,
        centring=warm.placement.placed.centring,
        ensemble=warm.ensemble,
        move=move,
        buffer=buffer,
        warm_up=report,
    )
    return placed_state(state, settings.placement)
