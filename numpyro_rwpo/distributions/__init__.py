"""Priors that tie coordinates together, as ordinary NumPyro distributions for any sampler."""

from numpyro_rwpo.distributions.fused import FusedLaplace
from numpyro_rwpo.distributions.group import GroupLaplace, SparseGroupLaplace
from numpyro_rwpo.distributions.nuclear import NuclearNorm
from numpyro_rwpo.distributions.total_variation import TotalVariation

__all__ = ["FusedLaplace", "GroupLaplace", "NuclearNorm", "SparseGroupLaplace", "TotalVariation"]
