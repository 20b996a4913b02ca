"""What all pictures share: colors, and figures of which pyplot does not know."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Four colors of Okabe and Ito, which color-blind readers can tell apart, as hexadecimal RGB.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GRAY = "0.6"


def new_figure(figsize: tuple[float, float]) -> Any:
    """A figure outside of pyplot's register, so that none is left open.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "numpyro_rwpo.plots needs matplotlib; install it with "
            'pip install "numpyro-rwpo[plots]".'
        ) from error
    figure = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_or_new(axes: Any, figsize: tuple[float, float] = (5.0, 4.0)) -> Any:
    """The given axes, or new ones in a figure of their own."""
    return new_figure(figsize).subplots() if axes is None else axes


def remove_frame(axes: "Axes") -> None:
    """Leave only the left and the lower border of the axes."""
    axes.spines[["top", "right"]].set_visible(False)


def cycle_colors(number: int) -> list[str]:
    """One color for each of ``number`` samplers; colors repeat after the fourth."""
    return [COLORS[k % len(COLORS)] for k in range(number)]
