"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

from numpyro_rwpo._version import __version__
from numpyro_rwpo.attention import fit_copula, fit_joint, fit_marginal
from numpyro_rwpo.kernel import RWPO
from numpyro_rwpo.priors import LaplacePrior, laplace_prior
from numpyro_rwpo.splitting import splitting_step
from numpyro_rwpo.state import RWPOState

__all__ = [
    "RWPO",
    "LaplacePrior",
    "RWPOState",
    "__version__",
    "fit_copula",
    "fit_joint",
    "fit_marginal",
    "laplace_prior",
    "splitting_step",
]
