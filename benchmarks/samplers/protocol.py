"""The interface of the benchmark's samplers, and the functions they share.

A sampler is a function ``prepare(problem, settings) -> Program``. The ``run(key)`` of a program
yields one :class:`Segment` after another: one when it is initialized, then those of warm-up, then
those of sampling. The caller measures the time between them, may stop at any of them, and then has
the draws made so far. The compiled functions belong to the program, so a second ``run`` compiles
nothing.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import initialize_model

from benchmarks.problems import Problem

Draws = dict[str, np.ndarray]

SEGMENT_SECONDS = 5.0  # longest segment to aim for, so that a run can stop in time
START_RADIUS = 2.0  # NumPyro's default start: uniform(-2, 2) in unconstrained space


class Settings(NamedTuple):
    """The length of a sampler's run.

    Attributes:
        num_chains: Number of chains; of walkers, for ensemble samplers.
        num_warmup: Iterations of warm-up per chain.
        num_samples: Draws kept per chain.
        thinning: Iterations per kept draw.
    """

    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int = 1


class Segment(NamedTuple):
    """A part of a run.

    Attributes:
        phase: ``"start"``, ``"warmup"`` or ``"sampling"``.
        num_iterations: Iterations of every chain.
        num_evaluations: Gradient evaluations over all chains, or evaluations of the potential for
            samplers without gradients; ``None`` if the program only knows their rate.
        draws: New draws by site, arrays (chains, draws, ...), or ``None``.
        num_divergences: Divergent transitions.
        replaces: Whether ``draws`` replace all earlier ones, as for particles that move.
    """

    phase: str
    num_iterations: int = 0
    num_evaluations: int | None = 0
    draws: Draws | None = None
    num_divergences: int = 0
    replaces: bool = False


class Program(Protocol):
    """A sampler bound to a problem."""

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Run from a new initialization."""


class Chunk(NamedTuple):
    """Iterations done by one call of a compiled loop.

    Attributes:
        num_iterations: Number of iterations.
        outputs: Arrays on the device whose first ``num_iterations`` rows are from these iterations.
    """

    num_iterations: int
    outputs: Any

    def rows(self, x: Any) -> np.ndarray:
        """The rows of an array that are from these iterations.

        The array is sliced on the host, because on the device every new number of rows would need a
        new program.
        """
        return np.asarray(x)[: self.num_iterations]

    def by_chain(self, draws: dict[str, jax.Array]) -> Draws:
        """Convert arrays (rows, chains, ...) on the device to NumPy arrays (chains, draws, ...)."""
        return {site: np.swapaxes(self.rows(x), 0, 1) for site, x in draws.items()}


class FlatTarget(NamedTuple):
    """A NumPyro model as functions of a flat unconstrained vector.

    Attributes:
        dim: Number of unconstrained scalars.
        potential: (dim,) -> (), minus the log density, including Laplace priors.
        constrain: (dim,) -> values of the requested sites.
        rates: Rates of the Laplace priors at 0 that the problem names, 0 elsewhere, (dim,).
    """

    dim: int
    potential: Callable[[jax.Array], jax.Array]
    constrain: Callable[[jax.Array], dict[str, jax.Array]]
    rates: jax.Array

    def smooth_potential(self, position: jax.Array) -> jax.Array:
        """The potential without the named Laplace priors, (dim,) -> ().

        This is the difference of two nonsmooth functions. Its automatic gradient is correct away
        from the kinks, and also at the kinks, where JAX's subgradients of both are 0.
        """
        return self.potential(position) - jnp.sum(self.rates * jnp.abs(position))

    def start(self, rng_key: jax.Array, num_chains: int) -> jax.Array:
        """NumPyro's default initial positions, (num_chains, dim)."""
        shape = (num_chains, self.dim)
        return jax.random.uniform(rng_key, shape, minval=-START_RADIUS, maxval=START_RADIUS)


def device_kwargs(problem: Problem) -> dict[str, Any]:
    """The model's arguments with its arrays on the device."""
    return {k: jnp.asarray(v) if np.ndim(v) else v for k, v in problem.kwargs.items()}


def wanted(problem: Problem, values: dict[str, Any]) -> dict[str, Any]:
    """The sites that are compared with the reference: all of them if the problem names none."""
    return {site: values[site] for site in problem.sites or values}


def flat_target(problem: Problem) -> FlatTarget:
    """Flatten a problem's model.

    Args:
        problem: The problem.

    Returns:
        Its functions of flat vectors.
    """
    # A batch of one key is used because NumPyro does not compile the search for a single start.
    keys = jax.random.split(jax.random.key(0), 1)
    kwargs = device_kwargs(problem)
    info = initialize_model(keys, problem.model, model_kwargs=kwargs, validate_grad=False)
    values = jax.tree.map(lambda x: x[0], info.param_info.z)
    flat, unravel = ravel_pytree(values)
    rates = {k: jnp.full_like(v, problem.laplace_rates.get(k, 0.0)) for k, v in values.items()}
    return FlatTarget(
        flat.size,
        lambda position: info.potential_fn(unravel(position)),
        lambda position: wanted(problem, info.postprocess_fn(unravel(position))),
        ravel_pytree(rates)[0],
    )


def compiled_loop(
    step: Callable[[Any, Any], Any], extract: Callable[[Any], Any], size: int
) -> Callable[[Any, Any, int], tuple[Any, Any]]:
    """Compile ``(state, constants, count) -> (state, outputs)``, at most ``size`` steps.

    The number of steps is an argument, so that warm-up and sampling, and full and short segments,
    are the same program, as in NumPyro's own loop. Rows of the outputs from ``count`` on are
    meaningless.

    Args:
        step: ``(state, constants) -> state``.
        extract: Function from a state to the part of it to keep.
        size: Number of rows of the outputs.
    """

    @jax.jit
    def run(state: Any, constants: Any, count: jax.Array) -> tuple[Any, Any]:
        shapes = jax.eval_shape(extract, state)
        outputs = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

        def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, outputs = carry
            state = step(state, constants)
            new = extract(state)
            return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), outputs, new)

        return lax.fori_loop(0, count, body, (state, outputs))

    return run


def paced(
    loop: Callable[[Any, Any, int], tuple[Any, Any]],
    state: Any,
    constants: Any,
    total: int,
    size: int,
) -> Iterator[tuple[Chunk, Any]]:
    """Run a compiled loop in chunks of at most ``size`` steps and of about a few seconds.

    Args:
        loop: From :func:`compiled_loop`.
        state: First state.
        constants: Passed on to the steps.
        total: Steps to run.
        size: The ``size`` given to :func:`compiled_loop`.

    Yields:
        Each chunk with the state after it.
    """
    done, count = 0, 1  # the time of an iteration is not yet known
    while done < total:
        count = min(count, total - done)
        begin = time.perf_counter()
        state, outputs = jax.block_until_ready(loop(state, constants, count))
        seconds = time.perf_counter() - begin
        done += count
        yield Chunk(count, outputs), state
        count = int(np.clip(count * SEGMENT_SECONDS / seconds, 1, size))


def top_curvature(target: FlatTarget, positions: jax.Array, rng_key: jax.Array) -> jax.Array:
    """Largest eigenvalue of the smooth potential's Hessian over positions, by power iteration.

    Args:
        target: The problem.
        positions: Positions at which to evaluate the Hessian, (n, dim).
        rng_key: Key of the initial directions.

    Returns:
        A scalar. It costs :data:`POWER_ITERATIONS` Hessian-vector products per position.
    """
    gradient = jax.grad(target.smooth_potential)

    def one(position: jax.Array, direction: jax.Array) -> jax.Array:
        def body(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            direction, _ = carry
            direction = direction / jnp.linalg.norm(direction)
            _, product = jax.jvp(gradient, (position,), (direction,))
            return product, jnp.linalg.norm(product)

        return lax.fori_loop(0, POWER_ITERATIONS, body, (direction, jnp.zeros(())))[1]

    directions = jax.random.normal(rng_key, positions.shape)
    curvature = jax.vmap(one)(positions, directions)
    return jnp.nanmax(jnp.where(jnp.isfinite(curvature), curvature, jnp.nan))


POWER_ITERATIONS = 20
