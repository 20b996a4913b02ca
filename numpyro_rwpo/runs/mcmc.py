"""What a finished ``MCMC`` with an ``RWPO`` kernel holds, whatever its ``chain_method``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.state import RWPOState


def chain_states(mcmc: Any) -> tuple[RWPOState, Settings]:
    """The last state, with a leading chain axis whatever the ``chain_method``, and the settings.

    Raises:
        TypeError: not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: not run.
    """
    kernel: Any = getattr(mcmc, "sampler", None)
    if not hasattr(kernel, "settings"):
        raise TypeError(
            "`mcmc` must be a numpyro.infer.MCMC whose kernel is RWPO; got "
            f"{type(mcmc).__name__ if kernel is None else type(kernel).__name__}. For other "
            "kernels use ArviZ, or `compare` to put them beside RWPO."
        )
    state = mcmc.last_state
    if kernel.settings is None or not isinstance(state, RWPOState):
        raise ValueError("`mcmc` has not been run; call `mcmc.run(...)` first.")
    if jnp.ndim(state.step_size) == 0:  # a single chain comes without the axis
        state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    return jax.device_get(state), kernel.settings


def checked_state(mcmc: Any) -> tuple[RWPOState, Settings]:
    """:func:`chain_states` of a run that has draws from the posterior.

    Raises:
        TypeError: not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: not run, or only warmed up.
    """
    state, settings = chain_states(mcmc)
    if int(np.max(state.iteration)) <= 0:
        raise ValueError(
            "`mcmc` holds the draws of a warm-up, which are not from the posterior; call "
            "`mcmc.run(...)` after `mcmc.warmup(...)`."
        )
    return state, settings


def draws_per_pass(mcmc: Any, state: RWPOState) -> int | None:
    """Kept draws between two of the same particle; ``None`` where thinning mixes them up."""
    num_particles = state.ensemble.particles.shape[1]
    return None if num_particles % mcmc.thinning else num_particles // mcmc.thinning


def num_distinct_draws(mcmc: Any) -> int | None:
    """Kept draws of a chain before noise-free particles repeat; ``None`` for any other run."""
    settings = getattr(mcmc.sampler, "settings", None)
    if settings is None or settings.corrected:
        return None
    state, _ = checked_state(mcmc)
    number: int = mcmc.num_samples // mcmc.thinning
    # Where thinning mixes the particles up, it still takes that many draws to come round.
    return min(number, draws_per_pass(mcmc, state) or state.ensemble.particles.shape[1])
