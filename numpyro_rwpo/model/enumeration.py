"""Discrete latent sites that are summed out, as NumPyro does it for NUTS.

A site with ``infer={"enumerate": "parallel"}`` takes all its values at once, along a dimension of
its own to the left of all plates, and funsor sums the joint density over these dimensions. The
sampler moves the continuous sites of the resulting marginal density. funsor is an optional
dependency.
"""

from typing import Any

import jax
from numpyro.infer.util import potential_energy

from numpyro_rwpo.model.tracing import Model, is_discrete


def discrete_fault(name: str, site: dict[str, Any]) -> str | None:
    """Why a discrete latent site cannot be summed out; ``None`` if it can."""
    kind = type(site["fn"]).__name__
    strategy = site["infer"].get("enumerate")
    if strategy is None:
        return (
            f"Latent site '{name}' is discrete ({kind}); RWPO moves particles by gradients and "
            "needs continuous latent sites. Marginalize the site in the model, have it summed out "
            "(`infer={'enumerate': 'parallel'}`, which needs funsor), or use DiscreteHMCGibbs or "
            "MixedHMC for it."
        )
    if strategy != "parallel":
        return (
            f"Latent site '{name}' is to be enumerated as '{strategy}'; RWPO, like NUTS, sums out "
            "discrete sites in parallel only. Use `infer={'enumerate': 'parallel'}`."
        )
    if not site["fn"].has_enumerate_support:
        return (
            f"Latent site '{name}' cannot be summed out: the values of a {kind} distribution "
            "cannot be listed. Use a distribution of finite support, such as Categorical, or "
            "marginalize the site in the model."
        )
    return None


def check_funsor(name: str) -> None:
    """Raise ``ImportError`` if funsor is not installed, naming the site that needs it."""
    try:
        import numpyro.contrib.funsor  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Latent site '{name}' is to be summed out, which needs the package funsor: run "
            "`pip install funsor`, or marginalize the site in the model."
        ) from error


def enumeration_dim(trace: dict[str, Any]) -> int | None:
    """The first dimension to the left of all plates; ``None`` if there are no discrete sites."""
    if not any(is_discrete(site) for site in trace.values()):
        return None
    frames = [
        frame.dim
        for site in trace.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.dim is not None
    ]
    return min(frames, default=0) - 1


def enumerated(model: Model, dim: int | None) -> Model:
    """The model, with discrete sites that take all their values at once.

    Args:
        model: NumPyro model.
        dim: the result of :func:`enumeration_dim` for its trace.
    """
    if dim is None:
        return model
    from numpyro.contrib.funsor import config_enumerate, enum

    return enum(config_enumerate(model), dim)


def marginal_potential(
    model: Model,
    values: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dim: int | None,
) -> jax.Array:
    """Minus the log density of unconstrained values, with discrete sites summed out, scalar."""
    model = enumerated(model, dim)
    energy: jax.Array = potential_energy(model, args, kwargs, values, enum=dim is not None)
    return energy
