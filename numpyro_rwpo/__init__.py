"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

from numpyro_rwpo._version import __version__
from numpyro_rwpo.kernel import RWPO, RWPOState
from numpyro_rwpo.priors import LaplacePrior, laplace_prior
from numpyro_rwpo.splitting import splitting_step

__all__ = [
    "RWPO",
    "LaplacePrior",
    "RWPOState",
    "__version__",
    "laplace_prior",
    "splitting_step",
]
