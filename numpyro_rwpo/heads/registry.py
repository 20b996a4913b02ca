"""The attention heads by name, and functions of the user's own beside them.

A head is a function ``fit(particles, prior, prox_time)`` that returns a
:class:`~numpyro_rwpo.heads.density.ProximalDensity`. Both the function and the density's methods
run inside compiled programs, also vmapped over ensembles.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax

from numpyro_rwpo.heads.copula import fit_copula
from numpyro_rwpo.heads.density import ProximalDensity
from numpyro_rwpo.heads.joint import fit_joint
from numpyro_rwpo.heads.marginal import fit_marginal
from numpyro_rwpo.priors.protocol import AnyPrior
from numpyro_rwpo.support.names import qualified_name


class Fit(Protocol):
    """A function that fits a density to particles."""

    def __call__(
        self, particles: jax.Array, prior: AnyPrior, prox_time: jax.Array, /
    ) -> ProximalDensity:
        """Fit a density.

        Args:
            particles: (num_particles, dim).
            prior: The part of the potential with closed forms.
            prox_time: T > 0 of each coordinate, position units squared, (dim,).
        """


class Head(NamedTuple):
    """An attention head.

    Attributes:
        name: What reports and saved runs call it.
        function: What fits its density.
    """

    name: str
    function: Fit

    def fit(self, particles: jax.Array, prior: AnyPrior, prox_time: jax.Array) -> ProximalDensity:
        """Fit the density; arguments as in :class:`Fit`.

        Raises:
            TypeError: If what the function returns is no density.
        """
        density = self.function(particles, prior, prox_time)
        if not isinstance(density, ProximalDensity):
            raise TypeError(
                f"The attention head '{self.name}' must return a density with the methods "
                f"log_prob, score, heat_score and sample; got {type(density).__name__}."
            )
        return density


BUILT_IN_HEADS: Mapping[str, Head] = MappingProxyType(
    {
        "joint": Head("joint", fit_joint),
        "marginal": Head("marginal", fit_marginal),
        "copula": Head("copula", fit_copula),
    }
)


def find_head(attention: Any) -> Head:
    """The head that the user's argument ``attention`` stands for.

    Args:
        attention: The name of a built-in head, or a function as described in :class:`Fit`.

    Returns:
        The head. A function's name is its qualified one, with its module; that of a partial is the
        name of the function inside.

    Raises:
        ValueError: If ``attention`` is neither.
    """
    if isinstance(attention, str) and attention in BUILT_IN_HEADS:
        return BUILT_IN_HEADS[attention]
    if not callable(attention):
        names = ", ".join(map(repr, BUILT_IN_HEADS))
        raise ValueError(
            f"`attention` must be one of {names}, or a function fit(particles, prior, prox_time) "
            f"that returns a density; got {attention!r}."
        )
    for head in BUILT_IN_HEADS.values():
        if head.function is attention:
            return head
    return Head(qualified_name(attention), attention)
