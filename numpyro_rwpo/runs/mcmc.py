"""The edge to NumPyro's ``MCMC``: what a run holds, and how to fill one.

NumPyro keeps a run's model arguments, collected fields, and last state in private attributes, and
the kernel its own arguments and settings. This is the only module that reads or writes them, and
the only one besides the kernel that knows in which order particles are emitted.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.model.prior_registry import PriorRegistry


class Run(NamedTuple):
    """What a NumPyro ``MCMC`` with an ``RWPO`` kernel holds, whatever its ``chain_method``.

    Attributes:
        model: the NumPyro model, ``None`` with a potential function.
        potential_fn: the potential function, ``None`` with a model.
        laplace_sites: the argument of that name given to ``RWPO``.
        priors: kinds of distributions with closed forms.
        has_proposal: whether ``RWPO`` was given a proposal.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        settings: the settings that the kernel resolved.
        target_accept_prob: the argument of that name given to ``RWPO``.
        relative_prox_time: the argument of that name given to ``RWPO``.
        state: the last state, in NumPy arrays with a leading chain axis.
        samples: draws by site, each (chains, draws, ...); for a potential function a pytree of
            such arrays.
        extra_fields: collected fields other than the draws, by name, each (chains, draws, ...).
        num_draws: kept draws of a chain.
        particles: index of the particle of which each kept draw is a state, (num_draws,), the
            same for all chains.
    """

    model: Callable[..., Any] | None
    potential_fn: Callable[[Any], jax.Array] | None
    laplace_sites: Any
    priors: PriorRegistry
    has_proposal: bool
    model_args: tuple[Any, ...]
    model_kwargs: dict[str, Any]
    settings: Settings
    target_accept_prob: float
    relative_prox_time: float
    state: RWPOState
    samples: Any
    extra_fields: Mapping[str, Any]
    num_draws: int
    particles: np.ndarray

    @property
    def is_warmup(self) -> bool:
        """Whether the draws are those of warm-up, which are not from the posterior."""
        return int(np.max(self.state.iteration)) <= 0

    @property
    def num_particles(self) -> int:
        """Number of particles in an ensemble."""
        return int(self.state.ensemble.particles.shape[1])

    @property
    def num_states(self) -> int:
        """Successive states of a particle that are drawn next to each other."""
        return int(self.state.buffer.potential.shape[2])

    @property
    def distinct(self) -> slice | np.ndarray:
        """Index of the draws that are not repetitions: all, or each noise-free particle once."""
        if self.settings.corrected:
            return slice(None)
        return np.sort(np.unique(self.particles, return_index=True)[1])


def emitted_particles(iterations: np.ndarray, num_particles: int, num_states: int) -> np.ndarray:
    """Index of the particle that the kernel emits at each iteration, (num_iterations,).

    Iteration 0 is the first one after warm-up. Everything that depends on the order of the draws
    calls this function.
    """
    return iterations % (num_particles * num_states) // num_states


def latest_draws(particles: np.ndarray, number: int) -> np.ndarray:
    """Index of late draws among which no particle is represented more often than it has to be.

    Args:
        particles: index of the particle of which each draw is a state, (num_draws,).
        number: how many draws; all of them where there are fewer.

    Returns:
        Positions in ``particles``, ascending, (number,).
    """
    backward = particles[::-1]
    order = np.argsort(backward, kind="stable")
    groups = backward[order]
    recency = np.empty(len(order), int)  # 0 for the last draw of a particle, 1 for the one before
    recency[order] = np.arange(len(order)) - np.searchsorted(groups, groups)
    latest = np.argsort(recency, kind="stable")[:number]
    return np.sort(len(particles) - 1 - latest)


def rwpo_kernel(mcmc: Any, *, argument: str = "mcmc", hint: str = "") -> Any:
    """The kernel of an ``MCMC``, which must be ``RWPO``.

    Args:
        mcmc: what the user passed.
        argument: name of the user's argument, for the error message.
        hint: what to do instead, a sentence for the error message.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
    """
    if is_rwpo(mcmc):
        return mcmc.sampler
    got = type(getattr(mcmc, "sampler", mcmc)).__name__
    message = f"`{argument}` must be a numpyro.infer.MCMC whose kernel is RWPO; got {got}."
    raise TypeError(f"{message} {hint}".rstrip())


def is_rwpo(mcmc: Any) -> bool:
    """Whether ``mcmc`` is an ``MCMC`` with an ``RWPO`` kernel."""
    # By its attributes, because this package must not import the kernel.
    return isinstance(getattr(getattr(mcmc, "sampler", None), "_arguments", None), Arguments)


def arguments_of(kernel: Any) -> Arguments:
    """The arguments of an ``RWPO`` kernel."""
    arguments: Arguments = kernel._arguments
    return arguments


def read_run(mcmc: Any) -> Run:
    """Read a run, or a warm-up with ``collect_warmup=True``.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: it has not been run.
    """
    kernel = rwpo_kernel(
        mcmc, hint="For other kernels use ArviZ, or `compare_runs` to put them beside RWPO."
    )
    state = mcmc.last_state
    if kernel._settings is None or not isinstance(state, RWPOState):
        raise ValueError("`mcmc` has not been run; call `mcmc.run(...)` first.")
    if jnp.ndim(state.step_size) == 0:  # a single chain comes without the axis
        state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    state = jax.device_get(state)
    arguments, num_draws = arguments_of(kernel), _num_draws(mcmc._states)
    # The last kept draw is that of the last iteration, whatever the thinning.
    last = int(np.max(state.iteration)) - 1
    iterations = last - mcmc.thinning * np.arange(num_draws)[::-1]
    return Run(
        model=arguments.model,
        potential_fn=arguments.potential_fn,
        laplace_sites=arguments.laplace_sites,
        priors=arguments.priors,
        has_proposal=arguments.proposal is not None,
        model_args=mcmc._args,
        model_kwargs=mcmc._kwargs,
        settings=kernel._settings,
        target_accept_prob=float(arguments.target_accept_prob),
        relative_prox_time=float(arguments.relative_prox_time),
        state=state,
        samples=mcmc.get_samples(group_by_chain=True),
        extra_fields=mcmc.get_extra_fields(group_by_chain=True),
        num_draws=num_draws,
        particles=emitted_particles(iterations, *state.buffer.potential.shape[1:]),
    )


def read_finished_run(mcmc: Any) -> Run:
    """Read a run whose draws are from the posterior.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: it has not been run, or only warmed up.
    """
    run = read_run(mcmc)
    if run.is_warmup:
        raise ValueError(
            "`mcmc` holds the draws of a warm-up, which are not from the posterior; call "
            "`mcmc.run(...)` after `mcmc.warmup(...)`."
        )
    return run


def _num_draws(states: Any) -> int:
    """Kept draws of a chain, from collected fields (chains, draws, ...)."""
    return int(jax.tree.leaves(states)[0].shape[1])


def collected_fields(mcmc: Any) -> dict[str, Any]:
    """All fields that ``mcmc`` collected, the draws included, each (chains, draws, ...)."""
    return dict(mcmc._states)


def with_fields(mcmc: Any, fields: Mapping[str, Any]) -> Any:
    """A shallow copy of ``mcmc`` that holds other collected fields, (chains, draws, ...)."""
    view = copy.copy(mcmc)
    set_fields(view, fields)
    view.num_samples = _num_draws(fields) * mcmc.thinning  # before thinning, as NumPyro counts
    return view


def set_fields(mcmc: Any, fields: Mapping[str, Any]) -> None:
    """Replace the collected fields of ``mcmc``, each (chains, draws, ...)."""
    mcmc._states = dict(fields)
    mcmc._states_flat = None


def set_last_state(
    mcmc: Any, state: RWPOState, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Leave ``mcmc`` with the last state and the model arguments of a run that ended there."""
    mcmc._args, mcmc._kwargs = args, kwargs
    mcmc._last_state = state
