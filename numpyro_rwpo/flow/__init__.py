"""Learned flows: the sparse transformer, its training, and the neural ODE it is compared with.

This is the only part of the package that needs the extra ``flow``:
``pip install "numpyro-rwpo[flow]"``.
"""

from typing import TYPE_CHECKING

try:
    import diffrax as _diffrax  # noqa: F401
    import equinox as _equinox  # noqa: F401
    import optax as _optax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "numpyro_rwpo.flow needs Equinox, Optax and Diffrax; install them with "
        'pip install "numpyro-rwpo[flow]".'
    ) from error

from numpyro_rwpo.flow.guide import AutoSparseTransformer, ProximalDistribution
from numpyro_rwpo.flow.losses import (
    DensityLoss,
    EnergyDistance,
    ForwardKL,
    MaximumLikelihood,
    Regularized,
    ReverseKL,
    energy_distance,
)
from numpyro_rwpo.flow.neural_ode import NeuralODEFlow
from numpyro_rwpo.flow.pathwise import pathwise_sample
from numpyro_rwpo.flow.sparse_transformer import SparseTransformerFlow
from numpyro_rwpo.flow.training import TrainingResult, load_flow, save_flow, train
from numpyro_rwpo.support.renaming import renamed_names

__all__ = [
    "AutoSparseTransformer",
    "DensityLoss",
    "EnergyDistance",
    "ForwardKL",
    "MaximumLikelihood",
    "NeuralODEFlow",
    "ProximalDistribution",
    "Regularized",
    "ReverseKL",
    "SparseTransformerFlow",
    "TrainingResult",
    "energy_distance",
    "load_flow",
    "pathwise_sample",
    "save_flow",
    "train",
]

if not TYPE_CHECKING:  # to a type checker the old name is an error
    __getattr__ = renamed_names(__name__, {"Regularised": "Regularized"}, globals())
