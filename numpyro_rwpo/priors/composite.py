"""Several kinds of prior side by side, each on its own coordinates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_rwpo.priors.protocol import AnyPrior, is_separable, separable_part

# First coordinate, and the one after the last.
Slice = tuple[int, int]


def compose_prior(parts: Sequence[tuple[AnyPrior, Sequence[Slice]]]) -> AnyPrior:
    """Put priors side by side; one that has all coordinates comes back as it is.

    Args:
        parts: Priors, each with the slices of coordinates that it is about, in ascending order. A
            prior's parameters follow these, (dim of the prior,).

    Returns:
        The prior of all coordinates, in the order of their numbers.

    Raises:
        ValueError: If the slices overlap or leave a coordinate out.
    """
    slices = tuple(tuple((int(a), int(b)) for a, b in where) for _, where in parts)
    end = 0
    for start, stop in sorted(piece for where in slices for piece in where):
        if start != end or stop <= start:
            raise ValueError(f"`parts` must cover every coordinate once; got the slices {slices}.")
        end = stop
    priors = tuple(prior for prior, _ in parts)
    return priors[0] if len(priors) == 1 else CompositePrior(priors, slices)


def _elementwise(name: str) -> Callable[..., Any]:
    """A method that applies the parts' method ``name``, each at its own coordinates."""

    def method(self: "CompositePrior", *arguments: ArrayLike) -> Any:
        return jax.tree.map(self._joined, *self._of_each(name, *arguments))

    method.__name__ = name
    return method


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["slices"])
@dataclass(frozen=True)
class CompositePrior:
    """Priors of several kinds, each on its own coordinates.

    Build with :func:`compose_prior`. The methods are those of
    :class:`~numpyro_rwpo.priors.protocol.Prior`; their arguments have no keywords.

    Attributes:
        parts: One prior for each kind.
        slices: The coordinates of each, slices of the whole in ascending order.
    """

    parts: tuple[AnyPrior, ...]
    slices: tuple[tuple[Slice, ...], ...]

    def _cut(self, value: ArrayLike, where: tuple[Slice, ...]) -> jax.Array:
        """The coordinates ``where`` of an array (..., dim); (..., 1) and scalars are for all."""
        array = jnp.asarray(value)
        if array.ndim == 0 or array.shape[-1] == 1:
            return array
        return _concatenated([array[..., start:stop] for start, stop in where])

    def _joined(self, *pieces: jax.Array) -> jax.Array:
        """The inverse of :meth:`_cut`: one array (..., dim) of the parts' results."""
        columns = []
        for where, piece in zip(self.slices, pieces, strict=True):
            column = 0
            for start, stop in where:
                columns.append((start, piece[..., column : column + stop - start]))
                column += stop - start
        return _concatenated([piece for _, piece in sorted(columns, key=lambda pair: pair[0])])

    def _of_each(self, name: str, *arguments: ArrayLike) -> list[Any]:
        """Results of a method of the parts at their own coordinates of the arguments."""
        return [
            getattr(part, name)(*(self._cut(x, where) for x in arguments))
            for part, where in zip(self.parts, self.slices, strict=True)
        ]

    @property
    def location(self) -> jax.Array:
        """Kinks and minima, (dim,)."""
        return self._joined(*(part.location for part in self.parts))

    @property
    def separable(self) -> "CompositePrior":
        """The parts that are separable, and the separable parts of the others."""
        if all(is_separable(part) for part in self.parts):
            return self
        return CompositePrior(tuple(separable_part(part) for part in self.parts), self.slices)

    potential = _elementwise("potential")
    subgradient = _elementwise("subgradient")
    rise = _elementwise("rise")
    smoothed = _elementwise("smoothed")
    prox = _elementwise("prox")
    moreau_gradient = _elementwise("moreau_gradient")
    normal_fit = _elementwise("normal_fit")
    log_mass = _elementwise("log_mass")
    log_normalizer = _elementwise("log_normalizer")
    log_prob = _elementwise("log_prob")
    cdf = _elementwise("cdf")
    log_cdf = _elementwise("log_cdf")
    log_survival = _elementwise("log_survival")
    hamiltonian_flow = _elementwise("hamiltonian_flow")

    def scaled(self, scale: ArrayLike, /) -> "CompositePrior":
        """The same prior in the coordinates ``x / scale``, ``scale > 0``."""
        return CompositePrior(tuple(self._of_each("scaled", scale)), self.slices)

    def tempered(self, beta: ArrayLike, /) -> "CompositePrior":
        """The prior whose potential is ``beta`` >= 0 times this one."""
        return CompositePrior(tuple(self._of_each("tempered", beta)), self.slices)

    def sample(self, rng_key: jax.Array, *parameters: ArrayLike) -> jax.Array:
        """One exact draw from the kernel around each y; every part has a key of its own."""
        draws = [
            part.sample(key, *(self._cut(x, where) for x in parameters))
            for key, part, where in zip(
                jax.random.split(rng_key, len(self.parts)), self.parts, self.slices, strict=True
            )
        ]
        return self._joined(*draws)


def _concatenated(pieces: Sequence[jax.Array]) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, -1)
