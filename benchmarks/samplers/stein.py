"""Stein variational gradient descent, NumPyro's ``SVGD`` (its ``SteinVI`` with point masses).

Liu and Wang (2016). Particles repel each other through an RBF kernel (median bandwidth) and follow
the average of their gradients under this kernel. Their positions after the last step are the
answer, which is biased like any variational one. The optimizer is Adagrad, as NumPyro recommends.
"""

from collections.abc import Iterator

import jax
import numpy as np
from numpyro.contrib.einstein import SVGD, RBFKernel
from numpyro.infer import Predictive, init_to_uniform
from numpyro.optim import Adagrad

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import Segment, Settings, device_kwargs, wanted

STAGES = 20
LEARNING_RATE = 0.5


class Svgd:
    """SVGD bound to a problem; see :class:`benchmarks.samplers.protocol.Program`.

    Args:
        problem: The problem.
        settings: ``num_warmup`` steps of ``num_samples`` particles, one ensemble.
    """

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self._problem = problem
        self._settings = settings
        self._kwargs = kwargs = device_kwargs(problem)
        self._stein = stein = SVGD(
            problem.model,
            Adagrad(LEARNING_RATE),
            RBFKernel(),
            num_stein_particles=settings.num_samples,
            guide_kwargs={"init_loc_fn": init_to_uniform()},
        )

        @jax.jit
        def advance(state, count: int):
            return jax.lax.fori_loop(0, count, lambda _, s: stein.update(s, **kwargs)[0], state)

        self._advance = advance
        self._read = jax.jit(self._draws)

    def _draws(self, state) -> dict[str, jax.Array]:
        suffix = f"_{self._stein.guide.prefix}_loc"
        particles = self._stein.get_params(state)
        values = {name.removesuffix(suffix): x for name, x in particles.items()}
        if set(self._problem.sites) - set(values):  # deterministic sites
            predict = Predictive(self._problem.model, values, return_sites=self._problem.sites)
            values = predict(jax.random.key(0), **self._kwargs) | values
        return wanted(self._problem, values)

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Yield stages, each with its final particles as draws."""
        num_particles, num_steps = self._settings.num_samples, self._settings.num_warmup
        state = jax.block_until_ready(self._stein.init(rng_key, **self._kwargs))
        yield Segment("start")
        for stage in np.array_split(np.arange(num_steps), min(STAGES, num_steps)):
            state = jax.block_until_ready(self._advance(state, len(stage)))
            draws = {site: np.asarray(x)[None] for site, x in self._read(state).items()}
            num_gradients = len(stage) * num_particles
            yield Segment("sampling", len(stage), num_gradients, draws, replaces=True)
