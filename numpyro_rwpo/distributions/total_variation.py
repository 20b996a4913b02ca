r"""Total variation as a prior of images and of values on graphs.

.. math:: p(x) \propto s^{-(n-c)} e^{-\mathrm{TV}(x)/s},

with n values in c connected parts of the graph. Total variation is homogeneous and does not see the
level of a part, so that this power of the scale is exact: the density integrates to a constant that
does not depend on s, over all x with the same levels. This constant is left out. The prior of
Rudin, Osher and Fatemi (1992), Physica D 60; as a prior in sampling, Durmus, Moulines and Pereyra
(2018), SIAM J. Imaging Sci. 11.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from numpyro_rwpo.distributions.structured import check_event, checked_scale, checked_size
from numpyro_rwpo.priors.total_variation import Graph, edge_graph, image_graph


class TotalVariation(dist.Distribution):
    r"""Density proportional to ``scale^-(n - parts) exp(-TV(x) / scale)``, constant in the level.

    Without ``level_scale`` it is improper: the data must determine the level of every connected
    part of the graph. With it, the mean of all values has a normal prior around 0, and it is
    proper. There is no exact way to draw from it, only from its posterior. In one dimension,
    :class:`~numpyro_rwpo.distributions.FusedLaplace` is far better.

    Args:
        scale: Scale > 0 in the units of the values; its shape is the batch's.
        shape: Rows and columns of an image, whose neighbors are its edges.
        edges: Instead, pairs of positions in a vector, (edges, 2).
        size: With ``edges``, the number of values.
        isotropic: Whether the two differences at a pixel count by the length of their vector and
            not one by one; only with ``shape``.
        level_scale: Standard deviation > 0 of the mean of the values; ``None`` for a flat prior.
        validate_args: As for any NumPyro distribution.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a concrete scale is not positive, an edge is out of range or joins a value
            with itself, ``shape`` is not that of an image, or ``level_scale`` is given for a graph
            of several parts.
    """

    arg_constraints = {"scale": constraints.positive}
    reparametrized_params = ["scale"]
    pytree_data_fields = ("scale", "level_scale")
    pytree_aux_fields = ("edges", "isotropic", "num_parts")

    def __init__(
        self,
        scale: Any,
        shape: tuple[int, int] | None = None,
        *,
        edges: Sequence[tuple[int, int]] | None = None,
        size: int | None = None,
        isotropic: bool = False,
        level_scale: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        if (shape is None) == (edges is None):
            raise ValueError(f"Give either `shape` or `edges`; got {shape!r} and {edges!r}.")
        self.scale = checked_scale("scale", scale)
        self.isotropic, self.edges, self.num_parts = bool(isotropic), None, 1
        if shape is not None:
            if not isinstance(shape, tuple) or len(shape) != 2:
                raise ValueError(f"`shape` must be (rows, columns) of an image; got {shape!r}.")
            event_shape = tuple(checked_size("shape", n, 2) for n in shape)
        else:
            event_shape = (checked_size("size", size, 2),)
            pairs = _checked_edges(edges, event_shape[0], self.isotropic)
            self.edges = tuple(map(tuple, pairs.tolist()))
            self.num_parts = _num_parts(pairs, event_shape[0])
        self.level_scale = None
        if level_scale is not None:
            self.level_scale = checked_scale("level_scale", level_scale)
            if self.num_parts > 1:
                raise ValueError(
                    f"`level_scale` is for a connected graph; this one has {self.num_parts} parts, "
                    "whose levels would have no prior. Leave it out, or add edges."
                )
        super().__init__(self.scale.shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Vectors with ``edges``, matrices with ``shape``."""
        return constraints.real_vector if self.edges else constraints.real_matrix

    @property
    def is_proper(self) -> bool:
        """Whether the density has a finite integral."""
        return self.level_scale is not None

    @property
    def graph(self) -> Graph:
        """The edges, for :func:`~numpyro_rwpo.priors.total_variation.total_variation_prox`."""
        return edge_graph(np.asarray(self.edges)) if self.edges else image_graph(self.isotropic)

    @validate_sample  # type: ignore[untyped-decorator]
    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density up to a constant that depends on neither the values nor the scale, (...)."""
        check_event("TotalVariation", value, self.event_shape)
        rest = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(-1, *self.event_shape)
        variation = jax.vmap(self.graph.total_variation)(flat).reshape(rest)
        rank = int(np.prod(self.event_shape)) - self.num_parts
        shape = jnp.broadcast_shapes(rest, self.batch_shape)
        scale = jnp.broadcast_to(self.scale, shape)
        log_prob = -jnp.broadcast_to(variation, shape) / scale - rank * jnp.log(scale)
        if self.level_scale is None:
            return log_prob
        level = flat.reshape(flat.shape[0], -1).mean(1).reshape(rest)
        return log_prob + jnp.broadcast_to(
            dist.Normal(0.0, self.level_scale).log_prob(level), shape
        )

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Not possible.

        Raises:
            NotImplementedError: In any case.
        """
        raise NotImplementedError(
            "TotalVariation has no exact draws, and without `level_scale` it is improper. Sample a "
            "model that contains it with MCMC."
        )


def _checked_edges(edges: Any, size: int, is_isotropic: bool) -> np.ndarray:
    """The edges as an array (edges, 2)."""
    pairs = np.asarray(edges)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu" or not len(pairs):
        raise TypeError(
            f"`edges` must be pairs of integers, of shape (edges, 2); got shape {pairs.shape} of "
            f"type {pairs.dtype}."
        )
    wrong = pairs[((pairs < 0) | (pairs >= size)).any(1) | (pairs[:, 0] == pairs[:, 1])]
    if len(wrong):
        raise ValueError(
            f"`edges` must join two different positions from 0 to {size - 1}; got "
            f"{wrong[:3].tolist()}."
        )
    if is_isotropic:
        raise ValueError("`isotropic` is for images: give `shape` instead of `edges`.")
    return pairs


def _num_parts(pairs: np.ndarray, size: int) -> int:
    """Number of connected parts of a graph."""
    adjacency = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    return int(connected_components(adjacency, directed=False)[0])
