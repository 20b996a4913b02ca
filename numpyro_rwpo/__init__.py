"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

from numpyro_rwpo._version import __version__
from numpyro_rwpo.arviz_data import to_arviz
from numpyro_rwpo.attention import fit_copula, fit_joint, fit_marginal
from numpyro_rwpo.checkpoint import load, save
from numpyro_rwpo.compare import compare
from numpyro_rwpo.diagnostics import diagnose
from numpyro_rwpo.kernel import RWPO
from numpyro_rwpo.pieces import run_in_pieces
from numpyro_rwpo.priors import LaplacePrior, laplace_prior
from numpyro_rwpo.splitting import splitting_step
from numpyro_rwpo.state import RWPOState

__all__ = [
    "RWPO",
    "LaplacePrior",
    "RWPOState",
    "__version__",
    "compare",
    "diagnose",
    "fit_copula",
    "fit_joint",
    "fit_marginal",
    "laplace_prior",
    "load",
    "run_in_pieces",
    "save",
    "splitting_step",
    "to_arviz",
]
