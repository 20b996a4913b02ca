"""Regression coefficients: shrinkage paths, and which ones are selected."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from numpyro_rwpo.diagnostics.plots.style import COLORS, GRAY, axes_or_new, remove_frame
from numpyro_rwpo.diagnostics.selection import select_variables


def _coefficient_names(names: Sequence[str] | None, number: int) -> list[str]:
    names = [str(k) for k in range(number)] if names is None else list(names)
    if len(names) != number:
        raise ValueError(
            f"`names` must have {number} entries, one per coefficient; got {len(names)}."
        )
    return names


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Move heights of labels as little as possible so that they are at least ``gap`` apart.

    The order stays the same, and the sum of squared moves is the smallest possible: an isotonic
    regression.
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
    """Draw the posterior of every coefficient against the scale of its prior.

    Args:
        scales: scales of the prior, one per run, (num_scales,), positive.
        draws: draws of the coefficients, (num_scales, ..., num_coefficients).
        names: names of the coefficients; without, their numbers.
        level: probability of the central interval that is shaded.
        axes: axes to draw on; without, new ones.

    Returns:
        The axes.

    Raises:
        ValueError: the shapes do not match.
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
    axes = axes_or_new(axes, (6.5, 4.0))
    heights = _apart(middle[-1], 0.045 * max(high.max() - low.min(), np.finfo(float).tiny))
    for k, name in enumerate(names):
        color = f"C{k % 10}"
        axes.plot(scales[order], middle[:, k], color=color, linewidth=1.5)
        axes.fill_between(scales[order], low[:, k], high[:, k], color=color, alpha=0.12, lw=0)
        axes.annotate(
            f" {name}",
            (scales[order][-1], heights[k]),
            color=color,
            fontsize="small",
            va="center",
        )
    axes.axhline(0.0, color=GRAY, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("scale of the Laplace prior")
    axes.set_ylabel(f"coefficient: median and {level:.0%} interval")
    remove_frame(axes)
    return axes


def plot_selection(
    draws: Any,
    epsilon: float,
    *,
    names: Sequence[str] | None = None,
    max_fdr: float = 0.05,
    axes: Any = None,
) -> Any:
    """Draw every coefficient with the probabilities of its sign and of being negligible.

    Args:
        draws: draws of the coefficients, (..., num_coefficients).
        epsilon: effect below which a coefficient is negligible, in its own units.
        names: names of the coefficients; without, their numbers.
        max_fdr: largest Bayesian false-discovery rate of the selected set.
        axes: axes to draw on; without, new ones.

    Returns:
        The axes; see :func:`numpyro_rwpo.diagnostics.selection.select_variables` for the numbers.

    Raises:
        ValueError: the shapes do not match, or a number is out of range.
    """
    selection = select_variables(draws, epsilon, max_fdr)
    draws = np.asarray(draws, np.float64)
    flat = draws.reshape(-1, draws.shape[-1])
    names = _coefficient_names(names, flat.shape[1])
    axes = axes_or_new(axes, (7.0, 0.8 + 0.32 * len(names)))
    rows = np.arange(len(names))[::-1]
    low, lower, middle, upper, high = np.quantile(flat, [0.025, 0.25, 0.5, 0.75, 0.975], axis=0)
    axes.axvspan(-epsilon, epsilon, color=GRAY, alpha=0.2, lw=0)
    colors = [COLORS[0] if chosen else GRAY for chosen in selection.selected]
    axes.hlines(rows, low, high, color=colors, linewidth=1.3)
    axes.hlines(rows, lower, upper, color=colors, linewidth=4.5)
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
    axes.set_xlabel("coefficient: median, 50% and 95% interval; gray band: negligible")
    axes.set_title(
        f"selected (blue): {selection.selected.sum()} of {len(names)}, Bayesian false-discovery "
        f"rate {selection.false_discovery_rate:.3f}",
        fontsize="medium",
    )
    remove_frame(axes)
    return axes
