"""BlackJAX: NUTS with window adaptation, ChEES-HMC, MEADS and adjusted MCLMC.

All of them work on the flat unconstrained vector of NumPyro's ``initialize_model`` and are
initialized like NumPyro's kernels. Settings are those of BlackJAX's documentation; where it leaves
a choice:

- ChEES: 64 chains, Adam with rate 0.025 as in Hoffman, Radul and Sountsov (2021), and the diagonal
  mass matrix, which BlackJAX recommends for dispersed starts.
- MEADS: 64 chains in 4 folds, as in Hoffman and Sountsov (2022).
- Adjusted MCLMC: ``adjusted_mclmc_dynamic``, which its documentation prefers, with random
  trajectory lengths, its tuner's defaults and a target acceptance probability of 0.9. Its steps are
  short, so its draws are thinned.

Chains of ChEES and MEADS share their adaptation, but only in warm-up, so the R-hat of their draws
is meaningful.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.mcmc import adjusted_mclmc_dynamic, dynamic_hmc, ghmc, nuts

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import (
    FlatTarget,
    Segment,
    Settings,
    compiled_loop,
    flat_target,
    paced,
)

SEGMENT_SIZE = 50  # in kept draws


class Algorithm(NamedTuple):
    """One of BlackJAX's samplers on one target.

    Attributes:
        warm_up: ``(key, positions) -> (states, parameters, integration steps)``, compiled; the last
            is an array of any shape, to be summed.
        transition: ``(key, states, parameters) -> (states, info)`` for all chains.
        gradients_per_step: Gradients of one integration step.
    """

    warm_up: Callable[[jax.Array, jax.Array], tuple[Any, Any, jax.Array]]
    transition: Callable[[jax.Array, Any, Any], tuple[Any, Any]]
    gradients_per_step: int = 1


def _logdensity(target: FlatTarget) -> Callable[[jax.Array], jax.Array]:
    return lambda position: -target.potential(position)


def _only_steps(state: Any, info: Any, adaptation_state: Any) -> jax.Array:
    """The part of the warm-up to keep; the rest would fill the memory."""
    return info.num_integration_steps


def nuts_windows(target: FlatTarget, settings: Settings) -> Algorithm:
    """NUTS with window adaptation, a diagonal metric for each chain."""
    logdensity = _logdensity(target)
    adaptation = blackjax.window_adaptation(
        blackjax.nuts, logdensity, adaptation_info_fn=_only_steps
    )
    kernel = nuts.build_kernel()

    def one(rng_key: jax.Array, position: jax.Array):
        (state, parameters), steps = adaptation.run(rng_key, position, settings.num_warmup)
        kept = {key: parameters[key] for key in ("step_size", "inverse_mass_matrix")}
        return state, kept, steps

    def warm_up(rng_key: jax.Array, positions: jax.Array):
        return jax.vmap(one)(jax.random.split(rng_key, len(positions)), positions)

    def transition(rng_key: jax.Array, states: Any, parameters: Any):
        keys = jax.random.split(rng_key, settings.num_chains)
        return jax.vmap(lambda k, s, p: kernel(k, s, logdensity, **p))(keys, states, parameters)

    return Algorithm(jax.jit(warm_up), transition)


def chees(target: FlatTarget, settings: Settings) -> Algorithm:
    """ChEES-HMC, one step size and trajectory length for all chains."""
    logdensity = _logdensity(target)
    adaptation = blackjax.chees_adaptation(
        logdensity,
        settings.num_chains,
        adaptation_info_fn=_only_steps,
        mass_matrix_estimation="diagonal",
    )
    functions: dict[str, Callable[..., Any]] = {}  # the functions among the tuner's results

    def warm_up(rng_key: jax.Array, positions: jax.Array):
        (states, parameters), info = adaptation.run(
            rng_key,
            positions,
            0.1,
            optax.adam(0.025),
            settings.num_warmup,
            max_sampling_steps=settings.num_samples,
        )
        for key in ("next_random_arg_fn", "integration_steps_fn"):
            functions[key] = parameters.pop(key)
        return states, parameters, info._wrapped_info

    def transition(rng_key: jax.Array, states: Any, parameters: Any):
        kernel = dynamic_hmc.build_kernel(**functions)
        keys = jax.random.split(rng_key, settings.num_chains)
        return jax.vmap(lambda k, s: kernel(k, s, logdensity, **parameters))(keys, states)

    return Algorithm(jax.jit(warm_up), transition)


def meads(target: FlatTarget, settings: Settings) -> Algorithm:
    """MEADS: generalized HMC with parameters from the other folds of chains."""
    logdensity = _logdensity(target)
    adaptation = blackjax.meads_adaptation(
        logdensity, settings.num_chains, adaptation_info_fn=_only_steps
    )
    kernel = ghmc.build_kernel()

    def warm_up(rng_key: jax.Array, positions: jax.Array):
        (states, parameters), steps = adaptation.run(rng_key, positions, settings.num_warmup)
        return states, parameters, steps

    def transition(rng_key: jax.Array, states: Any, parameters: Any):
        keys = jax.random.split(rng_key, settings.num_chains)
        return jax.vmap(lambda k, s: kernel(k, s, logdensity, **parameters))(keys, states)

    return Algorithm(jax.jit(warm_up), transition)


def adjusted_mclmc(target: FlatTarget, settings: Settings) -> Algorithm:
    """Metropolis-adjusted microcanonical sampler, with each chain tuned separately.

    The tuner needs the number of steps that will follow, and itself takes three tenths of it.
    """
    logdensity = _logdensity(target)
    kernel = adjusted_mclmc_dynamic.build_kernel(
        integration_steps_fn=adjusted_mclmc_dynamic.make_random_trajectory_length_fn(True)
    )

    def one(rng_key: jax.Array, position: jax.Array):
        key_init, key_tune = jax.random.split(rng_key)
        state = adjusted_mclmc_dynamic.init(position, logdensity, key_init)
        state, parameters, steps = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            logdensity_fn=logdensity,
            num_steps=round(settings.num_warmup / 0.3),
            state=state,
            rng_key=key_tune,
            target=0.9,
        )
        return state, parameters, steps

    def warm_up(rng_key: jax.Array, positions: jax.Array):
        return jax.vmap(one)(jax.random.split(rng_key, len(positions)), positions)

    def transition(rng_key: jax.Array, states: Any, parameters: Any):
        def move(rng_key: jax.Array, state: Any, parameters: Any):
            return kernel(
                rng_key,
                state,
                logdensity,
                parameters.step_size,
                inverse_mass_matrix=parameters.inverse_mass_matrix,
                integration_steps_params=(parameters.L / parameters.step_size,),
            )

        keys = jax.random.split(rng_key, settings.num_chains)
        return jax.vmap(move)(keys, states, parameters)

    # McLachlan's integrator evaluates the gradient twice per step.
    return Algorithm(jax.jit(warm_up), transition, gradients_per_step=2)


class BlackjaxProgram:
    """An algorithm bound to a problem; see :class:`benchmarks.samplers.protocol.Program`.

    Warm-up is one segment, because each of BlackJAX's adaptations is a single call.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        make: Callable[[FlatTarget, Settings], Algorithm],
    ) -> None:
        self._settings = settings
        self._target = flat_target(problem)
        self._algorithm = algorithm = make(self._target, settings)

        def step(state: tuple[jax.Array, Any, jax.Array, jax.Array], parameters: Any):
            def once(_: int, state: tuple[jax.Array, Any, jax.Array, jax.Array]):
                rng_key, chains, steps, diverging = state
                rng_key, key_move = jax.random.split(rng_key)
                chains, info = algorithm.transition(key_move, chains, parameters)
                steps = steps + info.num_integration_steps
                return rng_key, chains, steps, diverging | info.is_divergent

            rng_key, chains, steps, diverging = state
            fresh = rng_key, chains, jnp.zeros_like(steps), jnp.zeros_like(diverging)
            return jax.lax.fori_loop(0, settings.thinning, once, fresh)

        self._loop = compiled_loop(
            step, lambda state: (state[1].position, state[2], state[3]), SEGMENT_SIZE
        )
        self._constrain = jax.jit(jax.vmap(jax.vmap(self._target.constrain)))

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Yield warm-up as one segment, then the segments of draws."""
        num_chains, num_warmup, num_samples, thinning = self._settings
        per_step = self._algorithm.gradients_per_step
        key_start, key_warmup, key_sample = jax.random.split(rng_key, 3)
        positions = jax.block_until_ready(self._target.start(key_start, num_chains))
        yield Segment("start")
        chains, parameters, steps = jax.block_until_ready(
            self._algorithm.warm_up(key_warmup, positions)
        )
        count = per_step * int(np.asarray(steps, np.int64).sum())
        yield Segment("warmup", num_warmup, count)
        zeros = jnp.zeros(num_chains, int), jnp.zeros(num_chains, bool)
        state = (key_sample, chains, *zeros)
        for chunk, _ in paced(self._loop, state, parameters, num_samples, SEGMENT_SIZE):
            positions, steps, diverging = chunk.outputs
            yield Segment(
                "sampling",
                chunk.num_iterations * thinning,
                per_step * int(chunk.rows(steps).sum(dtype=np.int64)),
                chunk.by_chain(self._constrain(positions)),
                int(chunk.rows(diverging).sum()),
            )
