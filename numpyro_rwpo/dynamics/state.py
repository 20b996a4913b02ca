"""The state of one ensemble that NumPyro passes from iteration to iteration."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.transport import Progress
from numpyro_rwpo.dynamics.trees import NUM_UPDATES, TreeMove, TreeWarmUp
from numpyro_rwpo.dynamics.warmup import WarmUp
from numpyro_rwpo.support.sharding import Placement

# A single chain is considered not to move if the correlation of its slowest statistic between two
# successive sweeps is above this limit.
MAX_CORRELATION = 0.97


class Buffer(NamedTuple):
    """The states that a refresh has made, which are drawn one after another.

    Draw t since the refresh is state t mod S of particle t // S, where S is the number of states.
    Neighboring draws of a chain are therefore successive states of one particle.

    Attributes:
        particles: positions, (num_particles, S, dim).
        potential: potential, prior included, (num_particles, S).
        accept_prob: mean acceptance probability since the previous state, (num_particles, S).
        diverging: whether a trajectory diverged since the previous state, (num_particles, S).
        energy: potential plus kinetic energy at the end of the last trajectory, (num_particles, S).
        num_steps: number of gradient evaluations since the previous state, (num_particles, S).
    """

    particles: jax.Array
    potential: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    energy: jax.Array
    num_steps: jax.Array


class WarmUpReport(NamedTuple):
    """A record of warm-up, for :func:`numpyro_rwpo.diagnose`.

    Attributes:
        progress: progress of the transport.
        evidence: evidence lower bounds of descent and plain start, -inf if not compared, (2,).
        is_descent: whether the placement of the descent was kept.
        num_updates: number of sweeps of adaptation.
        is_settled: whether adaptation ended because its estimates were steady.
        num_gradients: number of gradient evaluations, of all particles together.
        num_rows: number of gradient evaluations one after another.
        disagreement: disagreement of the ensembles of all chains, see
            :func:`numpyro_rwpo.dynamics.stationarity.disagreement`.
        correlation: correlation of the slowest statistic from one sweep to the next.
    """

    progress: Progress
    evidence: jax.Array
    is_descent: jax.Array
    num_updates: jax.Array
    is_settled: jax.Array
    num_gradients: jax.Array
    num_rows: jax.Array
    disagreement: jax.Array
    correlation: jax.Array


class StepSize(NamedTuple):
    """The step size under the name that it has with NUTS, ``adapt_state.step_size``.

    Attributes:
        step_size: leapfrog step size in whitened units.
    """

    step_size: jax.Array


class RWPOState(NamedTuple):
    """State of one ensemble, with a leading chain axis if chains are vectorized.

    The fields from ``z`` to ``energy``, and ``i``, ``mean_accept_prob`` and
    ``adapt_state.step_size``, have the same names as with NUTS. All fields may be among the
    ``extra_fields`` of ``MCMC.run``.

    Attributes:
        iteration: number of the NumPyro iteration, negative during warm-up and 0 at the first draw;
            never batched.
        z: the emitted particle, unconstrained, in the user's structure.
        diverging: whether the emitted particle diverged since its previous state.
        potential_energy: minus the log density at ``z``, up to a constant.
        accept_prob: mean acceptance probability of the emitted particle since its previous state.
        num_steps: number of gradient evaluations of the emitted particle since its previous state.
        energy: ``potential_energy`` plus the kinetic energy at the end of the particle's last
            trajectory.
        num_gradients: number of gradient evaluations of all particles together, warm-up included.
        step_size: leapfrog step size in whitened units.
        rng_key: random key, into which each refresh folds its iteration.
        centering: parameterization of sites with latent scales, see
            :mod:`numpyro_rwpo.model.laplace_sites`.
        ensemble: the particles, evaluated.
        move: the move that sampling uses, which does not change any more.
        buffer: the states that are drawn one after another.
        warm_up: record of warm-up.
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
    centering: jax.Array
    ensemble: Ensemble
    move: HamiltonianMove | TreeMove | ModeMove
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
        """A field by its number. NumPyro passes a name only if there is no such field.

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
    """The state with its particles sharded, and a copy of everything else on every device."""
    if placement.mesh is None:
        return state
    ensemble, buffer = placement.rows((state.ensemble, state.buffer))
    return placement.whole(state)._replace(ensemble=ensemble, buffer=buffer)


class Ready(NamedTuple):
    """An ensemble that is ready to be drawn from.

    Attributes:
        ensemble: evaluated particles.
        potential: potential at the particles, prior included, (num_particles,).
        centering: parameterization of sites with latent scales.
        move: the move that sampling uses.
        warm_up: record of warm-up.
    """

    ensemble: Ensemble
    potential: jax.Array
    centering: jax.Array
    move: HamiltonianMove | TreeMove | ModeMove
    warm_up: WarmUpReport


def after_warm_up(warm: WarmUp, number: int) -> Ready:
    """The ensemble after warm-up, with the move of the ``number``-th flow on trial."""
    placement, adaptation = warm.placement, warm.adaptation
    report = WarmUpReport(
        progress=placement.placed.progress,
        evidence=placement.evidence,
        is_descent=placement.is_descent,
        num_updates=adaptation.total_updates,
        is_settled=adaptation.is_settled,
        num_gradients=placement.num_gradients,
        num_rows=placement.num_rows,
        disagreement=adaptation.disagreement,
        correlation=warm.correlation[number],
    )
    return Ready(warm.ensemble, warm.potential, warm.centering, warm.moves[number], report)


def after_trees(ready: Ready, trees: TreeWarmUp, num_warmup: int) -> Ready:
    """The small ensemble of NUTS transitions, in the place of one that did not settle."""
    num_updates = min(NUM_UPDATES, num_warmup)
    report = ready.warm_up._replace(
        num_updates=jnp.full_like(ready.warm_up.num_updates, num_updates),
        is_settled=jnp.ones_like(ready.warm_up.is_settled),
        num_gradients=ready.warm_up.num_gradients + trees.num_gradients,
        num_rows=ready.warm_up.num_rows + trees.num_rows,
    )
    return Ready(trees.ensemble, trees.potential, trees.centering, trees.move, report)


def initial_state(rng_key: jax.Array, ready: Ready, num_warmup: int, num_states: int) -> RWPOState:
    """The state before NumPyro's first iteration.

    Args:
        rng_key: one key, for all refreshes.
        ready: the ensemble after warm-up.
        num_warmup: number of NumPyro's iterations before the first draw.
        num_states: number of successive states of a particle that a refresh makes.
    """
    particles = ready.ensemble.particles
    shape = (particles.shape[0], num_states)
    dtype = particles.dtype
    height = jnp.broadcast_to(ready.potential[:, None], shape)
    buffer = Buffer(
        jnp.broadcast_to(particles[:, None], (*shape, particles.shape[1])),
        height,
        jnp.ones(shape, dtype),
        ~jnp.isfinite(height),
        height,
        jnp.zeros(shape, int),
    )
    return RWPOState(
        iteration=jnp.array(-num_warmup),
        z=particles[0],
        # This has the batch axes of the ensemble, because NumPyro shapes its buffers by this state.
        diverging=~jnp.isfinite(particles[0]).all(),
        potential_energy=ready.potential[0],
        accept_prob=jnp.ones_like(ready.potential[0]),
        num_steps=jnp.zeros_like(ready.warm_up.num_updates),
        energy=ready.potential[0],
        num_gradients=ready.warm_up.num_gradients,
        step_size=ready.move.step_size,
        rng_key=rng_key,
        centering=ready.centering,
        ensemble=ready.ensemble,
        move=ready.move,
        buffer=buffer,
        warm_up=ready.warm_up,
    )


def has_converged(report: WarmUpReport) -> bool:
    """Whether the ensembles of all chains look like draws from one distribution.

    A single chain is also judged by the correlation that its particles keep from sweep to sweep.

    Args:
        report: of all chains, not traced.
    """
    is_settled = np.asarray(report.is_settled)
    if is_settled.size == 1 and float(report.correlation[0]) > MAX_CORRELATION:
        return False
    return bool(np.all(is_settled))
