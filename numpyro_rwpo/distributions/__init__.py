"""Priors that tie coordinates together, as ordinary NumPyro distributions for any sampler."""

from numpyro_rwpo.distributions.fused import FusedLaplace
from numpyro_rwpo.distributions.group import GroupLaplace, SparseGroupLaplace

__all__ = ["FusedLaplace", "GroupLaplace", "SparseGroupLaplace"]
