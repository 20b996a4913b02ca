r"""The drift of the learned flows: minus the gradient of a scalar network in space and time.

As in OT-Flow (Onken, Wu Fung, Li and Ruthotto 2021, arXiv:2006.00104, eqs. 10 to 12), with
:math:`s = (x, t)`,

.. math:: \phi(s) = w^\top N(s) + \tfrac12 (A s)^\top (B s) + b^\top s,

where N is a residual network with the activation :math:`\log(e^a + e^{-a})`, the antiderivative of
tanh. In OT-Flow B = A; here the quadratic part may be indefinite, so that a linear drift can widen
a density as well as narrow it.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Potential(eqx.Module):
    """Scalar network whose negative gradient is a velocity; its initial drift is zero.

    Args:
        dim: Dimension of space.
        width: Units of every hidden layer.
        depth: Number of residual layers after the first layer, at least 1.
        rng_key: Random key for the initial weights.

    Attributes:
        opening: Weights of the first layer, (width, dim + 1).
        opening_bias: Biases of the first layer, (width,).
        residual: Weights of the residual layers, (depth, width, width).
        residual_bias: Biases of the residual layers, (depth, width).
        readout: w, (width,).
        left: A, (rank, dim + 1) with rank the smaller of width and dim + 1.
        right: B, the same shape.
        linear: b, (dim + 1,).
    """

    opening: jax.Array
    opening_bias: jax.Array
    residual: jax.Array
    residual_bias: jax.Array
    readout: jax.Array
    left: jax.Array
    right: jax.Array
    linear: jax.Array

    def __init__(self, dim: int, width: int, depth: int, *, rng_key: jax.Array) -> None:
        weights = _initial_weights(rng_key, dim, width, depth)
        for name, value in weights.items():
            setattr(self, name, value)

    def __call__(self, x: jax.Array, time: ArrayLike) -> jax.Array:
        """Value at one point (dim,) and time (), a scalar."""
        inputs = jnp.append(x, time)
        hidden = _activation(self.opening @ inputs + self.opening_bias)
        depth = self.residual.shape[0]
        for weight, bias in zip(self.residual, self.residual_bias, strict=True):
            hidden = hidden + _activation(weight @ hidden + bias) / depth
        quadratic = 0.5 * (self.left @ inputs) @ (self.right @ inputs)
        return self.readout @ hidden + quadratic + self.linear @ inputs


class Drift(eqx.Module):
    """The velocity and costs that a potential gives for particles at one time.

    Attributes:
        velocity: Minus the gradient of the potential in space, (num_particles, dim).
        kinetic: Half the squared velocity, the cost of optimal transport, (num_particles,).
        hjb: Absolute residual of the Hamilton-Jacobi-Bellman equation, which potentials of optimal
            transport solve, |half the squared velocity - time derivative|, (num_particles,).
    """

    velocity: jax.Array
    kinetic: jax.Array
    hjb: jax.Array


def drift(potential: Potential, particles: jax.Array, time: ArrayLike) -> Drift:
    """Velocity of particles (num_particles, dim) at a time, and its costs."""
    gradient = jax.vmap(jax.grad(potential, argnums=(0, 1)), in_axes=(0, None))
    slope, rate = gradient(particles, jnp.asarray(time, particles.dtype))
    kinetic = 0.5 * jnp.sum(slope**2, -1)
    return Drift(-slope, kinetic, jnp.abs(kinetic - rate))


def velocity(potential: Potential, particles: jax.Array, time: ArrayLike) -> jax.Array:
    """Minus the gradient in space at particles (num_particles, dim), same shape."""
    time = jnp.asarray(time, particles.dtype)
    return -jax.vmap(jax.grad(potential), in_axes=(0, None))(particles, time)


def divergence(
    potential: Potential, particles: jax.Array, time: ArrayLike, probe: jax.Array | None
) -> jax.Array:
    r"""Divergence of the velocity at particles (num_particles, dim), (num_particles,).

    Args:
        potential: The network.
        particles: Positions.
        time: Time.
        probe: Directions :math:`\varepsilon` of Hutchinson's estimate
            :math:`\varepsilon^\top J \varepsilon`, in the shape of ``particles``, with mean 0 and
            unit covariance; ``None`` for the exact trace, which takes dim times as long.
    """

    def along(direction: jax.Array) -> jax.Array:
        _, change = jax.jvp(lambda x: velocity(potential, x, time), (particles,), (direction,))
        return jnp.sum(change * direction, -1)

    if probe is not None:
        return along(probe)
    basis = jnp.eye(particles.shape[1], dtype=particles.dtype)
    return jnp.sum(jax.vmap(lambda e: along(jnp.broadcast_to(e, particles.shape)))(basis), 0)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _initial_weights(rng_key: jax.Array, dim: int, width: int, depth: int) -> dict[str, jax.Array]:
    """Random weights of unit gain, with zero ``readout``, ``right`` and ``linear``.

    The drift is then zero, but its gradients with respect to the weights are not.
    """
    inputs = dim + 1
    rank = min(width, inputs)
    shapes = {
        "opening": (width, inputs),
        "opening_bias": (width,),
        "residual": (depth, width, width),
        "residual_bias": (depth, width),
        "left": (rank, inputs),
    }
    # All weights are cut from one vector, because a program that draws random numbers of each shape
    # separately takes long to compile.
    sizes = [math.prod(shape) for shape in shapes.values()]
    numbers = jnp.split(jax.random.normal(rng_key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    weights = {}
    for (name, shape), values in zip(shapes.items(), numbers, strict=True):
        scale = 1.0 if name.endswith("bias") else 1 / math.sqrt(shape[-1])
        weights[name] = scale * values.reshape(shape)
    zeros = {"readout": (width,), "right": (rank, inputs), "linear": (inputs,)}
    return weights | {name: jnp.zeros(shape) for name, shape in zeros.items()}


def _activation(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, -x)
