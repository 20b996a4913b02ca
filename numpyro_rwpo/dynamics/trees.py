r"""Moves for posteriors that one trajectory length and one step size do not suit: NUTS.

If scales vary over the posterior (funnels, products of scales, ridges), ensembles that were
transported and moved along trajectories of one length still disagree when warm-up ends. A small
ensemble then starts again, as NUTS would, and every particle moves along trajectories whose length
is determined by the no-U-turn criterion. The trees are NumPyro's own. The leapfrog steps are those
of :mod:`numpyro_rwpo.dynamics.flows`, so that a Laplace prior is still followed exactly.

Reference: Hoffman and Gelman (2014), the No-U-Turn sampler.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.infer.hmc_util import IntegratorState, build_tree

from numpyro_rwpo.dynamics.adaptation import STUCK
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential, replace
from numpyro_rwpo.dynamics.flows import ExactFlow, leapfrog
from numpyro_rwpo.dynamics.moves import DIVERGENCE_THRESHOLD, Sweep
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.control_flow import batched_like

# NUTS's default: trajectories of at most 1,023 steps.
MAX_DEPTH = 10
# Particles of a chain. Their trees grow in step, so that more of them wait longer for the longest.
NUM_PARTICLES = 8
# Updates after which the variances of the particles since the last of them become the metric, as in
# Stan's windows, and the updates at which the step size is left alone.
WINDOWS = (20, 40, 75, 120)
NUM_UPDATES = 150
# Fewest iterations of warm-up in which a small ensemble can start anew; in fewer it would not
# converge.
MIN_WARMUP = 100
# Trees of the first updates are cut short: they only descend, and neither step size nor metric suit
# them yet. They may become deeper after every so many updates.
FIRST_DEPTH, DEEPER = 5, 10
FIRST_STEP = 0.1
# Rejections relative to those that the target acceptance probability allows. Where NUTS aims at
# 0.8, its dual averaging comes to accept about 0.9; a mean over all particles would hit 0.8, with
# steps that are too long for the narrow places of posteriors that need trees.
REJECTIONS = 0.5


class TreeMove(NamedTuple):
    """One NUTS transition of every particle.

    Attributes:
        flow: the prior's exact flow in a diagonal metric.
        step_size: scalar, whitened units.
    """

    flow: ExactFlow
    step_size: jax.Array

    def advance(
        self, rng_key: jax.Array, ensemble: Ensemble, target: Target
    ) -> tuple[Ensemble, Sweep]:
        """See :meth:`numpyro_rwpo.dynamics.moves.Move.advance`."""
        return tree_sweep(rng_key, ensemble, self, target, MAX_DEPTH)


def tree_sweep(
    rng_key: jax.Array,
    ensemble: Ensemble,
    move: TreeMove,
    target: Target,
    depth: jax.Array | int,
) -> tuple[Ensemble, Sweep]:
    """One NUTS transition of every particle with trees of at most ``depth`` doublings."""
    num_particles, dim = ensemble.particles.shape
    key_momentum, key_tree = random.split(rng_key)
    size = num_particles * dim
    momenta = random.normal(key_momentum, (size,), ensemble.particles.dtype)

    def kinetic(_: jax.Array, momentum: jax.Array) -> jax.Array:
        return (momentum**2).sum() / 2

    def step(step_size: jax.Array, _: jax.Array, state: tuple[Any, ...]) -> IntegratorState:
        one = Ensemble(*jax.tree.map(lambda x: x[None], state[0]))  # NumPyro passes a tuple
        phase = move.flow.phase(one, state[1][None])
        phase = leapfrog(move.flow, phase, jnp.reshape(step_size, (1, 1)), target)
        there = phase.ensemble
        z = jax.tree.map(lambda x: x[0], tuple(there))
        return IntegratorState(
            z, phase.momentum[0], potential(there, target)[0], jnp.zeros_like(step_size)
        )

    def transition(
        key: jax.Array, particle: Ensemble, momentum: jax.Array
    ) -> tuple[Ensemble, Sweep]:
        one = Ensemble(*jax.tree.map(lambda x: x[None], particle))
        height = potential(one, target)[0]
        start = IntegratorState(tuple(particle), momentum, height, jnp.zeros_like(height))
        tree = build_tree(
            step,
            kinetic,
            start,
            jnp.ones(dim, momentum.dtype),
            move.step_size,
            key,
            DIVERGENCE_THRESHOLD,
            (depth, MAX_DEPTH),
        )
        accept_prob = tree.sum_accept_probs / jnp.maximum(tree.num_proposals, 1)
        sweep = Sweep(accept_prob, tree.diverging, tree.z_proposal_energy, tree.num_proposals)
        return Ensemble(*tree.z_proposal), sweep

    keys = random.split(key_tree, num_particles)
    return jax.vmap(transition)(keys, ensemble, momenta.reshape(num_particles, dim))


class Window(NamedTuple):
    """Running moments of batches of particles (Chan, Golub and LeVeque 1983).

    Attributes:
        number: particles seen, scalar.
        mean: their mean, (dim,).
        square: sum of their squared deviations, (dim,).
    """

    number: jax.Array
    mean: jax.Array
    square: jax.Array

    def with_batch(self, particles: jax.Array) -> "Window":
        """The moments with more particles, (n, dim)."""
        count, mean = particles.shape[0], particles.mean(0)
        number, change = self.number + count, mean - self.mean
        square = self.square + ((particles - mean[None]) ** 2).sum(0)
        square = square + change**2 * self.number * count / number
        return Window(number, self.mean + change * count / number, square)

    def regularized_variance(self) -> jax.Array:
        """The variances, shrunk toward 1e-3 with the weight of five particles, as Stan does it."""
        variance = self.square / self.number
        return (self.number * variance + 5e-3) / (self.number + 5)


class TreeWarmUp(NamedTuple):
    """A small ensemble that warms up as NUTS does.

    Attributes:
        ensemble: evaluated particles.
        potential: the whole potential at them, (num_particles,).
        centering: parameterization of Laplace sites with latent scales.
        move: with the step size as adapted so far.
        log_step_mean: running mean of the log step size, scalar.
        window: moments of the particles over the updates of this window.
        accept_prob: sum of each particle's acceptance over these, (num_particles,).
        num_gradients: gradient evaluations of the whole ensemble, scalar.
        num_rows: gradient evaluations one after another, scalar.
    """

    ensemble: Ensemble
    potential: jax.Array
    centering: jax.Array
    move: TreeMove
    log_step_mean: jax.Array
    window: Window
    accept_prob: jax.Array
    num_gradients: jax.Array
    num_rows: jax.Array


def warm_up_trees(
    rng_key: jax.Array, particles: jax.Array, target: Target, num_warmup: int, aim: float
) -> TreeWarmUp:
    """Warm a small ensemble up as NUTS warms up a chain, its estimates pooled over particles.

    Args:
        rng_key: one key.
        particles: where they start, (num_particles, dim).
        target: the posterior.
        num_warmup: the most updates.
        aim: acceptance probability at which the step size aims.
    """
    num_particles = particles.shape[0]
    num_updates = min(NUM_UPDATES, num_warmup)
    aim = 1 - REJECTIONS * (1 - aim)
    windows = jnp.array([w * num_updates // NUM_UPDATES for w in WINDOWS])

    def update(i: jax.Array, state: TreeWarmUp) -> TreeWarmUp:
        depth = jnp.minimum(FIRST_DEPTH + i // DEEPER, MAX_DEPTH)
        ensemble, sweep = tree_sweep(
            random.fold_in(rng_key, i), state.ensemble, state.move, target, depth
        )
        accept_probs = jnp.where(jnp.isfinite(sweep.accept_prob), sweep.accept_prob, 0.0)
        accept_prob = accept_probs.mean()
        # Updates since the metric last changed.
        since = i - jnp.max(jnp.where(windows <= i, windows, 0))
        log_step, log_step_mean = _adapted_step(state, accept_prob, since, aim)
        window = state.window.with_batch(ensemble.particles)
        is_end = jnp.any(windows == i + 1)
        # Where the start left particles in a neck, they would hold the step size down for all.
        total = state.accept_prob + accept_probs
        is_stuck = is_end & (total * num_particles / window.number < STUCK)
        ensemble = replace(ensemble, is_stuck, target)
        variance = window.regularized_variance()
        usable = is_end & jnp.isfinite(variance).all()
        scale = jnp.where(usable, jnp.sqrt(jnp.maximum(variance, 1e-20)), state.move.flow.scale)
        keep = jnp.where(is_end, 0.0, 1.0)
        return TreeWarmUp(
            ensemble,
            potential(ensemble, target),
            state.centering,
            TreeMove(ExactFlow(scale), jnp.exp(log_step)),
            log_step_mean,
            jax.tree.map(lambda x: x * keep, window),
            total * keep,
            state.num_gradients + sweep.num_steps.sum(),
            state.num_rows + sweep.num_steps.max(),
        )

    start = batched_like(particles, _before_updates(particles, target))
    state = lax.fori_loop(0, num_updates, update, start)
    return state._replace(move=state.move._replace(step_size=jnp.exp(state.log_step_mean)))


def _before_updates(particles: jax.Array, target: Target) -> TreeWarmUp:
    """Evaluated particles with a unit metric and the first step size."""
    num_particles, dim = particles.shape
    dtype = particles.dtype
    ensemble = evaluate(particles, target)
    return TreeWarmUp(
        ensemble,
        potential(ensemble, target),
        target.centering,
        TreeMove(ExactFlow(jnp.ones(dim, dtype)), jnp.full((), FIRST_STEP, dtype)),
        jnp.full((), math.log(FIRST_STEP), dtype),
        Window(jnp.zeros((), dtype), jnp.zeros(dim, dtype), jnp.zeros(dim, dtype)),
        jnp.zeros(num_particles, dtype),
        jnp.array(num_particles),
        jnp.array(1),
    )


def _adapted_step(
    state: TreeWarmUp, accept_prob: jax.Array, since: jax.Array, aim: float
) -> tuple[jax.Array, jax.Array]:
    """The log step size and its running mean, ``since`` updates after the last change of metric."""
    error = accept_prob - aim
    error = jnp.where(error < 0, error / aim, error / (1 - aim))
    log_step = jnp.log(state.move.step_size)
    log_step = log_step + jnp.maximum(1.0 / (1.0 + since / 4.0), 0.1) * error
    weight = jnp.maximum(2 / (2.0 + since), 0.05)
    return log_step, (1 - weight) * state.log_step_mean + weight * log_step
