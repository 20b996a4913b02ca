"""The path of an ensemble to the posterior, in several frames or as an animation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_rwpo.diagnostics.plots.style import (
    COLORS,
    GRAY,
    axes_or_new,
    new_figure,
    remove_frame,
)

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation


def _checked_path(particles: Any) -> np.ndarray:
    path = np.asarray(particles, np.float64)
    if path.ndim != 3 or path.shape[0] < 1 or path.shape[2] < 1:
        raise ValueError(
            "`particles` must have shape (iterations, num_particles, dim), the trajectory of one "
            f"ensemble; got {path.shape}. `RWPO(model).transport_path(rng_key, *args)` returns it."
        )
    return path


def _projected(path: np.ndarray, coordinates: tuple[int, int] | None) -> tuple[np.ndarray, Any]:
    """The path in two coordinates or principal components, and the labels of these."""
    dim = path.shape[2]
    if coordinates is not None:
        return path[:, :, list(coordinates)], [f"coordinate {k}" for k in coordinates]
    if dim <= 2:
        two = path if dim == 2 else np.concatenate([path, np.zeros_like(path)], axis=2)
        return two, ["coordinate 0", "coordinate 1" if dim == 2 else ""]
    last = path[-1]
    center, scale = last.mean(0), np.maximum(last.std(0), np.finfo(float).tiny)
    directions = np.linalg.svd((last - center) / scale, full_matrices=False)[2][:2]
    labels = [f"principal component {k} of the last frame" for k in (1, 2)]
    return (path - center) / scale @ directions.T, labels


def plot_transport(
    particles: Any,
    *,
    frames: Sequence[int] | None = None,
    coordinates: tuple[int, int] | None = None,
    axes: Any = None,
) -> Any:
    """Draw an ensemble at several steps of transport, in two dimensions.

    Gray points are those of the last iteration.

    Args:
        particles: trajectory of one ensemble, (iterations, num_particles, dim), as
            ``RWPO(model).transport_path(...)`` returns it.
        frames: iterations to draw; without, four that are closer together at the beginning.
        coordinates: two coordinates to draw; without, principal components of the last iteration.
        axes: axes to draw on, one for each frame; without, new ones.

    Returns:
        Array of axes, one for each frame.

    Raises:
        ValueError: ``particles`` has another shape, or there are not as many axes as frames.
    """
    path, labels = _projected(_checked_path(particles), coordinates)
    if frames is None:
        last = len(path) - 1
        frames = sorted({0, min(5, last), min(15, last), last})
    if axes is None:
        axes = new_figure((3.0 * len(frames), 3.0)).subplots(1, len(frames), squeeze=False)[0]
    axes = np.atleast_1d(axes)
    if len(axes) != len(frames):
        raise ValueError(f"`axes` must be one for each of {len(frames)} frames; got {len(axes)}.")
    for k, (panel, frame) in enumerate(zip(axes, frames, strict=True)):
        panel.scatter(*path[-1].T, s=6, color=GRAY, alpha=0.4, lw=0)
        panel.scatter(*path[frame].T, s=8, color=COLORS[0], alpha=0.8, lw=0)
        panel.set_title(f"iteration {frame}", fontsize="medium")
        panel.set_xlabel(labels[0], fontsize="small")
        if k == 0:
            panel.set_ylabel(labels[1], fontsize="small")
        remove_frame(panel)
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
        file: where to save an animated GIF; without, nothing is saved.
        coordinates: as for :func:`plot_transport`.
        frames_per_second: frames per second of the GIF.
        axes: axes to draw on; without, new ones.

    Returns:
        The animation; in a notebook ``HTML(animation.to_jshtml())`` shows it.

    Raises:
        ValueError: ``particles`` has another shape.
    """
    path, labels = _projected(_checked_path(particles), coordinates)
    axes = axes_or_new(axes)
    from matplotlib.animation import FuncAnimation, PillowWriter

    points = axes.scatter(*path[0].T, s=8, color=COLORS[0], alpha=0.8, lw=0)
    # The first iterations can be far away, so the limits cover the bulk of all frames.
    low, high = np.quantile(path.reshape(-1, 2), [0.02, 0.98], axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-12)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    remove_frame(axes)

    def draw(frame: int) -> tuple[Any]:
        points.set_offsets(path[frame])
        axes.set_title(f"iteration {frame}")
        return (points,)

    animation = FuncAnimation(axes.figure, draw, frames=len(path), blit=False)
    if file is not None:
        animation.save(str(file), writer=PillowWriter(fps=frames_per_second))
    return animation
