"""RWPO: a NumPyro sampler that is a drop-in for NUTS, made for posteriors with Laplace priors."""

from numpyro_rwpo._version import __version__
from numpyro_rwpo.kernel import RWPO, RWPOState

__all__ = ["RWPO", "RWPOState", "__version__"]
