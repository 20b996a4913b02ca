"""The draws of several samplers in one figure: intervals, densities, ranks, the worst pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from numpyro_rwpo.diagnostics.differences import Row
from numpyro_rwpo.diagnostics.draws import Draws
from numpyro_rwpo.diagnostics.plots.style import GRAY, cycle_colors, new_figure, remove_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Bins of a rank plot. A chain of a thousand draws then has 50 in each, and the share of a bin
# scatters by 14% of its mean.
_RANK_BINS = 20


class ComparedSamplers(Protocol):
    """The part of a comparison that is drawn."""

    @property
    def samplers(self) -> Sequence[Draws]:
        """The draws, the first sampler's first."""

    @property
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """For the label of each other sampler, one row per coordinate."""


def plot_comparison(comparison: ComparedSamplers, *, num_coordinates: int = 8) -> Any:
    """Draw a comparison: forest, densities, ranks, and the two most different coordinates.

    Args:
        comparison: what :func:`numpyro_rwpo.compare_runs` returned.
        num_coordinates: how many coordinates the forest shows, the most different first.

    Returns:
        Array of four axes: forest, densities and ranks of the most different coordinate, and the
        most different pair.

    Raises:
        ValueError: ``num_coordinates`` is below 1.
    """
    if num_coordinates < 1:
        raise ValueError(f"`num_coordinates` must be at least 1; got {num_coordinates}.")
    samplers = comparison.samplers
    worst = np.max([[row.worst_z for row in rows] for rows in comparison.rows.values()], axis=0)
    order = np.argsort(-worst, kind="stable")
    figure = new_figure((10.0, 7.5))
    axes = figure.subplots(2, 2).ravel()
    _plot_forest(axes[0], samplers, order[:num_coordinates])
    _plot_density(axes[1], samplers, order[0])
    _plot_ranks(axes[2], samplers, order[0])
    _plot_pair(axes[3], samplers, order[: min(2, len(order))])
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return axes


def _plot_forest(axes: "Axes", samplers: Sequence[Draws], order: np.ndarray) -> None:
    rows = np.arange(len(order))[::-1]
    heights = np.linspace(0.2, -0.2, len(samplers))
    pooled = samplers[0].values[:, :, order]
    center, scale = pooled.mean((0, 1)), np.maximum(pooled.std((0, 1)), np.finfo(float).tiny)
    for sampler, color, height in zip(samplers, cycle_colors(len(samplers)), heights, strict=True):
        values = (sampler.values[:, :, order] - center) / scale
        low, lower, middle, upper, high = np.quantile(
            values, [0.03, 0.25, 0.5, 0.75, 0.97], axis=(0, 1)
        )
        axes.hlines(rows + height, low, high, color=color, linewidth=1.3)
        axes.hlines(rows + height, lower, upper, color=color, linewidth=4.0)
        axes.plot(middle, rows + height, "o", color="white", markersize=2.5)
    axes.set_yticks(rows, [samplers[0].names[k] for k in order])
    axes.set_xlabel(f"in sd of {samplers[0].label}, from its mean")
    axes.set_title("most different first: median, 50%, 94%", fontsize="medium")
    remove_frame(axes)


def _plot_density(axes: "Axes", samplers: Sequence[Draws], index: int) -> None:
    from scipy.stats import gaussian_kde

    columns = [sampler.values[:, :, index].ravel() for sampler in samplers]
    low, high = np.quantile(np.concatenate(columns), [0.001, 0.999])
    grid = np.linspace(low, high, 300)
    for sampler, column, color in zip(samplers, columns, cycle_colors(len(samplers)), strict=True):
        if column.std() > 0:
            density = gaussian_kde(column)(grid)
            axes.plot(grid, density, color=color, label=sampler.label)
            axes.fill_between(grid, 0, density, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel(samplers[0].names[index])
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.set_title("the most different coordinate", fontsize="medium")
    remove_frame(axes)


def _plot_ranks(axes: "Axes", samplers: Sequence[Draws], index: int) -> None:
    """Ranks among the draws of all samplers, one line per chain, which is flat if they agree."""
    columns = [sampler.values[:, :, index] for sampler in samplers]
    ordered = np.sort(np.concatenate([column.ravel() for column in columns]))
    edges = np.quantile(ordered, np.linspace(0, 1, _RANK_BINS + 1))
    centers = (np.arange(_RANK_BINS) + 0.5) / _RANK_BINS
    for column, color in zip(columns, cycle_colors(len(columns)), strict=True):
        for chain in column:
            place = np.searchsorted(edges[1:-1], chain, side="right")
            share = np.bincount(place, minlength=_RANK_BINS) / len(chain) * _RANK_BINS
            axes.step(centers, share, where="mid", color=color, linewidth=0.9, alpha=0.8)
    shortest = min(column.shape[1] for column in columns)
    # Two standard deviations of a binomial count, relative to its mean.
    spread = 2 * np.sqrt((_RANK_BINS - 1) / shortest)
    axes.axhspan(max(1 - spread, 0), 1 + spread, color=GRAY, alpha=0.15, lw=0, zorder=0)
    axes.axhline(1.0, color=GRAY, linewidth=0.8, zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"rank of {samplers[0].names[index]}, all draws pooled")
    axes.set_ylabel("share of a chain, 1 expected")
    axes.set_title("ranks, one line per chain; band: 2 sd of chance", fontsize="medium")
    remove_frame(axes)


def _plot_pair(axes: "Axes", samplers: Sequence[Draws], pair: np.ndarray) -> None:
    for sampler, color in zip(samplers, cycle_colors(len(samplers)), strict=True):
        flat = sampler.values.reshape(-1, sampler.values.shape[2])
        # About a thousand points of each sampler; more would hide those of the others.
        shown = flat[:: max(1, len(flat) // 1000)]
        axes.scatter(shown[:, pair[0]], shown[:, pair[-1]], s=4, alpha=0.4, color=color, lw=0)
    axes.set_xlabel(samplers[0].names[pair[0]])
    axes.set_ylabel(samplers[0].names[pair[-1]])
    axes.set_title("the most different pair", fontsize="medium")
    remove_frame(axes)
