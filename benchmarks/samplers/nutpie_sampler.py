"""nutpie: NUTS with a diagonal metric from draws and gradients, in Rust, one gradient at a time.

Its defaults are used, with as many chains in parallel as there are cores. Warm-up and draws are one
call, so that they are one segment, and no rate after warm-up is known.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import nutpie
from nutpie.compiled_pyfunc import from_pyfunc

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import Segment, Settings, flat_target


class Nutpie:
    """nutpie bound to a problem; see :class:`benchmarks.samplers.protocol.Program`."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self._settings = settings
        self._target = target = flat_target(problem)
        potential = jax.jit(jax.value_and_grad(target.potential))

        def log_density(position: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = potential(np.asarray(position, np.float32))
            return -float(value), -np.asarray(gradient, np.float64)

        def make_log_density() -> Callable[..., Any]:
            return log_density

        def make_expand(seed1: int, seed2: int, chain: int) -> Callable[..., Any]:
            return lambda position: {"position": np.asarray(position, np.float64)}

        self._model = from_pyfunc(
            target.dim,
            make_log_density,
            make_expand,
            [np.dtype(np.float64)],
            [(target.dim,)],
            ["position"],
        )
        self._constrain = jax.jit(jax.vmap(jax.vmap(target.constrain)))

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Yield everything as one segment of draws."""
        num_chains, num_warmup, num_samples, _ = self._settings
        yield Segment("start")
        trace = nutpie.sample(
            self._model,
            draws=num_samples,
            tune=num_warmup,
            chains=num_chains,
            seed=int(jax.random.bits(rng_key) >> 1),
            progress_bar=False,
        )
        stats, warm = trace.sample_stats, trace.warmup_sample_stats
        steps = sum(int(np.asarray(x["n_steps"]).sum()) for x in (stats, warm))
        positions = np.asarray(trace.posterior["position"], np.float32)
        draws = {site: np.asarray(x) for site, x in self._constrain(positions).items()}
        diverging = int(np.asarray(stats["diverging"]).sum())
        yield Segment("sampling", num_samples, steps, draws, diverging)
