"""Pictures with matplotlib: functions that take and return axes and change no global state.

They use matplotlib itself rather than ArviZ, whose plotting functions differ between its 0.x and
1.x, and they draw statistics that are computed elsewhere. They need the extra ``plots``:
``pip install "numpyro-rwpo[plots]"``.
"""

from numpyro_rwpo.diagnostics.plots.attention import plot_attention
from numpyro_rwpo.diagnostics.plots.coefficients import plot_selection, plot_shrinkage
from numpyro_rwpo.diagnostics.plots.samplers import plot_comparison
from numpyro_rwpo.diagnostics.plots.transport import animate_transport, plot_transport

__all__ = [
    "animate_transport",
    "plot_attention",
    "plot_comparison",
    "plot_selection",
    "plot_shrinkage",
    "plot_transport",
]
