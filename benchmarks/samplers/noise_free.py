"""The paper's noise-free update, ``numpyro_rwpo.splitting_step``, run on its own.

Han, Osher and Li (2025), arXiv:2502.16773: particles move by steps of size h, which is also the
prox time, and their positions after the last step are the answer. There is no Metropolis
correction: the answer is biased by the bandwidth and by the finite number of particles, and is
reported as it is. The step size is the longest that the smooth part allows, 1 / L, where L is the
largest curvature at the particles, estimated anew for every stage of the run.
"""

from collections.abc import Iterator
from typing import Literal

import jax
import numpy as np

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import (
    POWER_ITERATIONS,
    Segment,
    Settings,
    flat_target,
    top_curvature,
)
from numpyro_rwpo import splitting_step

STAGES = 20
LOOKED_AT = 8  # particles at which the curvature is estimated


class NoiseFree:
    """The update bound to a problem; see :class:`benchmarks.samplers.protocol.Program`.

    Args:
        problem: The problem.
        settings: ``num_warmup`` steps of ``num_samples`` particles, one ensemble.
        attention: ``"joint"`` or ``"marginal"``.
    """

    def __init__(
        self, problem: Problem, settings: Settings, attention: Literal["joint", "marginal"]
    ) -> None:
        self._settings = settings
        self._target = target = flat_target(problem)
        gradient = jax.vmap(jax.grad(target.smooth_potential))

        @jax.jit
        def advance(x: jax.Array, curvature: jax.Array, count: int) -> jax.Array:
            def once(_: int, x: jax.Array) -> jax.Array:
                return splitting_step(
                    x, gradient, target.rates, 1.0 / curvature, attention=attention
                )

            return jax.lax.fori_loop(0, count, once, x)

        self._advance = advance
        self._curvature = jax.jit(lambda x, key: top_curvature(target, x[:LOOKED_AT], key))
        self._constrain = jax.jit(jax.vmap(target.constrain))

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Yield stages, each with its own step size and with its final particles as draws."""
        num_particles, num_steps = self._settings.num_samples, self._settings.num_warmup
        key_start, key_power = jax.random.split(rng_key)
        x = jax.block_until_ready(self._target.start(key_start, num_particles))
        yield Segment("start")
        stages = np.array_split(np.arange(num_steps), min(STAGES, num_steps))
        for i, stage in enumerate(stages):
            curvature = self._curvature(x, jax.random.fold_in(key_power, i))
            x = jax.block_until_ready(self._advance(x, curvature, len(stage)))
            draws = {site: np.asarray(v)[None] for site, v in self._constrain(x).items()}
            num_gradients = len(stage) * num_particles + 2 * POWER_ITERATIONS * LOOKED_AT
            yield Segment("sampling", len(stage), num_gradients, draws, replaces=True)
