"""Pictures, with matplotlib: functions take and return axes and change no global state.

Drawn with matplotlib itself and not with ArviZ, whose plotting functions differ between its 0.x
and 1.x. Statistics are elsewhere; what is drawn here are their results. Needs the extra ``plots``:
``pip install "numpyro-rwpo[plots]"``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from numpyro_rwpo.diagnostics.selection import select_variables
from numpyro_rwpo.heads.density import attention_weights
from numpyro_rwpo.priors.laplace import LaplacePrior

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

    from numpyro_rwpo.diagnostics.comparison import Comparison
    from numpyro_rwpo.diagnostics.draws import Draws

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: safe for the colour-blind
_GREY = "0.6"
_RANK_BINS = 20
_MOST_POINTS = 1000  # in a scatter plot


def _new_axes(axes: Any, figsize: tuple[float, float] = (5.0, 4.0)) -> Any:
    """The given axes, or new ones in a figure of their own, outside pyplot's register."""
    if axes is not None:
        return axes
    return _figure(figsize).subplots()


def _figure(figsize: tuple[float, float]) -> Any:
    """A figure that pyplot does not know of, so that none is left open."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "numpyro_rwpo.diagnostics.plots needs matplotlib; install it with "
            'pip install "numpyro-rwpo[plots]".'
        ) from error
    figure = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


# ------------------------------------------------------------------------------ comparison


def plot_comparison(comparison: "Comparison", *, num_coordinates: int = 8) -> Any:
    """Forest, densities, ranks and the worst pair of a comparison.

    Args:
        comparison: from :func:`numpyro_rwpo.compare`.
        num_coordinates: rows of the forest: the coordinates that differ most.

    Returns:
        Array of four axes: forest, densities of the worst coordinate, ranks of it, worst pair.

    Raises:
        ValueError: ``num_coordinates`` is below 1.
    """
    if num_coordinates < 1:
        raise ValueError(f"`num_coordinates` must be at least 1; got {num_coordinates}.")
    samplers = comparison.samplers
    worst = np.max([[row.worst_z for row in rows] for rows in comparison.rows.values()], axis=0)
    order = np.argsort(-worst, kind="stable")
    figure = _figure((10.0, 7.5))
    axes = figure.subplots(2, 2).ravel()
    _plot_forest(axes[0], samplers, order[:num_coordinates])
    _plot_density(axes[1], samplers, order[0])
    _plot_ranks(axes[2], samplers, order[0])
    _plot_pair(axes[3], samplers, order[: min(2, len(order))])
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return axes


def _plot_forest(axes: "Axes", samplers: Sequence["Draws"], order: np.ndarray) -> None:
    rows = np.arange(len(order))[::-1]
    heights = np.linspace(0.2, -0.2, len(samplers))
    pooled = samplers[0].values[:, :, order]
    centre, scale = pooled.mean((0, 1)), np.maximum(pooled.std((0, 1)), np.finfo(float).tiny)
    for sampler, colour, height in zip(samplers, _cycle(len(samplers)), heights, strict=True):
        values = (sampler.values[:, :, order] - centre) / scale
        low, lower, middle, upper, high = np.quantile(
            values, [0.03, 0.25, 0.5, 0.75, 0.97], axis=(0, 1)
        )
        axes.hlines(rows + height, low, high, color=colour, linewidth=1.3)
        axes.hlines(rows + height, lower, upper, color=colour, linewidth=4.0)
        axes.plot(middle, rows + height, "o", color="white", markersize=2.5)
    axes.set_yticks(rows, [samplers[0].names[k] for k in order])
    axes.set_xlabel(f"in sd of {samplers[0].label}, from its mean")
    axes.set_title("most different first: median, 50 %, 94 %", fontsize="medium")
    _bare(axes)


def _cycle(number: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(number)]


def _plot_density(axes: "Axes", samplers: Sequence["Draws"], index: int) -> None:
    from scipy.stats import gaussian_kde

    columns = [sampler.values[:, :, index].ravel() for sampler in samplers]
    low, high = np.quantile(np.concatenate(columns), [0.001, 0.999])
    grid = np.linspace(low, high, 300)
    for sampler, column, colour in zip(samplers, columns, _cycle(len(samplers)), strict=True):
        if column.std() > 0:
            density = gaussian_kde(column)(grid)
            axes.plot(grid, density, color=colour, label=sampler.label)
            axes.fill_between(grid, 0, density, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(samplers[0].names[index])
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.set_title("the most different coordinate", fontsize="medium")
    _bare(axes)


def _plot_ranks(axes: "Axes", samplers: Sequence["Draws"], index: int) -> None:
    """Ranks among the draws of all samplers together, one line a chain: flat if they agree."""
    columns = [sampler.values[:, :, index] for sampler in samplers]
    ordered = np.sort(np.concatenate([column.ravel() for column in columns]))
    edges = np.quantile(ordered, np.linspace(0, 1, _RANK_BINS + 1))
    centres = (np.arange(_RANK_BINS) + 0.5) / _RANK_BINS
    for column, colour in zip(columns, _cycle(len(columns)), strict=True):
        for chain in column:
            place = np.searchsorted(edges[1:-1], chain, side="right")
            share = np.bincount(place, minlength=_RANK_BINS) / len(chain) * _RANK_BINS
            axes.step(centres, share, where="mid", color=colour, linewidth=0.9, alpha=0.8)
    shortest = min(column.shape[1] for column in columns)
    spread = 2 * np.sqrt((_RANK_BINS - 1) / shortest)  # of a binomial count over its mean
    axes.axhspan(max(1 - spread, 0), 1 + spread, color=_GREY, alpha=0.15, lw=0, zorder=0)
    axes.axhline(1.0, color=_GREY, linewidth=0.8, zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"rank of {samplers[0].names[index]}, all draws pooled")
    axes.set_ylabel("share of a chain, 1 expected")
    axes.set_title("ranks, one line a chain; band: 2 sd of chance", fontsize="medium")
    _bare(axes)


def _plot_pair(axes: "Axes", samplers: Sequence["Draws"], pair: np.ndarray) -> None:
    for sampler, colour in zip(samplers, _cycle(len(samplers)), strict=True):
        flat = sampler.values.reshape(-1, sampler.values.shape[2])
        shown = flat[:: max(1, len(flat) // _MOST_POINTS)]
        axes.scatter(shown[:, pair[0]], shown[:, pair[-1]], s=4, alpha=0.4, color=colour, lw=0)
    axes.set_xlabel(samplers[0].names[pair[0]])
    axes.set_ylabel(samplers[0].names[pair[-1]])
    axes.set_title("the most different pair", fontsize="medium")
    _bare(axes)


# ------------------------------------------------------------------------------- transport


def _checked_path(particles: Any) -> np.ndarray:
    path = np.asarray(particles, np.float64)
    if path.ndim != 3 or path.shape[0] < 1 or path.shape[2] < 1:
        raise ValueError(
            "`particles` must have shape (iterations, num_particles, dim), the trajectory of one "
            f"ensemble; got {path.shape}. Collect it with `mcmc.warmup(..., collect_warmup=True, "
            'extra_fields=("ensemble.particles",))` and take one chain.'
        )
    return path


def _projected(path: np.ndarray, coordinates: tuple[int, int] | None) -> tuple[np.ndarray, Any]:
    """The path in two dimensions, and labels: two coordinates, or principal components."""
    dim = path.shape[2]
    if coordinates is not None:
        return path[:, :, list(coordinates)], [f"coordinate {k}" for k in coordinates]
    if dim <= 2:
        two = path if dim == 2 else np.concatenate([path, np.zeros_like(path)], axis=2)
        return two, ["coordinate 0", "coordinate 1" if dim == 2 else ""]
    last = path[-1]
    centre, scale = last.mean(0), np.maximum(last.std(0), np.finfo(float).tiny)
    directions = np.linalg.svd((last - centre) / scale, full_matrices=False)[2][:2]
    labels = [f"principal component {k} of the last frame" for k in (1, 2)]
    return (path - centre) / scale @ directions.T, labels


def plot_transport(
    particles: Any,
    *,
    frames: Sequence[int] | None = None,
    coordinates: tuple[int, int] | None = None,
    axes: Any = None,
) -> Any:
    """Draw an ensemble at several iterations of the warm-up, in two dimensions.

    Grey points are those of the last iteration.

    Args:
        particles: (iterations, num_particles, dim): one chain of the extra field
            ``ensemble.particles``, or of ``particles`` in ``to_arviz``'s group ``warmup_ensemble``.
        frames: iterations to draw; four without, closer together at the beginning.
        coordinates: two coordinates; principal components of the last iteration without.
        axes: one for each frame; new ones without.

    Returns:
        Array of axes, one a frame.

    Raises:
        ValueError: ``particles`` has another shape, or there are not as many axes as frames.
    """
    path, labels = _projected(_checked_path(particles), coordinates)
    if frames is None:
        last = len(path) - 1
        frames = sorted({0, min(5, last), min(15, last), last})
    if axes is None:
        axes = _figure((3.0 * len(frames), 3.0)).subplots(1, len(frames), squeeze=False)[0]
    axes = np.atleast_1d(axes)
    if len(axes) != len(frames):
        raise ValueError(f"`axes` must be one for each of {len(frames)} frames; got {len(axes)}.")
    for k, (panel, frame) in enumerate(zip(axes, frames, strict=True)):
        panel.scatter(*path[-1].T, s=6, color=_GREY, alpha=0.4, lw=0)
        panel.scatter(*path[frame].T, s=8, color=COLOURS[0], alpha=0.8, lw=0)
        panel.set_title(f"iteration {frame}", fontsize="medium")
        panel.set_xlabel(labels[0], fontsize="small")
        if k == 0:
            panel.set_ylabel(labels[1], fontsize="small")
        _bare(panel)
    return axes


def animate_transport(
    particles: Any,
    file: str | Path | None = None,
    *,
    coordinates: tuple[int, int] | None = None,
    frames_per_second: int = 10,
    axes: Any = None,
) -> "FuncAnimation":
    """Animate an ensemble through its warm-up.

    Args:
        particles: as for :func:`plot_transport`.
        file: where to save an animated GIF; nothing is saved without.
        coordinates: as for :func:`plot_transport`.
        frames_per_second: of the GIF.
        axes: to draw in; new ones without.

    Returns:
        The animation; in a notebook ``HTML(animation.to_jshtml())`` shows it.

    Raises:
        ValueError: ``particles`` has another shape.
    """
    path, labels = _projected(_checked_path(particles), coordinates)
    axes = _new_axes(axes)
    from matplotlib.animation import FuncAnimation, PillowWriter

    points = axes.scatter(*path[0].T, s=8, color=COLOURS[0], alpha=0.8, lw=0)
    # The first iterations can be far away: the picture follows the bulk of all frames.
    low, high = np.quantile(path.reshape(-1, 2), [0.02, 0.98], axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-12)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _bare(axes)

    def draw(frame: int) -> tuple[Any]:
        points.set_offsets(path[frame])
        axes.set_title(f"iteration {frame}")
        return (points,)

    animation = FuncAnimation(axes.figure, draw, frames=len(path), blit=False)
    if file is not None:
        animation.save(str(file), writer=PillowWriter(fps=frames_per_second))
    return animation


# ------------------------------------------------------------------------------- attention


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
        query: index of the particle that looks at the others.
        prior: Laplace prior; none without.
        prox_time: T, scalar or (dim,), position units squared; a tenth of the variances without.
        attention: ``"joint"``: one softmax over all coordinates; ``"marginal"``: one for each,
            of which that of the first of ``coordinates`` is shown.
        coordinates: the two that are drawn.
        axes: to draw in; new ones without.

    Returns:
        The axes; the area of a point is its weight, its effective number is in the title.

    Raises:
        ValueError: ``particles`` or ``query`` out of range, or an unknown ``attention``.
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
    axes = _new_axes(axes)
    first, second = particles[:, coordinates[0]], particles[:, coordinates[1]]
    axes.scatter(first, second, s=6, color=_GREY, alpha=0.5, lw=0)
    sizes = 400 * weights / weights.max()
    axes.scatter(first, second, s=sizes, color=COLOURS[0], alpha=0.5, lw=0)
    axes.plot(first[query], second[query], "+", color=COLOURS[1], markersize=12, mew=2)
    axes.set_xlabel(f"coordinate {coordinates[0]}")
    axes.set_ylabel(f"coordinate {coordinates[1]}")
    axes.set_title(f"effective number attended to: {1 / np.sum(weights**2):.1f}", fontsize="medium")
    _bare(axes)
    return axes


# ---------------------------------------------------------------------------- coefficients


def _coefficient_names(names: Sequence[str] | None, number: int) -> list[str]:
    names = [str(k) for k in range(number)] if names is None else list(names)
    if len(names) != number:
        raise ValueError(
            f"`names` must have {number} entries, one a coefficient; got {len(names)}."
        )
    return names


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights of labels in the same order, at least ``gap`` apart, moved as little as that takes.

    Least squares in sorted order, which is an isotonic regression.
    """
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(heights[order] - steps).x + steps
    return moved


def plot_shrinkage(
    scales: Any,
    draws: Any,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.9,
    axes: Any = None,
) -> Any:
    """Shrinkage paths: posterior of every coefficient against the scale of its prior.

    Args:
        scales: scales of the prior, one a run, (num_scales,), positive.
        draws: of the coefficients, (num_scales, ..., num_coefficients).
        names: of the coefficients.
        level: probability of the central interval that is shaded.
        axes: to draw in; new ones without.

    Returns:
        The axes.

    Raises:
        ValueError: shapes do not fit.
    """
    scales, draws = np.asarray(scales, np.float64), np.asarray(draws, np.float64)
    if scales.ndim != 1 or draws.ndim < 3 or len(draws) != len(scales):
        raise ValueError(
            "`draws` must have shape (num_scales, ..., num_coefficients) and `scales` "
            f"(num_scales,); got {draws.shape} and {scales.shape}."
        )
    draws = draws.reshape(len(scales), -1, draws.shape[-1])
    names = _coefficient_names(names, draws.shape[-1])
    order = np.argsort(scales)
    low, middle, high = np.quantile(draws[order], [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
    axes = _new_axes(axes, (6.5, 4.0))
    heights = _apart(middle[-1], 0.045 * max(high.max() - low.min(), np.finfo(float).tiny))
    for k, name in enumerate(names):
        colour = f"C{k % 10}"
        axes.plot(scales[order], middle[:, k], color=colour, linewidth=1.5)
        axes.fill_between(scales[order], low[:, k], high[:, k], color=colour, alpha=0.12, lw=0)
        axes.annotate(
            f" {name}",
            (scales[order][-1], heights[k]),
            color=colour,
            fontsize="small",
            va="center",
        )
    axes.axhline(0.0, color=_GREY, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("scale of the Laplace prior")
    axes.set_ylabel(f"coefficient: median and {level:.0%} interval")
    _bare(axes)
    return axes


def plot_selection(
    draws: Any,
    epsilon: float,
    *,
    names: Sequence[str] | None = None,
    max_fdr: float = 0.05,
    axes: Any = None,
) -> Any:
    """Posterior of every coefficient, with its sign, its nullity, and which ones are selected.

    Args:
        draws: of the coefficients, (..., num_coefficients).
        epsilon: effect below which a coefficient is negligible, in its own units.
        names: of the coefficients.
        max_fdr: limit of the Bayesian false-discovery rate of the selected set.
        axes: to draw in; new ones without.

    Returns:
        The axes; see :func:`numpyro_rwpo.diagnostics.selection.select_variables` for the numbers.

    Raises:
        ValueError: shapes do not fit, or a number is out of range.
    """
    selection = select_variables(draws, epsilon, max_fdr)
    draws = np.asarray(draws, np.float64)
    flat = draws.reshape(-1, draws.shape[-1])
    names = _coefficient_names(names, flat.shape[1])
    axes = _new_axes(axes, (7.0, 0.8 + 0.32 * len(names)))
    rows = np.arange(len(names))[::-1]
    low, lower, middle, upper, high = np.quantile(flat, [0.025, 0.25, 0.5, 0.75, 0.975], axis=0)
    axes.axvspan(-epsilon, epsilon, color=_GREY, alpha=0.2, lw=0)
    colours = [COLOURS[0] if chosen else _GREY for chosen in selection.selected]
    axes.hlines(rows, low, high, color=colours, linewidth=1.3)
    axes.hlines(rows, lower, upper, color=colours, linewidth=4.5)
    axes.scatter(middle, rows, s=8, color="white", zorder=3)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    for row, positive, null in zip(rows, selection.prob_positive, selection.prob_null, strict=True):
        sign = f"P(> 0) = {positive:.2f}" if positive >= 0.5 else f"P(< 0) = {1 - positive:.2f}"
        axes.annotate(
            f"{sign}   P(|.| < {epsilon:g}) = {null:.2f}",
            (1.02, row),
            xycoords=("axes fraction", "data"),
            fontsize="small",
            va="center",
        )
    axes.set_xlabel("coefficient: median, 50 % and 95 % interval; grey band: negligible")
    axes.set_title(
        f"selected (blue): {selection.selected.sum()} of {len(names)}, Bayesian false-discovery "
        f"rate {selection.false_discovery_rate:.3f}",
        fontsize="medium",
    )
    _bare(axes)
    return axes
