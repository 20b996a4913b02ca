"""What is fixed before a run starts, resolved from the arguments of ``RWPO`` and the model."""

from typing import NamedTuple

import jax

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.heads.registry import Head
from numpyro_rwpo.model.proposal import check_proposal_dim
from numpyro_rwpo.model.source import Bound
from numpyro_rwpo.model.target import has_loop
from numpyro_rwpo.support.memory import check_memory
from numpyro_rwpo.support.sharding import Placement, check_use

# Directions in which a low-rank metric differs from a diagonal one. Each needs eight particles,
# whose covariance along it is then known to a third.
MAX_RANK = 16
PARTICLES_PER_DIRECTION = 8
# Dimensions per particle of a dense metric that the user insists on; beyond, it is noise.
MAX_DENSE = 4
# Draws that one refresh provides, unless the ensemble alone is larger: NumPyro's users ask for a
# thousand, and then no particle is drawn in two refreshes.
DRAWS_PER_REFRESH = 1024
# Successive states of one particle that are drawn next to each other: enough for ArviZ to see the
# correlation of a chain that barely moves, few enough that large ensembles are drawn soon.
MIN_STATES, MAX_STATES = 4, 32


class Numbers(NamedTuple):
    """Arguments that are numbers and may be traced.

    Attributes:
        target_accept_prob: acceptance probability at which the step size aims.
        relative_prox_time: bandwidth of the attention, in units of each coordinate's variance.
        preferred: number of the flow on trial that the kernel's last run chose, -1 for none. It is
            kept unless another is eight times as good, so that a compiled loop is used again.
    """

    target_accept_prob: float
    relative_prox_time: float
    preferred: int = -1


class Settings(NamedTuple):
    """Static settings of one run, resolved from the constructor's arguments.

    Attributes:
        num_warmup: NumPyro's warm-up iterations: the most updates that warm-up makes.
        num_particles: particles of an ensemble.
        num_states: successive states of a particle that are drawn next to each other.
        radius: half width of the uniform start, ``None`` where the user chose the start.
        attention: fits the density of the particles during transport.
        corrected: whether exact moves follow transport.
        dense: whether the metric is dense.
        rank: directions in which it is more than diagonal, where it is not dense.
        flows: names of the flows on trial: ``"exact"``, ``"harmonic"``.
        inverse_temperature: power of the posterior that is sampled.
        placement: devices that share the particles.
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
        radius: half width of the uniform start, ``None`` where the user chose the start.

    Raises:
        ValueError: the proposal has another dimension, the devices cannot share the particles, or a
            dense metric of far more dimensions than particles is asked for.
        MemoryError: the ensemble is larger than the device's memory.
    """
    dim, placement = start.shape[1], arguments.placement
    if arguments.proposal is not None:
        check_proposal_dim(arguments.proposal, dim)
    num_particles = arguments.num_particles
    if num_particles is None:
        num_particles = default_num_particles(dim, has_loop(bound.target, dim, start.dtype))
    check_use(num_particles, placement)
    dense, rank = metric_form(num_particles, dim, arguments.dense_mass)
    flows = flows_on_trial(dense, rank, bound.has_prior, arguments.dense_mass)
    measured = start, arguments.target_accept_prob, arguments.relative_prox_time
    if any(isinstance(x, jax.core.Tracer) for x in measured):
        # Nothing can be measured before the program is compiled: a dense metric serves most
        # posteriors of few dimensions, the prior's exact flow those of many.
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
    """Particles of an ensemble when the user gives no number.

    Twice the dimension, so that their covariance is known, but at most 128: beyond, a metric that
    is diagonal but for a few directions serves, and warm-up would cost more than it brings. Half of
    that where the gradient runs through a loop and every particle has its price.
    """
    wanted = 128 if 32 < dim <= 64 else 64
    return wanted // 2 if is_sequential else wanted


def num_states(num_particles: int) -> int:
    """Successive states of a particle that are drawn next to each other."""
    return min(max(DRAWS_PER_REFRESH // num_particles, MIN_STATES), MAX_STATES)


def metric_form(num_particles: int, dim: int, dense_mass: bool | str) -> tuple[bool, int]:
    """Whether the metric is dense, and its rank beyond a diagonal where it is not.

    A dense one needs at least two particles a dimension, unless the user insists.

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
    rank = 0 if dense or not dense_mass else min(MAX_RANK, num_particles // PARTICLES_PER_DIRECTION)
    return dense, rank


def flows_on_trial(
    dense: bool, rank: int, has_prior: bool, dense_mass: bool | str
) -> tuple[str, ...]:
    """Flows of which warm-up keeps the cheapest a draw.

    The exact flow of a Laplace prior needs a diagonal metric; the harmonic one is only worth its
    rotation in a metric that knows correlations, or where there is no prior to follow.
    """
    exact = ("exact",) if has_prior and dense_mass is not True else ()
    harmonic = ("harmonic",) if dense or rank or not exact else ()
    return harmonic + exact
