"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

import warnings
from typing import TYPE_CHECKING, Any

from numpyro_rwpo._version import __version__
from numpyro_rwpo.diagnostics import plots
from numpyro_rwpo.diagnostics.arviz_data import to_arviz
from numpyro_rwpo.diagnostics.comparison import compare_runs
from numpyro_rwpo.diagnostics.diagnosis import diagnose
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.heads.copula import fit_copula
from numpyro_rwpo.heads.joint import fit_joint
from numpyro_rwpo.heads.marginal import fit_marginal
from numpyro_rwpo.kernel import RWPO
from numpyro_rwpo.paper import splitting_step
from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior
from numpyro_rwpo.runs.checkpoint import load_state, save_state
from numpyro_rwpo.runs.resumable import run_in_pieces

__all__ = [
    "RWPO",
    "LaplacePrior",
    "RWPOState",
    "__version__",
    "compare_runs",
    "diagnose",
    "fit_copula",
    "fit_joint",
    "fit_marginal",
    "laplace_prior",
    "load_state",
    "plots",
    "run_in_pieces",
    "save_state",
    "splitting_step",
    "to_arviz",
]

# Names of version 0.1, which go in the release after 0.2.
_RENAMED = {"compare": "compare_runs", "load": "load_state", "save": "save_state"}

if not TYPE_CHECKING:  # to a type checker the old names are errors

    def __getattr__(name: str) -> Any:
        """The function that ``name`` has been renamed to, with a warning."""
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"`numpyro_rwpo.{name}` has been renamed to `numpyro_rwpo.{_RENAMED[name]}`; the old "
            "name will be removed in the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[_RENAMED[name]]
