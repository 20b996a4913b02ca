"""The attention weights of one particle."""

from typing import Any

import numpy as np

from numpyro_rwpo.diagnostics.plots.style import COLORS, GRAY, axes_or_new, remove_frame
from numpyro_rwpo.heads.density import attention_weights
from numpyro_rwpo.priors.laplace import LaplacePrior


def plot_attention(
    particles: Any,
    query: int,
    prior: LaplacePrior | None = None,
    *,
    prox_time: Any = None,
    attention: str = "joint",
    coordinates: tuple[int, int] = (0, 1),
    axes: Any = None,
) -> Any:
    """Show which particles one particle attends to.

    Args:
        particles: an ensemble, (num_particles, dim), dim at least 2.
        query: index of the particle that attends to the others.
        prior: Laplace prior; ``None`` for no prior.
        prox_time: prox time T in squared units of the positions, scalar or (dim,); without, a tenth
            of the variance of each coordinate.
        attention: ``"joint"`` for one softmax over all coordinates; ``"marginal"`` for one per
            coordinate, in which case that of the first of ``coordinates`` is shown.
        coordinates: the two coordinates that are drawn.
        axes: axes to draw on; without, new ones.

    Returns:
        The axes. The area of a point is proportional to its weight; the title has the effective
        number of particles attended to.

    Raises:
        ValueError: ``particles`` or ``query`` is out of range, or ``attention`` is unknown.
    """
    particles = np.asarray(particles)
    if particles.ndim != 2 or particles.shape[1] < 2:
        raise ValueError(
            f"`particles` must have shape (num_particles, dim >= 2); got {particles.shape}."
        )
    if not 0 <= query < len(particles):
        raise ValueError(f"`query` must be an index below {len(particles)}; got {query}.")
    if prox_time is None:
        prox_time = 0.1 * particles.var(0)
    weights = np.asarray(attention_weights(particles, query, prior, prox_time, attention))
    if attention == "marginal":
        weights = weights[:, coordinates[0]]
    axes = axes_or_new(axes)
    first, second = particles[:, coordinates[0]], particles[:, coordinates[1]]
    axes.scatter(first, second, s=6, color=GRAY, alpha=0.5, lw=0)
    sizes = 400 * weights / weights.max()
    axes.scatter(first, second, s=sizes, color=COLORS[0], alpha=0.5, lw=0)
    axes.plot(first[query], second[query], "+", color=COLORS[1], markersize=12, mew=2)
    axes.set_xlabel(f"coordinate {coordinates[0]}")
    axes.set_ylabel(f"coordinate {coordinates[1]}")
    axes.set_title(f"effective number attended to: {1 / np.sum(weights**2):.1f}", fontsize="medium")
    remove_frame(axes)
    return axes
