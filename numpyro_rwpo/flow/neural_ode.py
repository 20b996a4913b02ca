r"""The baseline: the same drift without RWPO layers, a continuous normalizing flow.

From standard normal z at time 0, :math:`x = m + \sigma z`,

.. math:: \dot z = -\nabla\phi(z, t), \qquad
    \frac{d}{dt} \log\rho = \Delta\phi(z, t), \qquad 0 \le t \le 1,

solved by Diffrax with fixed steps (Chen, Rubanova, Bettencourt and Duvenaud 2018, arXiv:1806.07366;
with this potential, it is OT-Flow, Onken et al. 2021, arXiv:2006.00104). The log density is
computed by following points back in time. It is that of the exact flow up to the error of the
solver, and with Hutchinson's trace (Grathwohl et al. 2019, arXiv:1810.01367) it is an unbiased
estimate.
"""

import copy
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_rwpo.flow.arguments import (
    check_count,
    checked_particles,
    checked_points,
    checked_row,
)
from numpyro_rwpo.flow.potential import Potential, divergence, drift, velocity
from numpyro_rwpo.flow.sparse_transformer import PathCosts
from numpyro_rwpo.support.checks import check_choice


class NeuralODEFlow(eqx.Module):
    """A continuous normalizing flow with the drift of :class:`SparseTransformerFlow`.

    All methods may be jitted and vmapped, and differentiated with respect to the flow.

    Args:
        dim: Dimension of the samples.
        num_steps: Steps of Heun's second-order method, with two evaluations of the drift each.
        width: Units of the hidden layers of the potential network.
        trace: ``"exact"``, or ``"hutchinson"`` for one random probe per point in training;
            ``log_prob`` and ``log_prob_and_costs`` then need a key.
        depth: Number of residual layers of the network.
        location: Mean of the base distribution, scalar or (dim,).
        scale: Standard deviation of the base distribution, > 0, scalar or (dim,).
        learn_base: Whether ``location`` and ``scale`` are trained.
        rng_key: Random key for the weights of the network.

    Attributes:
        potential: The network.
        num_steps: Number of solver steps.
        trace: How the divergence is computed.

    Raises:
        TypeError: If an argument is not a number or integer where one is needed.
        ValueError: If an argument is out of its range, of the wrong shape, or unknown.
    """

    potential: Potential
    _location: jax.Array
    _log_scale: jax.Array
    num_steps: int = eqx.field(static=True)
    trace: str = eqx.field(static=True)
    learn_base: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_steps: int = 8,
        width: int = 32,
        *,
        trace: str = "exact",
        depth: int = 1,
        location: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        learn_base: bool = True,
        rng_key: jax.Array,
    ) -> None:
        for name, value in (("dim", dim), ("num_steps", num_steps), ("width", width)):
            check_count(name, value)
        check_count("depth", depth)
        check_choice("trace", trace, ("exact", "hutchinson"))
        check_choice("learn_base", learn_base, (True, False))
        self.potential = Potential(dim, width, depth, rng_key=rng_key)
        self._location = jnp.asarray(checked_row("location", location, dim))
        self._log_scale = jnp.asarray(np.log(checked_row("scale", scale, dim, is_positive=True)))
        self.num_steps = num_steps
        self.trace = trace
        self.learn_base = learn_base

    @property
    def dim(self) -> int:
        """Dimension of the samples."""
        return self._location.shape[0]

    @property
    def location(self) -> jax.Array:
        """Mean of the base distribution, (dim,)."""
        return self._location if self.learn_base else lax.stop_gradient(self._location)

    @property
    def scale(self) -> jax.Array:
        """Standard deviation of the base distribution, (dim,)."""
        scale = jnp.exp(self._log_scale)
        return scale if self.learn_base else lax.stop_gradient(scale)

    def with_solver(self, *, num_steps: int, trace: str = "exact") -> "NeuralODEFlow":
        """The same flow with other solver settings; arguments and errors as for the constructor.

        A flow trained with few steps may have learned the error of the solver. What it returns is
        then not a density, which is only revealed by more steps.
        """
        check_count("num_steps", num_steps)
        check_choice("trace", trace, ("exact", "hutchinson"))
        other = copy.copy(self)
        object.__setattr__(other, "num_steps", num_steps)
        object.__setattr__(other, "trace", trace)
        return other

    def transport(self, particles: ArrayLike) -> jax.Array:
        """Move standard normal points (num_particles, dim) from time 0 to 1, same shape.

        Raises:
            ValueError: If ``particles`` does not have this shape.
        """
        particles = checked_particles("particles", particles, self.dim, self._location.dtype)
        end = self._solve(lambda t, z, _: velocity(self.potential, z, t), particles, 0.0, 1.0)
        return self._from_standard(end)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, dim)."""
        shape = (num_samples, self.dim)
        return self.transport(jax.random.normal(rng_key, shape, self._location.dtype))

    def log_prob(self, x: ArrayLike, rng_key: jax.Array | None = None) -> jax.Array:
        """Log density at points (..., dim), (...).

        Args:
            x: Points.
            rng_key: Random key for Hutchinson's probes; not used with the exact trace.

        Raises:
            ValueError: If the last axis of ``x`` is not ``dim``, or a key is needed but missing.
        """
        x = checked_points(x, self.dim)
        if rng_key is None and self.trace == "hutchinson":
            raise ValueError(
                "`rng_key` is needed by Hutchinson's trace; pass one, or choose the exact trace "
                "with `with_solver`."
            )
        log_prob, _ = self.log_prob_and_costs(rng_key, x.reshape(-1, self.dim))
        return log_prob.reshape(x.shape[:-1])

    def log_prob_and_costs(
        self, rng_key: jax.Array | None, x: jax.Array
    ) -> tuple[jax.Array, PathCosts]:
        """For training from samples: log density at data (n, dim), (n,), and path costs.

        Args:
            rng_key: A random key; may be ``None`` with the exact trace.
            x: Data.
        """
        z, gain, costs = self._follow(
            rng_key, (x - self.location[None]) / self.scale[None], 1.0, 0.0
        )
        return self._base_log_prob(z) + gain, jax.tree.map(jnp.negative, costs)

    def sample_and_costs(
        self, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array, PathCosts]:
        """For training from a density: draws, their log density, and path costs.

        Args:
            rng_key: A random key.
            num_samples: Number of draws.

        Returns:
            Draws (num_samples, dim), log densities (num_samples,), and the costs.
        """
        key_noise, key_probe = jax.random.split(rng_key)
        noise = jax.random.normal(key_noise, (num_samples, self.dim), self._location.dtype)
        z, gain, costs = self._follow(key_probe, noise, 0.0, 1.0)
        return self._from_standard(z), self._base_log_prob(noise) - gain, costs

    def _from_standard(self, z: jax.Array) -> jax.Array:
        return self.location[None] + self.scale[None] * z

    def _base_log_prob(self, z: jax.Array) -> jax.Array:
        log_prob = jax.scipy.stats.norm.logpdf(z) - jnp.log(self.scale)[None]
        return jnp.sum(log_prob, -1)

    def _follow(
        self, rng_key: jax.Array | None, z: jax.Array, start: float, end: float
    ) -> tuple[jax.Array, jax.Array, PathCosts]:
        """Points at ``end``, the integral of the divergence along each path, and mean costs."""
        probe = None
        if self.trace == "hutchinson" and rng_key is not None:
            probe = jax.random.rademacher(rng_key, z.shape, z.dtype)

        def field(time: jax.Array, state: Any, _: Any) -> Any:
            z = state[0]
            moves = drift(self.potential, z, time)
            growth = divergence(self.potential, z, time, probe)
            return moves.velocity, growth, moves.kinetic.mean(), moves.hjb.mean()

        nothing = jnp.zeros((), z.dtype)
        state = (z, jnp.zeros(z.shape[0], z.dtype), nothing, nothing)
        z, growth, kinetic, hjb = self._solve(field, state, start, end)
        return z, growth, PathCosts(kinetic, hjb)

    def _solve(self, field: Any, state: Any, start: float, end: float) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Heun(),
            t0=start,
            t1=end,
            dt0=(end - start) / self.num_steps,
            y0=state,
            max_steps=self.num_steps + 1,  # one spare step, in case rounding leaves some time
        )
        return jax.tree.map(lambda x: x[0], solution.ys)
