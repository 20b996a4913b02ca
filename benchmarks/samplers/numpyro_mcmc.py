"""RWPO and NumPyro's own kernels, driven as ``numpyro.infer.MCMC`` drives them.

``MCMC.run`` compiles its loop anew on every call without a progress bar, so it cannot show the cost
of a run without compilation. Here the ``init`` and ``sample`` of the kernels run in a loop of the
same construction (one compiled program for warm-up and sampling), which a second run reuses.
``benchmarks.mcmc_times`` measures ``MCMC.run`` itself.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import (
    Segment,
    Settings,
    compiled_loop,
    device_kwargs,
    paced,
    wanted,
)

SEGMENT_SIZE = 50  # in iterations
# For samplers that do not count evaluations: iterations over which to count, and a time limit.
COUNTED_ITERATIONS, COUNTED_SECONDS = 20, 20.0


class KernelProgram:
    """A NumPyro kernel bound to a problem.

    Args:
        problem: The problem.
        settings: Chains and iterations.
        make_kernel: Function from a model to a kernel.
    """

    def __init__(
        self, problem: Problem, settings: Settings, make_kernel: Callable[..., MCMCKernel]
    ) -> None:
        self._problem = problem
        self._settings = settings
        self._make_kernel = make_kernel
        self._kwargs = device_kwargs(problem)
        self._kernel: MCMCKernel | None = None
        self._last_state: Any = None

    def _compile(self, kernel: MCMCKernel, state: Any) -> None:
        """Build the loop around the kernel of the first run; later runs only pass their state."""
        self._kernel = kernel
        fields = [name for name in ("num_steps", "diverging") if hasattr(state, name)]
        postprocess = kernel.postprocess_fn((), self._kwargs)

        def extract(state: Any) -> dict[str, Any]:
            return {"z": state.z, **{name: getattr(state, name) for name in fields}}

        def constrain(z: Any) -> dict[str, jax.Array]:
            return wanted(self._problem, postprocess(z))

        self._loop = compiled_loop(
            lambda state, _: kernel.sample(state, (), self._kwargs), extract, SEGMENT_SIZE
        )
        self._constrain = jax.jit(jax.vmap(jax.vmap(constrain)))

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """See :class:`benchmarks.samplers.protocol.Program`."""
        num_chains, num_warmup, num_samples, _ = self._settings
        kernel = self._make_kernel(self._problem.model)
        # MCMC hands the kernel one key for each chain, and a single key for a single chain.
        keys = jax.random.split(rng_key, num_chains)
        state = kernel.init(keys, num_warmup, None, (), self._kwargs)
        if self._kernel is None:
            self._compile(kernel, state)
        jax.block_until_ready(state.z)
        yield Segment("start")
        for phase, total in (("warmup", num_warmup), ("sampling", num_samples)):
            for chunk, last in paced(self._loop, state, None, total, SEGMENT_SIZE):
                state = self._last_state = last
                outputs = chunk.outputs
                count, num_divergences, draws = None, 0, None
                if "num_steps" in outputs:
                    count = int(chunk.rows(outputs["num_steps"]).sum(dtype=np.int64))
                if phase == "sampling":
                    draws = chunk.by_chain(self._constrain(outputs["z"]))
                    if "diverging" in outputs:
                        num_divergences = int(chunk.rows(outputs["diverging"]).sum())
                yield Segment(phase, chunk.num_iterations, count, draws, num_divergences)

    def evaluations_per_iteration(self) -> float:
        """Evaluations of the potential per iteration, for kernels that do not count them.

        They are counted on a few more iterations of the last run, outside all timing, by a callback
        in the function that the ensemble kernels call for a batch of walkers.
        """
        kernel, counts = self._kernel, []
        inner = kernel._batch_log_density

        def counted(z: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: counts.append(len(z)))
            return inner(z)

        kernel._batch_log_density = counted
        step = jax.jit(lambda state: kernel.sample(state, (), self._kwargs))
        state, num_counted, begin = self._last_state, 0, time.perf_counter()
        while num_counted < COUNTED_ITERATIONS and time.perf_counter() < begin + COUNTED_SECONDS:
            state = jax.block_until_ready(step(state))
            num_counted += 1
        jax.effects_barrier()
        kernel._batch_log_density = inner
        return sum(counts) / num_counted
