"""Where the particles of all chains lie in separated groups, and whether a barrier is between them.

Groups are looked for in the few directions in which the particles are spread farther than their
gradients say, because these are the directions in which modes lie apart: in each mode, the
gradients vary as much as its own width makes them. This takes no gradient. Only if there are two
groups or more, the potential is computed along the segments between them; and only if there is a
barrier on one, descents from all particles tell which modes they belong to.

Everything here runs on the host in double precision, because it is done once and is small.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.floating]
Evaluate = Callable[[Array], Array]

# Spread in a direction, as a variance relative to the one that the gradients indicate, below which
# it holds no separate groups; two groups of equal size are then less than three standard deviations
# apart. So many directions at most, in which modes of as many kinds can differ.
MIN_SPREAD, MAX_DIRECTIONS = 2.5, 10
# Two particles are neighbors if their distance is at most 1 + GAP / sqrt(r) times the distance of
# each to the particle that is its NEIGHBOR-th nearest, in r >= 2 directions. A normal density has
# such gaps at its edge now and then, and they cost no more than a few evaluations.
GAP, NEIGHBOR = 1.3, 4
# A particle that is higher than this share of the NUM_LOCAL nearest ones does not join groups.
MAX_RANK, NUM_LOCAL = 0.85, 16
# Largest number of groups that are looked at, the largest ones.
MAX_GROUPS = 64
# Largest number of particles that belong to no group and are looked at one by one.
MAX_SINGLES = 12
# Height in nats of a barrier on the straight way between two groups, above which they count as
# separated. Trajectories cross lower ones often enough.
BARRIER = 3.0
# Standard deviation of the positions from which further descents start, in standard deviations of
# what has been found so far, and times that this is done.
WIDTH, MAX_ROUNDS = 3.0, 3
# Height in nats above the lowest point found, beyond which the end of a descent is left out, and
# how much more it may be in each dimension, in which a mode may be ten times as wide: log(10).
MAX_HEIGHT, HEIGHT_PER_DIM = 10.0, 2.3
# Points on a segment, and the number of nearest groups to which each is compared.
NUM_POINTS, NUM_NEAREST = 7, 3


class Group(NamedTuple):
    """Positions without a wide gap, or the end of descents.

    Attributes:
        positions: (n, dim).
        heights: potential at each, infinite where it is not known, (n,).
        members: the particles at rest that belong to it, (number of them, dim); there may be none.
    """

    positions: Array
    heights: Array
    members: Array


def find_groups(
    positions: Array, gradients: Array, heights: Array | None = None
) -> list[NDArray[np.intp]]:
    """Groups of particles that wide gaps separate, the largest first.

    Args:
        positions: particles of all chains, (n, dim).
        heights: potential at each, (n,), ``None`` where it is not known. The few particles on a
            saddle then do not join the groups on either side.
        gradients: gradients of the potential at particles at rest, (m, dim).

    Returns:
        Indices of the particles of each group. Of the particles that are in no group of at least
        ``NEIGHBOR``, a few that are far from all others are groups of their own.
    """
    projected = _projected(positions, gradients)
    if projected.shape[1] == 0 or len(positions) <= NEIGHBOR:
        return [np.arange(len(positions))]
    distinct, first, inverse = np.unique(
        projected.round(6), axis=0, return_index=True, return_inverse=True
    )
    if len(distinct) <= NEIGHBOR:
        return [np.arange(len(positions))]
    is_core = np.ones(len(distinct), bool)
    if heights is not None and len(distinct) > 2 * NUM_LOCAL:
        is_core = ~_are_high(distinct, heights[first])
    number = _joined(distinct, is_core)
    number = number[inverse.ravel()]
    sizes = np.bincount(number)
    order = np.argsort(-sizes, kind="stable")[:MAX_GROUPS]
    groups = [np.flatnonzero(number == k) for k in order if sizes[k] >= NEIGHBOR]
    is_single = sizes[number] < NEIGHBOR
    return groups + [np.array([k]) for k in _farthest(projected, is_single)]


def _distances(points: Array) -> Array:
    """Distances between all points (n, dim), (n, n)."""
    square = (points**2).sum(1)
    return np.sqrt(np.maximum(square[:, None] + square - 2 * points @ points.T, 0.0))


def _are_high(points: Array, heights: Array) -> NDArray[np.bool_]:
    """Which points are higher than nearly all of the points around them, (n,)."""
    around = np.argsort(_distances(points), axis=1, kind="stable")[:, 1 : NUM_LOCAL + 1]
    return (heights[around] < heights[:, None]).mean(1) > MAX_RANK


def _joined(points: Array, is_core: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number of each point's group: those of the core by gaps, others that of the nearest, (n,).

    A point that a gap separates from the core is a group of its own.
    """
    core = points[is_core]
    radius, factor = _radius(_distances(core)), _largest_gap(points)
    of_core = connected_components(_are_neighbors(core), directed=False)[1]
    number = np.empty(len(points), np.intp)
    number[is_core] = of_core
    for k in np.flatnonzero(~is_core):
        distance = np.sqrt(((core - points[k]) ** 2).sum(1))
        nearest = int(np.argmin(distance))
        is_near = distance[nearest] <= factor * radius[nearest]
        number[k] = of_core[nearest] if is_near else number[is_core].max() + 1 + k
    return np.unique(number, return_inverse=True)[1]


def _largest_gap(points: Array) -> float:
    """The gap, in units of the distance to a near neighbor, that separates groups."""
    return float(1 + GAP / np.sqrt(max(points.shape[1], 2)))


def _radius(distance: Array) -> Array:
    """Distance of each point to the one that is its ``NEIGHBOR``-th nearest, (n,)."""
    rank = min(NEIGHBOR, len(distance) - 1)
    return np.partition(distance, rank, axis=1)[:, rank]


def _farthest(points: Array, is_candidate: NDArray[np.bool_]) -> list[int]:
    """Candidates of which each is as far as possible from all others and all that are none."""
    chosen: list[int] = []
    known = points[~is_candidate]
    rest = np.flatnonzero(is_candidate)
    while len(rest) and len(chosen) < MAX_SINGLES:
        if len(known):
            gap = ((points[rest][:, None] - known) ** 2).sum(2).min(1)
            pick = int(rest[np.argmax(gap)])
        else:
            pick = int(rest[0])
        chosen.append(pick)
        known = np.concatenate([known, points[pick][None]])
        rest = rest[rest != pick]
    return chosen


def _projected(positions: Array, gradients: Array) -> Array:
    """Positions in the directions of large spread, in units that follow from the gradients."""
    num_rows, dim = gradients.shape
    slopes = gradients - np.median(gradients, 0)
    quartiles = np.quantile(np.abs(slopes), 0.5, axis=0)
    limit = 15.0 * np.where(quartiles > 0, quartiles, np.inf)
    slopes = np.clip(slopes, -limit, limit)
    scaled = positions - np.median(positions, 0)
    if num_rows >= 4 * dim:
        unit = slopes.std(0) + np.finfo(np.float32).tiny
        spectrum, vectors = np.linalg.eigh(np.cov((slopes / unit).T, bias=True).reshape(dim, dim))
        scaled = (scaled * unit) @ (vectors * np.sqrt(np.maximum(spectrum, 1e-6)))
    else:
        scaled = scaled * slopes.std(0)
    _, singular, directions = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
    spread = singular**2 / len(scaled)
    kept = (spread > MIN_SPREAD) & (np.arange(len(spread)) < MAX_DIRECTIONS)
    return scaled @ directions[kept].T


def _are_neighbors(points: Array) -> NDArray[np.bool_]:
    """Which points are not separated by a wide gap, (n, n)."""
    distance = _distances(points)
    radius = _radius(distance)
    return distance <= _largest_gap(points) * np.minimum(radius[:, None], radius)


class Separated(NamedTuple):
    """A set of groups that barriers separate from all others.

    Attributes:
        position: where the potential is low, (dim,).
        members: the particles at rest in it, (n, dim); there may be none.
    """

    position: Array
    members: Array


def find_separated(groups: list[Group], evaluate: Evaluate) -> list[Separated]:
    """The sets of groups that barriers separate from each other.

    Args:
        groups: groups of particles.
        evaluate: potential at positions, (n, dim) -> (n,).
    """
    # The mean of a group is lower than its particles, unless the group is curved. From typical
    # particles of many dimensions, a barrier would be hidden: halfway between two of them, the
    # potential in all other directions is lower.
    centers = np.stack([group.positions.mean(0) for group in groups])
    lowest = np.stack([group.positions[np.argmin(group.heights)] for group in groups])
    at_lowest = np.array([group.heights.min() for group in groups])
    is_new = np.isinf(at_lowest)
    values = evaluate(np.concatenate([centers, lowest[is_new]]))
    at_center, at_lowest[is_new] = values[: len(groups)], values[len(groups) :]
    is_lower = at_center < at_lowest
    points = np.where(is_lower[:, None], centers, lowest)
    height = np.where(is_lower, at_center, at_lowest)
    number = _merged(points, height, evaluate)
    separated = []
    for k in range(number.max() + 1):
        members = np.flatnonzero(number == k)
        position = points[members[np.argmin(height[members])]]
        separated.append(Separated(position, np.concatenate([groups[i].members for i in members])))
    return separated


def wide_starts(separated: list[Separated], number: int, rng: np.random.Generator) -> Array:
    """Positions (number, dim) around all separated sets and beyond, for further descents."""
    centers = np.stack([one.position for one in separated])
    inside = np.stack([one.members.std(0) for one in separated if len(one.members)])
    spread = np.sqrt(centers.var(0) + inside.max(0) ** 2)
    return centers.mean(0) + WIDTH * spread * rng.normal(size=(number, centers.shape[1]))


def as_groups(ends: Array, starts: Array, evaluate: Evaluate, are_at_rest: bool) -> list[Group]:
    """The ends of descents (n, dim) as groups of one, each place once, the lowest first.

    Ends within a hundredth of the spread of the ``starts`` (n, dim) are one place.

    Args:
        ends: where descents have arrived, not finite where they have not, (n, dim).
        starts: where they have started, (n, dim).
        evaluate: potential at positions, (n, dim) -> (n,).
        are_at_rest: whether the starts are particles at rest, which are then the members of the
            groups. Of other descents, ends that are much too high are left out.
    """
    has_arrived = np.isfinite(ends).all(1)
    ends, members = ends[has_arrived], starts[has_arrived]
    heights = evaluate(ends) if len(ends) else np.zeros(0)
    highest = heights.min(initial=np.inf) + MAX_HEIGHT + HEIGHT_PER_DIM * ends.shape[1]
    order = np.argsort(heights, kind="stable")
    order = order if are_at_rest else order[heights[order] < highest]
    places = (ends[order] / (0.01 * starts.std(0) + np.finfo(np.float32).tiny)).round()
    _, first, place = np.unique(places, axis=0, return_index=True, return_inverse=True)
    groups = []
    for k in np.argsort(first):
        here = order[place.ravel() == k] if are_at_rest else order[:0]
        # An end is no particle at rest, whose potential is known.
        groups.append(Group(ends[order[first[k]]][None], np.array([np.inf]), members[here]))
    return groups


def _saddles(points: Array, height: Array, evaluate: Evaluate) -> tuple[NDArray[np.intp], Array]:
    """Pairs of points that are near each other, (n, 2), and the highest potential between them."""
    unit = points.std(0) + np.finfo(np.float32).tiny
    nearest = np.argsort(_distances(points / unit), axis=1, kind="stable")[:, 1 : NUM_NEAREST + 1]
    first = np.repeat(np.arange(len(points)), nearest.shape[1])
    pairs = np.unique(np.sort(np.stack([first, nearest.ravel()], 1), 1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    share = np.arange(1, NUM_POINTS + 1) / (NUM_POINTS + 1)
    start, end = points[pairs[:, 0]], points[pairs[:, 1]]
    between = start[:, None] + share[:, None] * (end - start)[:, None]
    values = evaluate(between.reshape(-1, points.shape[1])).reshape(len(pairs), NUM_POINTS)
    values = np.where(np.isfinite(values), values, np.inf)
    return pairs, np.maximum(values.max(1), height[pairs].max(1))


def _merged(points: Array, height: Array, evaluate: Evaluate) -> NDArray[np.intp]:
    """Number of each point's set, (n,): points without a barrier to one that is near are joined.

    Then the lowest points of the sets are compared in the same way, until none are joined. Many
    points of one set may be nearest to each other only.
    """
    number, num_sets = np.arange(len(points)), len(points) + 1
    while 1 < number.max() + 1 < num_sets:
        num_sets = number.max() + 1
        lowest = np.array(
            [np.flatnonzero(number == k)[np.argmin(height[number == k])] for k in np.unique(number)]
        )
        pairs, saddle = _saddles(points[lowest], height[lowest], evaluate)
        number = _joined_over(height[lowest], pairs, saddle)[number]
    return number


def _joined_over(height: Array, pairs: NDArray[np.intp], saddle: Array) -> NDArray[np.intp]:
    """Number of each point's set, (n,): sets join over saddles, from the lowest one on.

    A set is as low as its lowest point, so that a point on a saddle does not join two sets.
    """
    number = np.arange(len(height))
    lowest = np.where(np.isfinite(height), height, np.inf)
    for k in np.argsort(saddle, kind="stable"):
        first, second = number[pairs[k]]
        higher = max(lowest[first], lowest[second])
        if first != second and (not np.isfinite(higher) or saddle[k] - higher < BARRIER):
            number[number == second] = first
            lowest[first] = min(lowest[first], lowest[second])
    return np.unique(number, return_inverse=True)[1]
