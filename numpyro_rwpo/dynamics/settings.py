"""What is fixed before a run starts, resolved from the arguments of ``RWPO`` and the model."""

import math
from typing import NamedTuple

from numpyro_rwpo.dynamics.adaptation import Candidates
from numpyro_rwpo.dynamics.transport import MAX_TRANSPORT_STEPS
from numpyro_rwpo.heads.registry import Head
from numpyro_rwpo.support.sharding import Placement

MAX_RANK = 16  # directions of a low-rank metric
MAX_DENSE = 4  # dimensions a particle of a dense metric that the user insists on


class Settings(NamedTuple):
    """Static settings of one run, resolved from the constructor's arguments."""

    num_warmup: int
    num_transport: int
    attention: Head
    relative_prox_time: float
    corrected: bool
    candidates: Candidates
    target_accept_prob: float
    inverse_temperature: float
    placement: Placement


def num_transport_iterations(num_warmup: int, corrected: bool) -> int:
    """Warm-up iterations of start and transport: a quarter, at most 40; all if uncorrected."""
    return min(MAX_TRANSPORT_STEPS, num_warmup // 4) if corrected else num_warmup


def default_num_particles(dim: int, is_sequential: bool) -> int:
    """Particles of an ensemble when the user gives no number: enough for its covariance.

    A power of two from 2 dim, at least 64 and at most 256: beyond that a draw costs the same and
    warm-up more. Half of that, at most 64, where the gradient runs through a loop and every
    particle has its price.
    """
    wanted = 2 ** math.ceil(math.log2(2 * dim))
    return min(max(32, wanted // 2), 64) if is_sequential else min(max(64, wanted), 256)


def make_candidates(
    num_particles: int, dim: int, has_prior: bool, dense_mass: bool | str
) -> Candidates:
    """Metrics that warm-up may choose from.

    The exact flow of the prior needs a diagonal metric. A dense one needs at least two particles
    a dimension, unless the user insists; with fewer it is diagonal but for a few directions, of
    which each needs eight particles.

    Raises:
        ValueError: the user insists on a dense metric of more than four dimensions a particle.
    """
    if dense_mass is True and dim > MAX_DENSE * num_particles:
        raise ValueError(
            f"`dense_mass=True` takes at most {MAX_DENSE} dimensions a particle, whose covariance "
            f"is noise beyond; got {dim} dimensions and {num_particles} particles. Leave the "
            "metric to warm-up (`dense_mass='auto'`), or raise `num_particles` to "
            f"{-(-dim // MAX_DENSE)}."
        )
    dense = dense_mass is True or (dense_mass == "auto" and 2 * dim <= num_particles)
    rank = 0 if dense or not dense_mass else min(MAX_RANK, num_particles // 8)
    exact_flow = has_prior and dense_mass is not True
    fisher = dense or rank > 0 or not exact_flow
    return Candidates(dense=dense, rank=rank, fisher=fisher, exact_flow=exact_flow)
