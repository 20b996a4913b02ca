"""The settings of a run, which follow from the arguments of ``RWPO`` and from the model."""

import math
from typing import NamedTuple

import jax

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.heads.correlation import max_factors
from numpyro_rwpo.heads.registry import Head
from numpyro_rwpo.model.proposal import check_proposal_dim
from numpyro_rwpo.model.source import Bound
from numpyro_rwpo.model.target import gradient_work
from numpyro_rwpo.support.memory import check_memory
from numpyro_rwpo.support.sharding import Placement, check_use

# The largest number of dimensions per particle of a dense metric. Beyond it, the covariance of the
# particles is mostly noise.
MAX_DENSE = 4


class Numbers(NamedTuple):
    """Arguments that are numbers and may be traced.

    Attributes:
        target_accept_prob: acceptance probability at which the step size aims.
        relative_prox_time: bandwidth of the attention, in units of each coordinate's variance.
        preferred: number of the flow on trial that the kernel's last run chose, -1 for none. It is
            kept unless another one is eight times as good, so that a compiled loop can be reused.
        max_rows: gradients one after another beyond which adaptation begins no further update.
    """

    target_accept_prob: float
    relative_prox_time: float
    preferred: int = -1
    max_rows: float = math.inf


class Settings(NamedTuple):
    """Static settings of one run, resolved from the constructor's arguments.

    Attributes:
        num_warmup: number of NumPyro's warm-up iterations, which is the largest number of updates
            in warm-up.
        num_particles: number of particles of an ensemble.
        num_states: number of successive states of a particle that are drawn next to each other.
        radius: half the width of the uniform start, ``None`` if the user chose the start.
        attention: fits the density of the particles during transport.
        corrected: whether exact moves follow transport.
        dense: whether the metric is dense.
        rank: number of directions in which a metric that is not dense differs from a diagonal one.
        flows: names of the flows on trial, ``"exact"`` and ``"harmonic"``.
        inverse_temperature: power of the posterior that is sampled.
        placement: devices that share the particles.
        gradient_size: number of elements that the gradient at one position computes.
    """

    num_warmup: int
    num_particles: int
    num_states: int
    radius: float | None
    attention: Head
    corrected: bool
    dense: bool
    rank: int
    flows: tuple[str, ...]
    inverse_temperature: float
    placement: Placement
    gradient_size: int = 0

    @property
    def draws_per_refresh(self) -> int:
        """Draws of a chain that one refresh provides."""
        return self.num_particles * self.num_states


def numbers_of(arguments: Arguments, preferred: int = -1) -> Numbers:
    """The arguments that may be traced, and the flow that the kernel's last run chose."""
    return Numbers(arguments.target_accept_prob, arguments.relative_prox_time, preferred)


def resolve_settings(
    arguments: Arguments,
    bound: Bound,
    start: jax.Array,
    num_warmup: int,
    radius: float | None,
) -> Settings:
    """The settings of a run.

    Args:
        arguments: of the kernel.
        bound: the posterior with its data.
        start: where the chains start, (chains, dim).
        num_warmup: NumPyro's warm-up iterations.
        radius: half the width of the uniform start, ``None`` if the user chose the start.

    Raises:
        ValueError: the proposal has another dimension, the devices cannot share the particles
            equally, or a dense metric has far more dimensions than particles.
        MemoryError: the ensemble is larger than the device's memory.
    """
    dim, placement = start.shape[1], arguments.placement
    if arguments.proposal is not None:
        check_proposal_dim(arguments.proposal, dim)
    work = gradient_work(bound.target, dim, start.dtype)
    num_particles = arguments.num_particles
    if num_particles is None:
        num_particles = default_num_particles(dim, work.has_loop)
    check_use(num_particles, placement)
    dense, rank = metric_form(num_particles, dim, arguments.dense_mass)
    flows = flows_on_trial(dense, rank, bound.has_prior, arguments.dense_mass)
    measured = start, arguments.target_accept_prob, arguments.relative_prox_time
    if any(isinstance(x, jax.core.Tracer) for x in measured):
        # Flows cannot be compared by measurement while the program is traced. A dense metric suits
        # most posteriors of few dimensions, and the prior's exact flow most of those of many.
        flows = flows[:1] if dense else flows[-1:]
    settings = Settings(
        num_warmup=num_warmup,
        num_particles=num_particles,
        num_states=num_states(num_particles) if arguments.corrected else 1,
        radius=radius,
        attention=arguments.attention,
        corrected=arguments.corrected,
        dense=dense,
        rank=rank,
        flows=flows,
        inverse_temperature=arguments.differentiation.inverse_temperature,
        placement=placement,
        gradient_size=work.num_elements,
    )
    check_ensemble_fits(settings, start)
    return settings


def check_ensemble_fits(settings: Settings, start: jax.Array) -> None:
    """Raise ``MemoryError`` unless the ensembles of chains at ``start`` fit into memory."""
    num_chains, dim = start.shape
    check_memory(
        num_chains,
        settings.num_particles // settings.placement.number,
        dim,
        start.dtype.itemsize,
        attention=settings.attention.name,
        dense=settings.dense,
    )


def default_num_particles(dim: int, is_sequential: bool) -> int:
    """Number of particles of an ensemble if the user does not choose it.

    It is at least twice the dimension, so that their covariance can be estimated, but at most 128.
    In more dimensions, a metric that is diagonal except in a few directions is sufficient, and more
    particles would cost more in warm-up than they gain. If the gradient contains a loop, so that
    the time of a batch grows with its size, the number is halved.
    """
    wanted = 128 if 32 < dim <= 64 else 64
    return wanted // 2 if is_sequential else wanted


def num_states(num_particles: int) -> int:
    """Successive states of a particle that are drawn next to each other.

    A refresh provides 1024 draws, because NumPyro's users ask for a thousand, which then contain no
    particle of two refreshes. At least 4 states are enough for ArviZ to detect a chain that barely
    moves; with at most 32, all particles of a large ensemble are drawn soon.
    """
    return min(max(1024 // num_particles, 4), 32)


def metric_form(num_particles: int, dim: int, dense_mass: bool | str) -> tuple[bool, int]:
    """Whether the metric is dense, and its rank beyond a diagonal where it is not.

    A dense metric needs at least two particles per dimension, unless the user insists on it. A
    metric that is not dense has as many directions as the copula has factors.

    Raises:
        ValueError: the user insists on a dense metric with more than four dimensions per particle.
    """
    if dense_mass is True and dim > MAX_DENSE * num_particles:
        raise ValueError(
            f"`dense_mass=True` takes at most {MAX_DENSE} dimensions a particle, whose covariance "
            f"is noise beyond; got {dim} dimensions and {num_particles} particles. Leave the "
            "metric to warm-up (`dense_mass='auto'`), or raise `num_particles` to "
            f"{-(-dim // MAX_DENSE)}."
        )
    dense = dense_mass is True or (dense_mass == "auto" and 2 * dim <= num_particles)
    rank = 0 if dense or not dense_mass else max_factors(num_particles)
    return dense, rank


def flows_on_trial(
    dense: bool, rank: int, has_prior: bool, dense_mass: bool | str
) -> tuple[str, ...]:
    """The flows of which warm-up keeps the one that costs least per draw.

    The exact flow of a Laplace prior needs a diagonal metric. The harmonic flow is only worth its
    rotation if the metric contains correlations or if there is no prior to follow.
    """
    exact = ("exact",) if has_prior and dense_mass is not True else ()
    harmonic = ("harmonic",) if dense or rank or not exact else ()
    return harmonic + exact
