r"""Quasi-Newton start: bring an ensemble from arbitrary positions into the typical set.

A few BFGS paths descend the potential. Along each path, normal approximations :math:`N(x_k, H_k)`
with the inverse Hessian estimate are compared by their evidence lower bound, and the particles are
drawn from the best ones (Zhang, Carpenter, Gelman and Vehtari 2022, Pathfinder). Since the bound
decides, and not the optimum, the start is also useful if the mode is not (funnels, unbounded
densities).

The inverse Hessian is kept as a product of rank-one factors (Brodlie, Gourlay and Greenstadt 1973).
With :math:`b = H^{-1} s` and the gradient difference :math:`y` of a step s,

.. math:: H_{k+1} = A H_k A^\top, \quad A = I + s z^\top, \quad
          z = b / \sqrt{s^\top y\, s^\top b} - y / s^\top y,

which is the BFGS update. For a draw from :math:`N(0, H)`, the factors are applied to white noise.
The determinant is multiplied by :math:`s^\top b / s^\top y` in each update, and no matrix has to be
factorized.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.ensemble import is_usable
from numpyro_rwpo.model.target import Target

PotentialAndGrad = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

NUM_PATHS = 8
NUM_ROUNDS = 12  # comparisons of the evidence lower bound along a path
EVALUATIONS_PER_ROUND = 8
NUM_DRAWS = 64  # of all paths together, for one comparison
_ARMIJO = 1e-4
_BACKTRACK = 0.2
# Nats by which the evidence of all paths together must rise in a round for them to go on, and the
# rounds that may pass without that: less is within the noise of eight draws a path.
_GAIN, _IDLE_ROUNDS = 1.0, 2
_CURVATURE = 1e-6  # smallest cosine between step and gradient difference that enters H


class History(NamedTuple):
    """Inverse Hessian of every path, ``H = F F^T`` with ``F = A_n ... A_1 sqrt(initial)``.

    Attributes:
        steps: s, (num_paths, length, dim).
        duals: z, (num_paths, length, dim); 0 beyond ``num_factors``.
        initial: the initial inverse Hessian, a multiple of the identity, (num_paths,).
        num_factors: number of factors in use, (num_paths,).
        log_det: log determinant of H, (num_paths,).
    """

    steps: jax.Array
    duals: jax.Array
    initial: jax.Array
    num_factors: jax.Array
    log_det: jax.Array


class Cost(NamedTuple):
    """Numbers of gradient evaluations, scalars.

    Attributes:
        num_gradients: evaluations of all particles together.
        num_rows: evaluations one after another.
    """

    num_gradients: jax.Array
    num_rows: jax.Array


class Descent(NamedTuple):
    """The positions of the paths, and the points that they try next.

    Attributes:
        position: position, (num_paths, dim).
        value: potential, (num_paths,).
        gradient: gradient of the potential, (num_paths, dim).
        direction: search direction, (num_paths, dim).
        length: share of the direction to try next, (num_paths,).
        history: inverse Hessians.
    """

    position: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    length: jax.Array
    history: History


class Best(NamedTuple):
    """The best normal approximation of each path so far.

    Attributes:
        bound: evidence lower bound up to a constant, (num_paths,).
        position: mean, (num_paths, dim).
        num_factors: number of factors of its covariance, the first ones of the history,
            (num_paths,).
        initial: the initial inverse Hessian at that time, (num_paths,).
        log_det: log determinant of its covariance, (num_paths,).
    """

    bound: jax.Array
    position: jax.Array
    num_factors: jax.Array
    initial: jax.Array
    log_det: jax.Array


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(-1)


def _newton_direction(gradient: jax.Array, history: History) -> jax.Array:
    """The quasi-Newton direction -H g of every path, (num_paths, dim)."""
    last = history.num_factors.max()

    def transposed(i: jax.Array, q: jax.Array) -> jax.Array:
        j = last - 1 - i
        return q + history.duals[:, j] * _dot(history.steps[:, j], q)[:, None]

    def direct(j: jax.Array, r: jax.Array) -> jax.Array:
        return r + history.steps[:, j] * _dot(history.duals[:, j], r)[:, None]

    q = lax.fori_loop(0, last, transposed, gradient)
    return -lax.fori_loop(0, last, direct, history.initial[:, None] * q)


def _draws(noise: jax.Array, path: jax.Array, best: Best, history: History) -> jax.Array:
    """Map white noise (n, dim) to the best normal approximation of ``path`` (n,), F noise + x."""

    def factor(j: jax.Array, draws: jax.Array) -> jax.Array:
        dual = jnp.where((j < best.num_factors)[:, None], history.duals[:, j], 0.0)[path]
        return draws + history.steps[:, j][path] * _dot(dual, draws)[:, None]

    draws = jnp.sqrt(best.initial)[path][:, None] * noise
    return best.position[path] + lax.fori_loop(0, best.num_factors.max(), factor, draws)


def _remember(
    history: History,
    step: jax.Array,
    difference: jax.Array,
    gradient: jax.Array,
    length: jax.Array,
    keep: jax.Array,
) -> History:
    """Append a factor to the paths in ``keep``."""
    curvature = _dot(step, difference)
    first = history.num_factors == 0
    scale = curvature / _dot(difference, difference)
    initial = jnp.where(keep & first, scale, history.initial)
    # This is b. The step is -length H g, except that the first factor also rescales the initial H.
    dual_step = jnp.where(first[:, None], step / initial[:, None], -length[:, None] * gradient)
    quadratic = _dot(step, dual_step)
    dual = dual_step / jnp.sqrt(curvature * quadratic)[:, None] - difference / curvature[:, None]
    before = jnp.where(first, step.shape[-1] * jnp.log(initial), history.log_det)
    log_det = before + jnp.log(quadratic) - jnp.log(curvature)
    row = jnp.arange(step.shape[0])
    keep &= jnp.all(jnp.isfinite(dual), -1) & jnp.isfinite(log_det)
    slot = jnp.where(keep, history.num_factors, history.steps.shape[1])  # out of bounds: dropped
    return History(
        history.steps.at[row, slot].set(step, mode="drop"),
        history.duals.at[row, slot].set(dual, mode="drop"),
        jnp.where(keep, initial, history.initial),
        history.num_factors + keep,
        jnp.where(keep, log_det, history.log_det),
    )


def _descend(descent: Descent, potential_and_grad: PotentialAndGrad) -> Descent:
    """Try one point on every path: step there if the potential falls enough, or backtrack."""
    step = descent.length[:, None] * descent.direction
    position = descent.position + step
    value, gradient = potential_and_grad(position)
    slope = _dot(descent.gradient, descent.direction)
    # Rounding of the potential must not stop a path that is already at its optimum.
    slack = 4 * jnp.finfo(value.dtype).eps * jnp.abs(descent.value)
    bound = descent.value + _ARMIJO * descent.length * slope + slack
    accepted = is_usable(value, gradient) & (value <= bound)
    difference = gradient - descent.gradient
    curvature = _dot(step, difference)
    curved = curvature > _CURVATURE * jnp.sqrt(_dot(step, step) * _dot(difference, difference))
    history = _remember(
        descent.history, step, difference, descent.gradient, descent.length, accepted & curved
    )
    position = jnp.where(accepted[:, None], position, descent.position)
    gradient = jnp.where(accepted[:, None], gradient, descent.gradient)
    # Before any curvature is known, the direction is the gradient, and a step along it is at most
    # one unit long.
    unit = 1 / jnp.maximum(jnp.sqrt(_dot(gradient, gradient)), 1.0)
    full = jnp.where(history.num_factors == 0, unit, 1.0)
    return Descent(
        position,
        jnp.where(accepted, value, descent.value),
        gradient,
        jnp.where(accepted[:, None], _newton_direction(gradient, history), descent.direction),
        jnp.where(accepted, full, _BACKTRACK * descent.length),
        history,
    )


def _smoothed_potential(target: Target) -> PotentialAndGrad:
    """The potential with the prior's kinks rounded off.

    A quasi-Newton method would take the change of slope at a kink for an enormous curvature.
    """
    prior = target.prior
    if prior is None:
        return target.value_and_grad

    def value_and_grad(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        smooth, gradient = target.value_and_grad(x)
        value, slope = prior.smoothed(x)
        return smooth + value.sum(-1), gradient + slope

    return value_and_grad


def _keep_better(best: Best, here: Best) -> Best:
    """For each path, the one of two normal approximations with the higher evidence lower bound."""
    better = jnp.isfinite(here.bound) & (here.bound > best.bound) & (here.num_factors > 0)
    return jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old), here, best
    )


def _share_out(bound: jax.Array, num_particles: int) -> jax.Array:
    """A path for each particle, (num_particles,), in proportion to the paths' evidence."""
    num_paths = bound.size
    share = jnp.tril(jnp.ones((num_paths, num_paths), bound.dtype)) @ jax.nn.softmax(bound)
    rank = (jnp.arange(num_particles) + 0.5) / num_particles
    return jnp.minimum((share[None] < rank[:, None]).sum(1), num_paths - 1)


def quasi_newton_start(
    rng_key: jax.Array, particles: jax.Array, target: Target
) -> tuple[jax.Array, jax.Array, Cost]:
    """Place an ensemble by the best normal approximations along a few BFGS paths.

    Args:
        rng_key: one key, for the draws.
        particles: random starting positions (num_particles, dim), of which the first few start the
            paths.
        target: the posterior. If it has sites with latent scales, every other path uses the other
            centering.

    Returns:
        Particles of the same shape, not evaluated, shared among the paths in proportion to their
        estimated evidence, or ``particles`` themselves if no path was successful; the centering
        with more evidence, scalar; and the cost.
    """
    # The random numbers have one axis, because XLA takes several times as long to compile two.
    noise = random.normal(rng_key, (particles.size,), particles.dtype).reshape(particles.shape)
    placement = target.placement
    if placement.mesh is None:
        found, draws, chosen, _, cost = _follow_paths(noise, particles, target)
    else:
        # Every device follows all paths, and then draws its own share of the particles.
        noise = placement.rows(noise)
        few = placement.whole((noise[:NUM_DRAWS], particles[:NUM_DRAWS]))
        found, _, chosen, approximations, cost = _follow_paths(*few, target)
        draws = placement.rows(_draws_from(noise, approximations))
    return jnp.where(found, draws, particles), jnp.where(found, chosen, 0.0), cost


class _Round(NamedTuple):
    """The state between two rounds of :func:`_follow_paths`.

    Attributes:
        which: index of the next round, scalar; rounds that are not needed are left out.
        number: number of rounds so far, scalar.
        stalled: number of rounds since the evidence last rose, scalar.
        descent: positions of the paths.
        best: best normal approximations of the paths.
        placed: particles drawn so far, (num_particles, dim).
        chosen: the centering, scalar.
    """

    which: jax.Array
    number: jax.Array
    stalled: jax.Array
    descent: Descent
    best: Best
    placed: jax.Array
    chosen: jax.Array


class Approximations(NamedTuple):
    """The mixture from which the particles are drawn.

    Attributes:
        best: the best normal approximation of each path.
        history: inverse Hessians of the paths.
        bound: evidence lower bound, -inf for paths of the other centering, (num_paths,).
    """

    best: Best
    history: History
    bound: jax.Array


def _draws_from(noise: jax.Array, approximations: Approximations) -> jax.Array:
    """Map white noise (n, dim) to draws, shared among the paths by their evidence."""
    path = _share_out(approximations.bound, noise.shape[0])
    return _draws(noise, path, approximations.best, approximations.history)


def _follow_paths(
    noise: jax.Array, particles: jax.Array, target: Target
) -> tuple[jax.Array, jax.Array, jax.Array, Approximations, Cost]:
    """Whether a path was successful, draws, the centering, the mixture, and the cost."""
    num_particles, dim = particles.shape
    placement = target.placement
    num_paths = min(NUM_PATHS, num_particles)
    length = NUM_ROUNDS * EVALUATIONS_PER_ROUND
    dtype = particles.dtype
    centering = jnp.zeros(num_paths)
    if target.is_rewritten is not None:
        centering = jnp.arange(num_paths) % 2.0
    smoothed = _smoothed_potential(target._replace(centering=centering))

    history = History(
        steps=jnp.zeros((num_paths, length, dim), dtype),
        duals=jnp.zeros((num_paths, length, dim), dtype),
        initial=jnp.ones(num_paths, dtype),
        num_factors=jnp.zeros(num_paths, int),
        log_det=jnp.zeros(num_paths, dtype),
    )
    # A path whose value is infinite accepts the first finite point, which is its own start.
    descent = Descent(
        position=particles[:num_paths],
        value=jnp.full(num_paths, jnp.inf, dtype),
        gradient=jnp.zeros((num_paths, dim), dtype),
        direction=jnp.zeros((num_paths, dim), dtype),
        length=jnp.ones(num_paths, dtype),
        history=history,
    )
    best = Best(
        bound=jnp.full(num_paths, -jnp.inf, dtype),
        position=particles[:num_paths],
        num_factors=jnp.zeros(num_paths, int),
        initial=jnp.zeros(num_paths, dtype),
        log_det=jnp.zeros(num_paths, dtype),
    )

    has_centerings = target.is_rewritten is not None
    num_draws = min(NUM_DRAWS, num_particles)
    every_path = jnp.arange(num_draws) % num_paths

    def one_round(round_: _Round) -> _Round:
        """Descend and compare; after the last comparison, draw the particles block by block.

        If there is a choice of centering, the best path of each centering is compared once more
        between the two, with new draws, because it was chosen by the previous ones. These and the
        final draws take further rounds, so that draws and their gradients are compiled only once.
        """
        i, _, stalled, descent, best, placed, chosen = round_
        is_last = i >= NUM_ROUNDS
        is_duel = (i == NUM_ROUNDS) & has_centerings
        block = jnp.maximum(i - NUM_ROUNDS - has_centerings, 0)
        row = (block * num_draws + jnp.arange(num_draws)) % num_particles
        descent = lax.fori_loop(
            0,
            jnp.where(is_last, 0, EVALUATIONS_PER_ROUND),
            lambda _, d: _descend(d, smoothed),
            descent,
        )
        final_path = _share_out(jnp.where(centering == chosen, best.bound, -jnp.inf), num_particles)
        of_centering = centering[None] == jnp.arange(2)[:, None]
        rivals = jnp.argmax(jnp.where(of_centering, best.bound[None], -jnp.inf), 1)
        # In previous rounds, a path had every eighth draw: odd draws if its number is odd, and even
        # draws otherwise. Here the rivals exchange odd and even draws.
        rival_path = rivals[(jnp.arange(num_draws) + 1) % 2]
        path = jnp.where(is_last, jnp.where(is_duel, rival_path, final_path[row]), every_path)
        white = noise[row]

        history = descent.history
        here = Best(
            best.bound, descent.position, history.num_factors, history.initial, history.log_det
        )
        source = jax.tree.map(lambda b, h: jnp.where(is_last, b, h), best, here)
        draws = _draws(white, path, source, history)
        drawn = target._replace(centering=centering[path])
        value = drawn.value_and_grad(draws)[0] + drawn.prior_potential(draws)
        # The energy of the white noise is subtracted; its mean is the same for all paths. If an
        # approximation is exact, the difference is constant, so that few draws are needed to
        # distinguish good paths from bad ones.
        value -= (white**2).sum(1) / 2
        member = path[None] == jnp.arange(num_paths)[:, None]
        number = member.sum(1)
        energy = jnp.where(member, value[None], 0.0).sum(1) / number
        spread = jnp.where(member, (value[None] - energy[:, None]) ** 2, 0.0).sum(1)
        bound = source.log_det / 2 - energy
        # Two standard errors are subtracted, because energies of bad approximations scatter more.
        judged = bound - 2 * jnp.sqrt(spread) / number
        judged = jnp.where(jnp.isfinite(best.bound + judged), judged, -jnp.inf)[rivals]
        # All chains choose together, so that their coordinates have the same meaning.
        judged = target.placement.chain_mean(judged)
        chosen = jnp.where(is_duel, centering[rivals[jnp.argmax(judged)]], chosen)
        here = here._replace(bound=jnp.where(is_last, -jnp.inf, bound))
        better = _keep_better(best, here)
        # The paths of all chains end at the same time, so that all chains take the same rounds.
        gain = jax.nn.logsumexp(better.bound) - jax.nn.logsumexp(best.bound)
        is_idle = placement.chain_mean(jnp.where(gain < _GAIN, 1.0, 0.0)) == 1
        stalled = jnp.where(is_idle, stalled + 1, 0)
        is_over = is_last | (stalled >= _IDLE_ROUNDS)
        return _Round(
            jnp.where(is_over, jnp.maximum(i + 1, NUM_ROUNDS), i + 1),
            round_.number + 1,
            stalled,
            descent,
            better,
            placed.at[row].set(draws),
            chosen,
        )

    num_rounds = NUM_ROUNDS + has_centerings + math.ceil(num_particles / num_draws)
    zero = jnp.zeros((), int)
    last = lax.while_loop(
        lambda round_: round_.which < num_rounds,
        one_round,
        _Round(zero, zero, zero, descent, best, particles, centering[0]),
    )
    num_descents = last.number - has_centerings - math.ceil(num_particles / num_draws)
    cost = Cost(
        num_descents * num_paths * EVALUATIONS_PER_ROUND + last.number * num_draws,
        num_descents * EVALUATIONS_PER_ROUND + last.number,
    )
    best, chosen = last.best, last.chosen
    found = jnp.any(jnp.isfinite(best.bound))
    bound = jnp.where(centering == chosen, best.bound, -jnp.inf)
    approximations = Approximations(best, last.descent.history, bound)
    return found, last.placed, chosen, approximations, cost
