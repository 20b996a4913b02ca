"""What an everyday model is, and the table in which the modules beside this one enter theirs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam, Reparam

Draws = dict[str, np.ndarray]


class Everyday(NamedTuple):
    """A NumPyro model with its data.

    Attributes:
        model: NumPyro model with continuous latent sites.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        sites: Sites whose posterior is compared with the reference; ``None`` compares all latent
            and deterministic sites. Named where some have no identifiable posterior, such as the
            weights of a neural network, whose hidden units can be exchanged.
        exact: Independent draws from the posterior, where it can be sampled exactly: a function of
            a generator and a number that returns arrays of shape (number, ...) by site.
        reparam: NumPyro reparametrizations by site, with which NUTS makes the reference.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    sites: tuple[str, ...] | None = None
    exact: Callable[[np.random.Generator, int], Draws] | None = None
    reparam: dict[str, Reparam] = {}


MODELS: dict[str, Callable[[], Everyday]] = {}


def everyday(make: Callable[[], Everyday]) -> Callable[[], Everyday]:
    """Enter a function that makes an everyday model under its own name."""
    MODELS[make.__name__] = make
    return make


def noncentered(*sites: str) -> dict[str, Reparam]:
    """Reparametrizations that sample sites with a location and a scale non-centered."""
    return {site: LocScaleReparam(centered=0.0) for site in sites}


class IndependentSteps(Reparam):
    """Samples a Gaussian random walk by its standardized steps."""

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        """The walk as a function of its steps."""
        assert obs is None
        steps = dist.Normal(0.0, 1.0).expand(fn.event_shape).to_event(1)
        z = numpyro.sample(f"{name}_decentered", steps)
        return None, fn.scale * z.cumsum()


def single(x: Any) -> np.ndarray:
    """An array in single precision, the default of NumPyro's users."""
    return np.asarray(x, np.float32)
