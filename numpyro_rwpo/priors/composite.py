"""Several kinds of prior side by side, each on its own coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_rwpo.priors.protocol import Prior

# First coordinate, and the one after the last.
Slice = tuple[int, int]


def compose_prior(parts: Sequence[tuple[Prior, Sequence[Slice]]]) -> Prior:
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


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["slices"])
@dataclass(frozen=True)
class CompositePrior:
    """Priors of several kinds; what it does to a coordinate is what that coordinate's prior does.

    Build with :func:`compose_prior`. Methods are those of
    :class:`~numpyro_rwpo.priors.protocol.Prior`.

    Attributes:
        parts: One prior for each kind.
        slices: The coordinates of each, slices of the whole in ascending order.
    """

    parts: tuple[Prior, ...]
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

    def _apply(self, name: str, *arguments: ArrayLike) -> Any:
        return jax.tree.map(self._joined, *self._of_each(name, *arguments))

    def _changed(self, name: str, argument: ArrayLike) -> "CompositePrior":
        return CompositePrior(tuple(self._of_each(name, argument)), self.slices)

    @property
    def location(self) -> jax.Array:
        """Kinks and minima, (dim,)."""
        return self._joined(*(part.location for part in self.parts))

    def potential(self, x: ArrayLike, /) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("potential", x)
        return result

    def subgradient(self, x: ArrayLike, /) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("subgradient", x)
        return result

    def rise(self, start: ArrayLike, step: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: tuple[jax.Array, jax.Array] = self._apply("rise", start, step)
        return result

    def smoothed(self, x: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: tuple[jax.Array, jax.Array] = self._apply("smoothed", x)
        return result

    def prox(self, x: ArrayLike, step_size: ArrayLike, /) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("prox", x, step_size)
        return result

    def moreau_gradient(self, x: ArrayLike, step_size: ArrayLike, /) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("moreau_gradient", x, step_size)
        return result

    def normal_fit(self, mean: ArrayLike, scale: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: tuple[jax.Array, jax.Array] = self._apply("normal_fit", mean, scale)
        return result

    def scaled(self, scale: ArrayLike, /) -> "CompositePrior":
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        return self._changed("scaled", scale)

    def tempered(self, inverse_temperature: ArrayLike, /) -> "CompositePrior":
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        return self._changed("tempered", inverse_temperature)

    def log_mass(self) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("log_mass")
        return result

    def log_normalizer(
        self, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike = 1.0, /
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("log_normalizer", y, prox_time, inverse_temperature)
        return result

    def log_prob(
        self,
        x: ArrayLike,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        /,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("log_prob", x, y, prox_time, inverse_temperature)
        return result

    def cdf(
        self,
        x: ArrayLike,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        /,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("cdf", x, y, prox_time, inverse_temperature)
        return result

    def log_cdf(
        self,
        x: ArrayLike,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        /,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("log_cdf", x, y, prox_time, inverse_temperature)
        return result

    def log_survival(
        self,
        x: ArrayLike,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        /,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: jax.Array = self._apply("log_survival", x, y, prox_time, inverse_temperature)
        return result

    def sample(
        self,
        rng_key: jax.Array,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        /,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`; every part has a key of its own."""
        draws = [
            part.sample(key, *(self._cut(x, where) for x in (y, prox_time, inverse_temperature)))
            for key, part, where in zip(
                jax.random.split(rng_key, len(self.parts)), self.parts, self.slices, strict=True
            )
        ]
        return self._joined(*draws)

    def hamiltonian_flow(
        self, x: ArrayLike, p: ArrayLike, time: ArrayLike, /
    ) -> tuple[jax.Array, jax.Array]:
        """See :class:`~numpyro_rwpo.priors.protocol.Prior`."""
        result: tuple[jax.Array, jax.Array] = self._apply("hamiltonian_flow", x, p, time)
        return result


def _concatenated(pieces: Sequence[jax.Array]) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, -1)
