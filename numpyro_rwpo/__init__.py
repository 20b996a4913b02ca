"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

from typing import TYPE_CHECKING

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
from numpyro_rwpo.support.faulty_jaxlib import avoid_fault
from numpyro_rwpo.support.renaming import renamed_names

avoid_fault()

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

if not TYPE_CHECKING:  # to a type checker the old names are errors
    __getattr__ = renamed_names(
        __name__,
        {"compare": "compare_runs", "load": "load_state", "save": "save_state"},
        globals(),
    )
