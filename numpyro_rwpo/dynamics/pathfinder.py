r"""Quasi-Newton start: bring an ensemble from arbitrary positions into the typical set.

A few BFGS paths descend the potential. Along each path, normal approximations :math:`N(x_k, H_k)`
with the inverse Hessian estimate are compared by their evidence lower bound, and the particles are
drawn from the best ones (Zhang, Carpenter, Gelman and Vehtari 2022, Pathfinder). Since the bound
decides, and not the optimum, the start is also useful if the mode is not (funnels, unbounded
densities).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.bfgs import (
    Descent,
    History,
    PotentialAndGrad,
    apply_factors,
    descend,
    first_descent,
)
from numpyro_rwpo.dynamics.ensemble import (
    Ensemble,
    is_usable,
    potential,
    replace,
    unevaluated,
)
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.control_flow import batched_like

NUM_PATHS = 8
NUM_ROUNDS = 12  # comparisons of the evidence lower bound along a path
EVALUATIONS_PER_ROUND = 8
NUM_DRAWS = 64  # of all paths together, for one comparison
# Nats by which the evidence of all paths together must rise in a round for them to go on, and the
# rounds that may pass without that: less is within the noise of eight draws a path.
_GAIN, _IDLE_ROUNDS = 1.0, 2


class Cost(NamedTuple):
    """Numbers of gradient evaluations, scalars.

    Attributes:
        num_gradients: evaluations of all particles together.
        num_rows: evaluations one after another.
    """

    num_gradients: jax.Array
    num_rows: jax.Array


class Start(NamedTuple):
    """An ensemble drawn from the best normal approximations.

    Attributes:
        ensemble: evaluated particles, shared among the paths in proportion to their estimated
            evidence, with wider tails than the normal densities; the starting positions, not
            evaluated, if no path was successful.
        draws: draws of the normal densities, or the starting positions, (num_particles, dim).
        centering: the centering with more evidence, scalar.
        cost: what the descents cost.
    """

    ensemble: Ensemble
    draws: jax.Array
    centering: jax.Array
    cost: Cost


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


def _draws(noise: jax.Array, path: jax.Array, best: Best, history: History) -> jax.Array:
    """Map white noise (n, dim) to the best normal approximation of ``path`` (n,), F noise + x."""
    draws = jnp.sqrt(best.initial)[path][:, None] * noise
    return best.position[path] + apply_factors(history, best.num_factors, path, draws)


def _widened(noise: jax.Array) -> jax.Array:
    """White noise (n, dim) with the same middle and wide tails: its standard deviation is 2.8.

    Normal approximations have too few draws in the tails of most posteriors, and the exact moves
    fill tails more slowly than they empty them.
    """
    return noise + noise**3 / 2


def smoothed_potential(target: Target) -> PotentialAndGrad:
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


def quasi_newton_start(rng_key: jax.Array, particles: jax.Array, target: Target) -> Start:
    """Place an ensemble by the best normal approximations along a few BFGS paths.

    Args:
        rng_key: one key, for the draws.
        particles: random starting positions (num_particles, dim), of which the first few start the
            paths.
        target: the posterior. If it has sites with latent scales, they are standardized on every
            other path, and all centered on the others.

    Returns:
        As many particles, evaluated, the centering that all chains have chosen, and the cost.
    """
    # The random numbers have one axis, because XLA takes several times as long to compile two.
    noise = random.normal(rng_key, (particles.size,), particles.dtype).reshape(particles.shape)
    placement = target.placement
    if placement.mesh is None:
        last, bound, cost = _follow_paths(noise, particles, target)
    else:  # Every device follows all paths, and then draws its own share of the particles.
        noise = placement.rows(noise)
        few = placement.whole((noise[:NUM_DRAWS], particles[:NUM_DRAWS]))
        last, bound, cost = _follow_paths(*few, target)
    path = _share_out(bound, noise.shape[0])
    draws = placement.rows(_draws(noise, path, last.best, last.descent.history))
    ensemble = last.placed
    if placement.mesh is not None:
        wide = placement.rows(_draws(_widened(noise), path, last.best, last.descent.history))
        target = target._replace(centering=last.chosen)
        ensemble = Ensemble(wide, *target.value_and_grad(wide))
    ensemble = replace(ensemble, ~is_usable(ensemble.smooth, ensemble.gradient), target)
    found = jnp.any(jnp.isfinite(last.best.bound))
    return Start(
        jax.tree.map(lambda x, y: jnp.where(found, x, y), ensemble, unevaluated(particles)),
        jnp.where(found, draws, particles),
        jnp.where(found, last.chosen, 0.0),
        cost,
    )


class _Round(NamedTuple):
    """The state between two rounds of :func:`_follow_paths`.

    Attributes:
        which: index of the next round, scalar; rounds that are not needed are left out.
        number: number of rounds so far, scalar.
        stalled: number of rounds since the evidence last rose, scalar.
        descent: positions of the paths.
        best: best normal approximations of the paths.
        placed: particles placed so far, evaluated.
        chosen: the centering, scalar.
    """

    which: jax.Array
    number: jax.Array
    stalled: jax.Array
    descent: Descent
    best: Best
    placed: Ensemble
    chosen: jax.Array


class _Search(NamedTuple):
    """What stays the same in all rounds of :func:`_follow_paths`.

    Attributes:
        target: the posterior.
        centering: centering of each path, (num_paths,).
        noise: white noise for the draws, (num_particles, dim).
    """

    target: Target
    centering: jax.Array
    noise: jax.Array

    @property
    def num_draws(self) -> int:
        """Number of draws in a round, of all paths together."""
        return min(NUM_DRAWS, self.noise.shape[0])

    @property
    def has_duel(self) -> bool:
        """Whether there is a round that compares the centerings."""
        return self.target.site_bits is not None

    @property
    def num_last_rounds(self) -> int:
        """Number of rounds after the descents."""
        return self.has_duel + math.ceil(self.noise.shape[0] / self.num_draws)

    def of_centering(self, chosen: jax.Array, bound: jax.Array) -> jax.Array:
        """Evidence lower bounds, -inf for paths of the other centering, (num_paths,)."""
        return jnp.where(self.centering == chosen, bound, -jnp.inf)


def _follow_paths(
    noise: jax.Array, particles: jax.Array, target: Target
) -> tuple[_Round, jax.Array, Cost]:
    """The last round, the evidence of each path, -inf for the other centering, and the cost."""
    num_paths, dtype = min(NUM_PATHS, particles.shape[0]), particles.dtype
    centering = jnp.zeros(num_paths)
    if target.site_bits is not None:
        all_centered = 2 * target.site_bits.max() - 1
        centering = all_centered * (jnp.arange(num_paths) % 2)
    search = _Search(target, centering, noise)
    smoothed = smoothed_potential(target._replace(centering=centering))
    best = Best(
        bound=jnp.full(num_paths, -jnp.inf, dtype),
        position=particles[:num_paths],
        num_factors=jnp.zeros(num_paths, int),
        initial=jnp.zeros(num_paths, dtype),
        log_det=jnp.zeros(num_paths, dtype),
    )
    descent = first_descent(particles[:num_paths], NUM_ROUNDS * EVALUATIONS_PER_ROUND)
    num_tried = descent.history.num_tried  # the same for all chains
    placed = unevaluated(particles)
    best, descent, placed = batched_like(particles, (best, descent, placed))
    history = descent.history._replace(num_tried=num_tried)
    descent = descent._replace(history=history)
    zero = jnp.zeros((), int)
    last = lax.while_loop(
        lambda round_: round_.which < NUM_ROUNDS + search.num_last_rounds,
        lambda round_: _one_round(round_, search, smoothed),
        _Round(zero, zero, zero, descent, best, placed, centering[0]),
    )
    num_descents = last.number - search.num_last_rounds
    cost = Cost(
        num_descents * num_paths * EVALUATIONS_PER_ROUND + last.number * search.num_draws,
        num_descents * EVALUATIONS_PER_ROUND + last.number,
    )
    return last, search.of_centering(last.chosen, last.best.bound), cost


def _one_round(round_: _Round, search: _Search, smoothed: PotentialAndGrad) -> _Round:
    """Descend and compare; after the last comparison, draw the particles block by block.

    If there is a choice of centering, the best path of each centering is compared once more between
    the two, with new draws, because it was chosen by the previous ones. These and the final draws
    take further rounds, so that draws and their gradients are compiled only once.
    """
    i, best, chosen = round_.which, round_.best, round_.chosen
    num_particles, num_draws = search.noise.shape[0], search.num_draws
    is_last = i >= NUM_ROUNDS
    is_duel = (i == NUM_ROUNDS) & search.has_duel
    block = jnp.maximum(i - NUM_ROUNDS - search.has_duel, 0)
    row = (block * num_draws + jnp.arange(num_draws)) % num_particles
    descent = lax.fori_loop(
        0,
        jnp.where(is_last, 0, EVALUATIONS_PER_ROUND),
        lambda _, d: descend(d, smoothed),
        round_.descent,
    )
    final_path = _share_out(search.of_centering(chosen, best.bound), num_particles)
    of_centering = search.centering[None] == search.centering[:2, None]
    rivals = jnp.argmax(jnp.where(of_centering, best.bound[None], -jnp.inf), 1)
    # In previous rounds, a path had every eighth draw: odd draws if its number is odd, and even
    # draws otherwise. Here the rivals exchange odd and even draws.
    rival_path = rivals[(jnp.arange(num_draws) + 1) % 2]
    every_path = jnp.arange(num_draws) % search.centering.size
    path = jnp.where(is_last, jnp.where(is_duel, rival_path, final_path[row]), every_path)

    history = descent.history
    here = Best(best.bound, descent.position, history.num_factors, history.initial, history.log_det)
    source = jax.tree.map(lambda b, h: jnp.where(is_last, b, h), best, here)
    noise = search.noise[row]
    noise = jnp.where(is_last & ~is_duel, _widened(noise), noise)
    draws, bound, error = _compared(search, source, history, path, noise)
    # Two standard errors are subtracted, because energies of bad approximations scatter more.
    judged = bound - 2 * error
    judged = jnp.where(jnp.isfinite(best.bound + judged), judged, -jnp.inf)[rivals]
    # All chains choose together, so that their coordinates have the same meaning.
    judged = search.target.placement.chain_mean(judged)
    chosen = jnp.where(is_duel, search.centering[rivals[jnp.argmax(judged)]], chosen)
    better = _keep_better(best, here._replace(bound=jnp.where(is_last, -jnp.inf, bound)))
    # The paths of all chains end at the same time, so that all chains take the same rounds.
    gain = jax.nn.logsumexp(better.bound) - jax.nn.logsumexp(best.bound)
    is_idle = search.target.placement.chain_mean(jnp.where(gain < _GAIN, 1.0, 0.0)) == 1
    stalled = jnp.where(is_idle, round_.stalled + 1, 0)
    is_over = is_last | (stalled >= _IDLE_ROUNDS)
    following = jnp.where(is_over, jnp.maximum(i + 1, NUM_ROUNDS), i + 1)
    placed = jax.tree.map(lambda old, new: old.at[row].set(new), round_.placed, draws)
    number = round_.number + 1
    return _Round(following, number, stalled, descent, better, placed, chosen)


def _compared(
    search: _Search, source: Best, history: History, path: jax.Array, noise: jax.Array
) -> tuple[Ensemble, jax.Array, jax.Array]:
    """Draws from the normal approximations of the paths, and what they say of the evidence.

    Args:
        search: as in all rounds.
        source: the normal approximations.
        history: their inverse Hessians.
        path: the path of each draw, (num_draws,).
        noise: white noise, (num_draws, dim).

    Returns:
        The draws, and of each path the evidence lower bound and its standard error, (num_paths,).
    """
    positions = _draws(noise, path, source, history)
    drawn = search.target._replace(centering=search.centering[path])
    draws = Ensemble(positions, *drawn.value_and_grad(positions))
    # Log importance weights scatter less than energies, so that few draws are needed to distinguish
    # good paths from bad ones. If an approximation is exact, they are all the log evidence.
    log_weight = source.log_det[path] / 2 + (noise**2).sum(1) / 2 - potential(draws, drawn)
    member = path[None] == jnp.arange(search.centering.size)[:, None]
    number = member.sum(1)
    bound = jnp.where(member, log_weight[None], 0.0).sum(1) / number
    spread = jnp.where(member, (log_weight[None] - bound[:, None]) ** 2, 0.0).sum(1)
    return draws, bound, jnp.sqrt(spread) / number
