"""Models of the kind that NumPyro's users write, most in the shape of NumPyro's own examples.

Every module enters functions in :data:`MODELS`; each takes no argument and returns the same
:class:`Everyday` each time. Data are simulated with fixed seeds (or short and in the public
domain) and in single precision. The files under ``references`` hold their posteriors
(:mod:`benchmarks.everyday_references`).
"""

from benchmarks.posteriors.everyday import geometry, groups, regressions, series, sparse
from benchmarks.posteriors.everyday.registry import MODELS, Everyday

__all__ = ["MODELS", "Everyday", "geometry", "groups", "regressions", "series", "sparse"]
