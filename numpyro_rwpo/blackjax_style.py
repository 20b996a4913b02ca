"""``RWPO`` as functions ``init`` and ``step`` over a log density, in the style of BlackJAX.

BlackJAX itself is not needed. The functions call :meth:`numpyro_rwpo.RWPO.init` and
:meth:`numpyro_rwpo.RWPO.sample`, and give results the names that BlackJAX gives them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.util import is_prng_key

from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.kernel import RWPO


class SamplingAlgorithm(NamedTuple):
    """Two functions that make a sampler, under BlackJAX's names.

    Attributes:
        init: ``init(position, rng_key)`` warms up and returns the first :class:`EnsembleState`.
        step: ``step(rng_key, state)`` returns the next :class:`EnsembleState` and an
            :class:`EnsembleInfo`.
    """

    init: Callable[[Any, jax.Array], "EnsembleState"]
    step: Callable[[jax.Array, "EnsembleState"], tuple["EnsembleState", "EnsembleInfo"]]


class EnsembleState(NamedTuple):
    """A draw, and the ensemble of particles from which the next draws come.

    With several chains, every array has a leading chain axis, except for the iteration number in
    ``ensemble``.

    Attributes:
        position: the draw, in the structure and shapes of the starting position.
        logdensity: log density at ``position``, a scalar.
        ensemble: the state of the kernel, whose random key is not used.
    """

    position: Any
    logdensity: jax.Array
    ensemble: RWPOState


class EnsembleInfo(NamedTuple):
    """What is known of a draw: scalars, or (num_chains,) with several chains.

    Attributes:
        acceptance_rate: mean acceptance probability of the particle since its previous state.
        is_divergent: whether a trajectory of the particle diverged since its previous state.
        energy: potential plus kinetic energy at the end of the particle's last trajectory.
        num_integration_steps: number of gradient evaluations of the particle since its previous
            state.
    """

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    energy: jax.Array
    num_integration_steps: jax.Array


def rwpo(
    logdensity_fn: Callable[[Any], jax.Array],
    *,
    num_chains: int | None = None,
    num_warmup: int = 200,
    **options: Any,
) -> SamplingAlgorithm:
    """Make the functions ``init`` and ``step`` of RWPO for a log density.

    ``init(position, rng_key)`` warms up the ensembles of all chains, which takes the place of
    BlackJAX's ``window_adaptation``. The position of the state that it returns is still the
    starting position; the first draw is that of the first step. Call ``init`` outside ``jax.jit``:
    inside, it works, but cannot look at how warm-up went, and always samples by the same kind of
    move.

    ``step(rng_key, state)`` emits the next draw of every chain. It is a pure function, for use
    inside ``jax.jit`` and ``jax.lax.scan``. It needs randomness only when all states of all
    particles have been drawn and the particles move on; with the default settings, this usually
    happens at the first step and at every 1024th step after it. The other steps do not depend on
    their key.
    Chains are already vectorized, so that ``step`` needs no ``jax.vmap``.

    A state holds the whole ensemble. A loop should therefore collect ``state.position``, not
    ``state``.

    Args:
        logdensity_fn: log density of a position, up to a constant: a pytree of floating-point
            arrays to a scalar.
        num_chains: number of chains, each with an ensemble of its own. Every array of the starting
            position, and of all results, then has a leading axis of this size. ``None`` for one
            chain without such an axis.
        num_warmup: the largest number of updates of an ensemble in warm-up.
        **options: further arguments of :class:`numpyro_rwpo.RWPO`, such as ``num_particles`` or
            ``laplace_sites``.

    Returns:
        The functions, as a :class:`SamplingAlgorithm`. Each takes one random key for all chains.

    Raises:
        TypeError: ``logdensity_fn`` is not callable. From ``init``: the starting position has
            leaves that are not in float32 or float64. From both functions: ``rng_key`` is not one
            random key.
        ValueError: an option is out of range, or ``num_chains`` is not a positive integer. From
            ``init``: the starting position has no chain axis of that size, ``logdensity_fn`` does
            not return a scalar, or it or its gradient is not finite at the starting position.
        RuntimeError: from ``step``: ``init`` has not been called in this process.

    Example:
        >>> from numpyro_rwpo import blackjax_style
        >>> def logdensity_fn(x):
        ...     return -0.5 * jnp.sum((x - 3.0) ** 2)
        >>> algorithm = blackjax_style.rwpo(logdensity_fn, num_chains=2)
        >>> state = algorithm.init(jnp.zeros((2, 5)), jax.random.key(0))
        >>> def one_step(state, rng_key):
        ...     state, info = algorithm.step(rng_key, state)
        ...     return state, (state.position, info)
        >>> keys = jax.random.split(jax.random.key(1), 500)
        >>> state, (draws, info) = jax.lax.scan(one_step, state, keys)
        >>> draws.shape, info.acceptance_rate.shape
        ((500, 2, 5), (500, 2))
    """
    if not callable(logdensity_fn):
        raise TypeError(f"`logdensity_fn` must be callable; got {logdensity_fn!r}.")
    if num_chains is not None and (not isinstance(num_chains, int) or num_chains < 1):
        raise ValueError(f"`num_chains` must be a positive integer or None; got {num_chains!r}.")
    kernel = RWPO(potential_fn=lambda position: -logdensity_fn(position), **options)

    def keys_of_chains(rng_key: jax.Array) -> jax.Array:
        if not is_prng_key(rng_key):
            raise TypeError(
                "`rng_key` must be one key such as jax.random.key(0), which all chains share; "
                f"got {rng_key!r}."
            )
        return rng_key if num_chains is None else random.split(rng_key, num_chains)

    def init(position: Any, rng_key: jax.Array) -> EnsembleState:
        keys = keys_of_chains(rng_key)
        position = _checked_position(position, num_chains)
        _check_scalar(logdensity_fn, position, num_chains)
        state = kernel.init(keys, num_warmup, position, (), {})
        # NumPyro's loop would first count up from -num_warmup without moving the particles.
        state = state._replace(iteration=jnp.zeros_like(state.iteration))
        logdensity = logdensity_fn if num_chains is None else jax.vmap(logdensity_fn)
        return EnsembleState(position, logdensity(position), state)

    def step(rng_key: jax.Array, state: EnsembleState) -> tuple[EnsembleState, EnsembleInfo]:
        before = state.ensemble
        after = kernel.sample(before._replace(rng_key=keys_of_chains(rng_key)), (), {})
        # The step's own key is not kept: whatever the kind of key, the state keeps its type, as
        # the carry of a loop must.
        after = after._replace(rng_key=before.rng_key)
        info = EnsembleInfo(after.accept_prob, after.diverging, after.energy, after.num_steps)
        return EnsembleState(after.z, -after.potential_energy, after), info

    return SamplingAlgorithm(init, step)


def _checked_position(position: Any, num_chains: int | None) -> Any:
    """The starting position as JAX arrays, after a check of their types and of the chain axis."""
    for leaf in jax.tree.leaves(position):
        dtype = np.result_type(leaf) if isinstance(leaf, float) else getattr(leaf, "dtype", None)
        if dtype not in (np.float32, np.float64):
            raise TypeError(
                "`position` must be a pytree of arrays in float32 or float64; got a leaf "
                f"{leaf!r}. Convert it, e.g. with jnp.asarray(x, float)."
            )
        if num_chains is not None and np.shape(leaf)[:1] != (num_chains,):
            raise ValueError(
                f"Every array in `position` must have a leading axis of size {num_chains}, one "
                f"entry per chain, because `num_chains` is {num_chains}; got shape "
                f"{np.shape(leaf)}."
            )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), position)


def _check_scalar(
    logdensity_fn: Callable[[Any], Any], position: Any, num_chains: int | None
) -> None:
    """Raise ``ValueError`` unless the log density of one position is a scalar."""
    one = position if num_chains is None else jax.tree.map(lambda x: x[0], position)
    value = jax.eval_shape(logdensity_fn, one)
    if getattr(value, "shape", None) != ():
        raise ValueError(
            "`logdensity_fn` must return a scalar, the log density of one position; got "
            f"{value}. Sum over coordinates and observations."
        )
