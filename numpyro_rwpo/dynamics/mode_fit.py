"""Normal densities and weights of the modes, from the ensembles that explored them.

Everything here runs on the host in double precision, because it is done once and is small.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from numpyro_rwpo.dynamics.exploration import Explored
from numpyro_rwpo.dynamics.factors import LowRank, to_whitened
from numpyro_rwpo.dynamics.mode_search import Array, Evaluate
from numpyro_rwpo.dynamics.modes import Modes, log_densities, place_in

# Two ensembles are in the same mode if more than this share of each lies where the other one's
# normal density is larger. Were they equal, it would be a half; over a barrier of a few nats, a
# tenth of an ensemble may have strayed into the next mode.
MIN_SHARED = 0.25
# An ensemble is in no mode of its own if less than this share of it lies where its own normal
# density is larger than those of modes that are in the list already.
MIN_OWN = 0.5
# Closest pairs of particles of two ensembles between which a barrier is looked for, points between
# them, and the height in nats that counts as a barrier; and the number of nearest ensembles to
# which each is compared.
_NUM_CLOSEST, _NUM_POINTS, MAX_EXCESS = 4, 3, 2.0
_NUM_NEAREST = 4
# Acceptance probability of draws of an ensemble's normal density, below which it describes no mode
# well, or several at once. Such ensembles come last: their place may be taken by then.
MIN_ACCEPTANCE = 0.02
# Modes whose weight is below this share are left out: in 4,000 draws, they have less than one.
MIN_WEIGHT = 1e-4
# Squared ratio of a variance to that of the metric, 1 for a normal density, up to which gradients
# tell the mean better than a running mean does.
MAX_NORMAL_EXCESS = 1.25
# Draws of each normal density for each particle, from which the weights are estimated.
NUM_DRAWS = 4
# Steps of the iteration of bridge sampling, which converges quickly.
_NUM_BRIDGE_STEPS = 50


# Without `jit`, every operation of these would be a program of its own.
_whitened = jax.jit(to_whitened)
_densities = jax.jit(jax.vmap(log_densities, (None, 0)))


class Fitted(NamedTuple):
    """The modes, and the numbers of the ensembles from which they come.

    Attributes:
        modes: the list of modes.
        kept: numbers of the ensembles, (num_modes,).
        distinct: all modes, of which some are left out of the list for their small weight.
        is_kept: which of these are in the list, (number of them,).
    """

    modes: Modes
    kept: NDArray[np.intp]
    distinct: Modes
    is_kept: NDArray[np.bool_]


def fit_modes(rng_key: jax.Array, explored: Explored, evaluate: Evaluate) -> Fitted:
    """The distinct modes that are worth a place in the list.

    Args:
        rng_key: one key, for draws of the normal densities.
        explored: ensembles with a leading axis.
        evaluate: potential at positions, (n, dim) -> (n,).
    """
    explored = jax.device_get(explored)
    modes = normal_modes(explored)
    kept = _distinct(rng_key, modes, explored, evaluate)
    modes = _selected(modes, kept)
    if len(kept) < 2:
        return Fitted(modes, kept, modes, np.ones(len(kept), bool))
    ratios = _log_ratios(rng_key, modes, _selected(explored, kept), evaluate)
    log_weight = np.array([_bridge(*of_one) for of_one in ratios])
    log_weight -= np.logaddexp.reduce(log_weight)
    is_kept = log_weight > np.log(MIN_WEIGHT)
    distinct = modes._replace(log_weight=jnp.asarray(log_weight, modes.mean.dtype))
    log_weight = log_weight[is_kept] - np.logaddexp.reduce(log_weight[is_kept])
    modes = _selected(modes, np.flatnonzero(is_kept))
    modes = modes._replace(log_weight=jnp.asarray(log_weight, modes.mean.dtype))
    return Fitted(modes, kept[is_kept], distinct, is_kept)


def _selected(tree: Any, kept: NDArray[np.intp]) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[kept], tree)


def normal_modes(explored: Explored) -> Modes:
    """The normal density of each ensemble, with equal weights.

    The covariances are the metrics of warm-up, wider where the particles are wider beyond what
    their number explains. The factors are symmetric, so that the map from one mode to another
    turns as little as possible.
    """
    preconditioner = explored.adaptation.preconditioner
    num_particles, dim = explored.particles.shape[1:]
    factor: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), preconditioner.factor)
    spectrum = np.asarray(preconditioner.spectrum, np.float64)
    # The largest eigenvalue of the covariance of normal particles of unit variance is below this
    # edge (Marchenko and Pastur); running moments average over some ten ensembles.
    edge = (1 + np.sqrt(dim / (10 * num_particles))) ** 4
    widening = np.maximum(spectrum / edge, 1.0) ** 0.25
    mean = _means(explored, factor, spectrum / edge)
    dtype = explored.particles.dtype
    form, inverse, log_det = _symmetric(factor, widening)
    number = len(mean)
    numbers = (mean, form, inverse, log_det, np.full(number, -np.log(number)))
    return Modes(*jax.tree.map(lambda x: jnp.asarray(x, dtype), numbers))


def _symmetric(factor: Any, widening: Array) -> tuple[Any, Any, Array]:
    """Symmetric factors of the covariances, their inverses, and their log determinants.

    Args:
        factor: factors of the metrics, with a leading axis of modes.
        widening: by how much to widen each column, (num_modes, dim).
    """
    if isinstance(factor, LowRank):
        square: Any = factor.core @ factor.core.swapaxes(-1, -2)
        core = _symmetric_root(square)
        scale: Any = factor.scale
        inverse: Any = LowRank(1 / scale, factor.directions, np.linalg.inv(core))  # type: ignore[arg-type]
        log_det = np.log(scale).sum(1) + np.linalg.slogdet(core)[1]
        return factor._replace(core=core), inverse, log_det  # type: ignore[arg-type]
    if factor.ndim == 2:
        wide = factor * widening
        return wide, 1 / wide, np.log(wide).sum(1)
    wide = factor * widening[:, None]
    covariance = wide @ wide.swapaxes(-1, -2)
    # In common units, coordinates of all modes are treated alike.
    unit = np.exp(np.log(np.diagonal(covariance, axis1=1, axis2=2)).mean(0) / 2)
    root = unit[:, None] * _symmetric_root(covariance / np.outer(unit, unit))
    return root, np.linalg.inv(root), np.linalg.slogdet(root)[1]


def _symmetric_root(matrix: Array) -> Array:
    """The symmetric square roots of positive matrices, (..., n, n)."""
    spectrum, vectors = np.linalg.eigh(matrix)
    root = np.sqrt(np.maximum(spectrum, 1e-12 * spectrum.max(-1, keepdims=True)))
    return (vectors * root[..., None, :]) @ vectors.swapaxes(-1, -2)


def _means(explored: Explored, factor: Any, excess: Array) -> Array:
    """Means of the ensembles, (num_modes, dim).

    Gradients have mean zero, and where the density is normal, they tell how far the mean of an
    ensemble is off. Along columns of the factor where it is not, the running mean of all sweeps is
    better.

    Args:
        explored: the ensembles.
        factor: factors of their metrics.
        excess: squared ratio of the variance to that of the metric, along each column, beyond what
            the number of particles explains, (num_modes, dim).
    """
    mean = np.asarray(explored.particles, np.float64).mean(1)
    slope = np.asarray(explored.gradient, np.float64).mean(1)
    running = np.asarray(explored.adaptation.moments.mean, np.float64)
    if isinstance(factor, LowRank):
        return running
    if factor.ndim == 2:
        return np.where(excess > MAX_NORMAL_EXCESS, running, mean - factor**2 * slope)
    by_gradient = -np.einsum("kji,kj->ki", factor, slope)
    by_average = np.linalg.solve(factor, (running - mean)[..., None])[..., 0]
    shift = np.where(excess > MAX_NORMAL_EXCESS, by_average, by_gradient)
    return mean + np.einsum("kij,kj->ki", factor, shift)


def _belongs(modes: Modes, particles: jax.Array) -> NDArray[np.bool_]:
    """Whether each particle of ensemble k is rather in mode k than in mode l, (k, l, n)."""
    densities = np.asarray(_densities(modes, particles))  # (k, l, n)
    own = np.diagonal(densities, axis1=0, axis2=1).T[:, None]
    return own >= densities


class _Segments(NamedTuple):
    """Segments between close particles of two ensembles.

    Attributes:
        pair: numbers of the two ensembles, (n, 2).
        start: (n, dim).
        step: from start to end, (n, dim).
        heights: potential at both ends, (n, 2).
        square: squared length in whitened coordinates, (n,).
    """

    pair: NDArray[np.intp]
    start: Array
    step: Array
    heights: Array
    square: Array


def _are_connected(
    modes: Modes,
    explored: Explored,
    belongs: NDArray[np.bool_],
    is_same: NDArray[np.bool_],
    evaluate: Evaluate,
) -> NDArray[np.bool_]:
    """Whether there is no barrier between those particles of two ensembles that are closest.

    On the segment between two draws of a normal density, the potential is lower than at its ends,
    by t (1 - t) / 2 times their squared distance in whitened coordinates. A barrier is what lies
    above that curve.
    """
    found = [_closest(modes, explored, k, belongs, is_same[k]) for k in range(len(is_same))]
    segments = _Segments(*(np.concatenate(field) for field in zip(*found, strict=True)))
    connected = np.zeros_like(is_same)
    if not len(segments.pair):
        return connected
    share = np.arange(1, _NUM_POINTS + 1) / (_NUM_POINTS + 1)
    start, end = segments.heights[:, :1], segments.heights[:, 1:]
    expected = start + share * (end - start) - share * (1 - share) / 2 * segments.square[:, None]
    between = segments.start[:, None] + share[:, None] * segments.step[:, None]
    values = evaluate(between.reshape(-1, between.shape[2])).reshape(-1, _NUM_POINTS)
    first, second = segments.pair[(values - expected).max(1) < MAX_EXCESS].T
    connected[first, second] = connected[second, first] = True
    return connected


def _closest(
    modes: Modes,
    explored: Explored,
    k: int,
    belongs: NDArray[np.bool_],
    is_same: NDArray[np.bool_],
) -> _Segments:
    """Segments from ensemble k to the nearest others that are not known to be in the same mode.

    The few particles that have crossed a barrier during warm-up are left out.
    """
    heights = np.asarray(explored.potential, np.float64)
    # Particles that are next to each other may both be on the way up to a saddle.
    heights = np.minimum(heights, np.quantile(heights, 0.75, axis=1, keepdims=True))
    particles = np.asarray(explored.particles, np.float64)
    inverse = jax.tree.map(lambda x: x[k], modes.inverse)
    white = np.asarray(_whitened(inverse, explored.particles), np.float64)
    gap = ((white - white[k].mean(0)) ** 2).sum(-1).min(1)
    nearest = np.argsort(gap, kind="stable")
    nearest = nearest[nearest != k][:_NUM_NEAREST]
    found = []
    for other in nearest[~is_same[nearest]]:
        square = ((white[k][:, None] - white[other][None]) ** 2).sum(-1)
        is_usual = belongs[k, other][:, None] & belongs[other, k]
        order = np.argsort(np.where(is_usual, square, np.inf), axis=None)[:_NUM_CLOSEST]
        i, j = np.unravel_index(order, square.shape)
        start = particles[k, i]
        ends = np.stack([heights[k, i], heights[other, j]], 1)
        pair = np.full((len(i), 2), (k, other))
        found.append(_Segments(pair, start, particles[other, j] - start, ends, square[i, j]))
    if not found:
        nothing = np.zeros((0, particles.shape[2]))
        return _Segments(np.zeros((0, 2), np.intp), nothing, nothing, np.zeros((0, 2)), np.zeros(0))
    return _Segments(*(np.concatenate(field) for field in zip(*found, strict=True)))


def _distinct(
    rng_key: jax.Array, modes: Modes, explored: Explored, evaluate: Evaluate
) -> NDArray[np.intp]:
    """Numbers of ensembles in different modes, of those in the same the one with most evidence.

    Each is compared to those that are kept, and not to others: a single ensemble that has spread
    over several modes would otherwise make them one.
    """
    belongs = _belongs(modes, explored.particles)
    strayed = 1 - belongs.mean(2)
    is_same = np.minimum(strayed, strayed.T) > MIN_SHARED
    is_same |= _are_connected(modes, explored, belongs, is_same, evaluate)
    ratios = _log_ratios(rng_key, modes, explored, evaluate)
    is_normal = np.array([_acceptance(*of_one) for of_one in ratios]) > MIN_ACCEPTANCE
    evidence = -np.asarray(explored.potential).mean(1) + np.asarray(modes.log_det)
    kept: list[int] = []
    for k in np.lexsort((-evidence, ~is_normal)):
        is_own = belongs[k, kept].all(0).mean()  # The mean is 1 if nothing is kept yet.
        if np.isfinite(evidence[k]) and is_own > MIN_OWN and not is_same[k, kept].any():
            kept.append(int(k))
    return np.array(kept, dtype=np.intp)


def _log_ratios(
    rng_key: jax.Array, modes: Modes, explored: Explored, evaluate: Evaluate
) -> list[tuple[Array, Array]]:
    """Log ratios of posterior and normal density, at the particles of each ensemble and at draws.

    Draws that are rather in another mode have the ratio 0.
    """
    num_modes, (num_particles, dim) = len(modes.mean), explored.particles.shape[1:]
    number = np.repeat(np.arange(num_modes), NUM_DRAWS * num_particles)
    noise = jax.random.normal(rng_key, (number.size, dim), modes.mean.dtype)
    drawn = place_in(modes, number, noise)
    heights = evaluate(np.asarray(drawn))
    shift = np.log(num_modes)  # Densities of single modes, not weighted ones.
    densities = np.asarray(log_densities(modes, drawn), np.float64) + shift
    is_own = densities.argmax(0) == number
    of_draws = np.where(is_own, -heights - densities[number, np.arange(len(number))], -np.inf)
    own = np.asarray(_densities(modes, explored.particles), np.float64)
    own = np.diagonal(own, axis1=0, axis2=1).T + shift
    of_particles = -np.asarray(explored.potential, np.float64) - own
    return list(zip(of_particles, of_draws.reshape(num_modes, -1), strict=True))


def _acceptance(of_particles: Array, of_draws: Array) -> float:
    """Mean acceptance probability of draws as proposals, from log ratios at either."""
    return float(np.exp(np.minimum(0.0, of_draws[:, None] - of_particles)).mean())


def _bridge(of_particles: Array, of_draws: Array) -> float:
    """Log evidence from log ratios of posterior and proposal, at draws of each.

    Reference: Meng and Wong (1996), Simulating ratios of normalizing constants via a simple
    identity, eq. (4.1).
    """
    log_mean = np.logaddexp.reduce
    estimate = float(np.median(of_particles))
    excess = np.log(len(of_draws) / len(of_particles))
    for _ in range(_NUM_BRIDGE_STEPS):
        mixed = (
            np.logaddexp(of_particles, estimate + excess),
            np.logaddexp(of_draws, estimate + excess),
        )
        above = log_mean(of_draws - mixed[1]) - excess
        below = log_mean(-mixed[0])
        if not np.isfinite(above):  # No draw fell into the mode.
            return float(np.median(of_particles))
        estimate = float(above - below)
    return estimate
