"""The arguments of ``RWPO``, as the kernel keeps them and as saved runs compare them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpyro.distributions as dist

from numpyro_rwpo.heads.registry import Head
from numpyro_rwpo.model.prior_registry import PriorRegistry, entry_names
from numpyro_rwpo.model.proposal import check_proposal, fingerprint
from numpyro_rwpo.model.target import Differentiation
from numpyro_rwpo.support.checks import (
    check_choice,
    check_init_strategy,
    check_num_particles,
    check_range,
    check_site_names,
    check_target,
)
from numpyro_rwpo.support.sharding import Placement


class Arguments(NamedTuple):
    """The arguments of :class:`numpyro_rwpo.RWPO`, which explains them.

    Attributes:
        model: NumPyro model, ``None`` with a potential function.
        potential_fn: potential function, ``None`` with a model.
        num_particles: particles of an ensemble, ``None`` for the default number.
        attention: the attention head that the user's name or function stands for.
        relative_prox_time: bandwidth of the attention.
        corrected: whether exact moves follow transport.
        laplace_sites: which Laplace sites are split off.
        priors: the built-in kinds of distributions with closed forms and the user's.
        dense_mass: whether the metric is dense.
        target_accept_prob: acceptance probability at which the step size aims.
        init_strategy: NumPyro's initialization strategy.
        proposal: the user's distribution near the posterior, ``None`` without one.
        differentiation: temperature, and the mode of differentiation.
        placement: devices that share the particles.
    """

    model: Callable[..., Any] | None
    potential_fn: Callable[[Any], jax.Array] | None
    num_particles: int | None
    attention: Head
    relative_prox_time: float
    corrected: bool
    laplace_sites: Any
    priors: PriorRegistry
    dense_mass: bool | str
    target_accept_prob: float
    init_strategy: Callable[..., Any]
    proposal: dist.Distribution | None
    differentiation: Differentiation
    placement: Placement

    def record(self) -> dict[str, Any]:
        """The arguments that decide how a run continues, as plain values for JSON."""
        sites = self.laplace_sites
        if self.model is None:
            sites = str(sites)  # a pytree of distributions
        elif not (sites is None or isinstance(sites, str)):
            sites = sorted(sites)
        return {
            "num_particles": None if self.num_particles is None else int(self.num_particles),
            "attention": self.attention.name,
            "relative_prox_time": float(self.relative_prox_time),
            "inverse_temperature": self.differentiation.inverse_temperature,
            "corrected": self.corrected,
            "laplace_sites": sites,
            "priors": entry_names(self.priors),
            "dense_mass": self.dense_mass,
            "target_accept_prob": float(self.target_accept_prob),
            "proposal": fingerprint(self.proposal),
            "forward_mode_differentiation": self.differentiation.forward_mode,
        }


def checked_arguments(arguments: Arguments) -> Arguments:
    """The arguments, with the inverse temperature as a Python number, if all are in range.

    Raises:
        ValueError: both or neither of ``model`` and ``potential_fn`` are given, or an argument is
            out of range.
        TypeError: an argument is of the wrong type.
    """
    check_target(arguments.model, arguments.potential_fn)
    if arguments.model is not None:
        check_site_names(arguments.laplace_sites)
    check_num_particles(arguments.num_particles)
    check_choice("corrected", arguments.corrected, (True, False))
    check_choice("dense_mass", arguments.dense_mass, (True, False, "auto"))
    check_init_strategy(arguments.init_strategy)
    check_proposal(arguments.proposal)
    temperature, forward_mode = arguments.differentiation
    check_choice("forward_mode_differentiation", forward_mode, (True, False))
    check_range("relative_prox_time", arguments.relative_prox_time, 0.0, math.inf)
    check_range("inverse_temperature", temperature, 0.0, math.inf)
    check_range("target_accept_prob", arguments.target_accept_prob, 0.0, 1.0)
    return arguments._replace(differentiation=Differentiation(float(temperature), forward_mode))


def check_init_params(arguments: Arguments, init_params: Any) -> None:
    """Raise ``ValueError`` where a start is given that draws of the proposal would replace."""
    has_draws = arguments.proposal is not None and arguments.model is not None
    if has_draws and init_params is not None:
        raise ValueError(
            "Particles start as draws of `proposal`, so that `init_params` would have no "
            "effect; got both. Leave one out."
        )
