"""Valleys of low density that divide a group of particles without a gap.

Some particles lie on a low saddle between two modes, and join them without a wide gap. Where this
is so, two things are seen at once: the density of particles falls and rises again, and the
particles in between are higher than those on either side. A curved ridge or a heavy tail shows at
most one of the two. Neither takes an evaluation.

Reference: Chazal, Guibas, Oudot and Skraba (2013), Persistence-based clustering in Riemannian
manifolds, Journal of the ACM 60, sec. 2: peaks of a density estimate on a graph of neighbors join
at their saddle, unless both are higher than it by more than a threshold.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# The density at a point follows from the distance to the one that is so manyth nearest. Its log has
# a standard deviation of 0.35, and a part needs as many particles to be one.
RANK = 8
# Depth of a valley in nats, in terms of the density. It is more than five standard deviations, and
# less than BARRIER of the search, since the estimate smooths the valley.
DEPTH = 2.0
# Height in nats of the particles in the valley above those on either side. The particles of a mode
# are themselves d / 2 nats above its lowest point, so that this is less than a barrier, too.
RISE = 1.0
# Particles in the valley whose median height is compared.
NUM_BETWEEN = 8


def distances(points: Array) -> Array:
    """Distances between all points (n, dim), (n, n)."""
    square = (points**2).sum(1)
    return np.sqrt(np.maximum(square[:, None] + square - 2 * points @ points.T, 0.0))


def parts(points: Array, heights: Array, are_neighbors: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number of the part of each point between valleys, from 0 on, (n,).

    Args:
        points: in the few directions in which modes can differ, (n, r).
        heights: potential at each, in nats, (n,).
        are_neighbors: points that no gap separates, (n, n).
    """
    if len(points) < 2 * RANK:
        return np.zeros(len(points), np.intp)
    distance = distances(points)
    nearest = np.argsort(distance, axis=1, kind="stable")
    radius = distance[np.arange(len(points)), nearest[:, RANK]]
    density = -points.shape[1] * np.log(np.maximum(radius, np.finfo(np.float32).tiny))
    part = _peaks(density, are_neighbors)
    while True:
        shallow = _shallowest(part, distance, heights)
        if shallow is None:
            return np.unique(part, return_inverse=True)[1]
        part[part == shallow[0]] = shallow[1]


def _peaks(density: Array, are_neighbors: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The peak, a number of a point, from which each point is reached without a deep valley."""
    peak = np.full(len(density), -1)
    for k in np.argsort(-density, kind="stable"):
        around = np.unique(peak[are_neighbors[k] & (peak >= 0)])
        if not len(around):
            peak[k] = k
            continue
        around = around[np.argsort(-density[around], kind="stable")]
        peak[k] = around[0]
        for lower in around[1:]:
            is_small = (peak == lower).sum() < RANK
            if density[lower] - density[k] < DEPTH or is_small:
                peak[peak == lower] = around[0]
    return peak


def _shallowest(
    part: NDArray[np.intp], distance: Array, heights: Array
) -> tuple[np.intp, np.intp] | None:
    """A part and the nearest other one to which it belongs, ``None`` if all are separate.

    They belong together if the particles between them are not higher than theirs, or if a part is
    too small to tell.
    """
    labels, sizes = np.unique(part, return_counts=True)
    for label in labels[np.argsort(sizes, kind="stable")]:
        others = np.flatnonzero(part != label)
        if not len(others):
            return None
        own = np.flatnonzero(part == label)
        between, nearest = _between(own, others, part, distance)
        level = max(np.median(heights[own]), np.median(heights[part == nearest]))
        if len(own) < RANK or np.median(heights[between]) - level < RISE:
            return label, nearest
    return None


def _between(
    own: NDArray[np.intp], others: NDArray[np.intp], part: NDArray[np.intp], distance: Array
) -> tuple[NDArray[np.intp], np.intp]:
    """The particles of a part and of the nearest other one that are closest to each other."""
    nearest = part[others[np.argmin(distance[np.ix_(own, others)].min(0))]]
    theirs = np.flatnonzero(part == nearest)
    gap = distance[np.ix_(own, theirs)]
    half = NUM_BETWEEN // 2
    near_own = own[np.argsort(gap.min(1), kind="stable")[:half]]
    near_theirs = theirs[np.argsort(gap.min(0), kind="stable")[:half]]
    return np.concatenate([near_own, near_theirs]), nearest
