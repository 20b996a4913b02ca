"""Run the installed package once, away from its source: ``python smoke.py VERSION SOURCE``.

Fails if the package is not the installed one, has another version, lacks its type marker, or does
not sample.
"""

import importlib.metadata
import sys
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

import numpyro_rwpo
from numpyro_rwpo import RWPO, diagnose


def model(y: jax.Array) -> None:
    """A mean with a Laplace prior."""
    mean = numpyro.sample("mean", dist.Laplace(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)


def main(version: str, source: str) -> None:
    """Check where the package is, then sample."""
    place = Path(numpyro_rwpo.__file__).resolve()
    if place.is_relative_to(Path(source).resolve()):
        sys.exit(f"{place} is the source, not the installed package")
    found = {numpyro_rwpo.__version__, importlib.metadata.version("numpyro-rwpo")}
    if found != {version}:
        sys.exit(f"the version should be {version}; found {found}")
    if not (files("numpyro_rwpo") / "py.typed").is_file():
        sys.exit("py.typed is missing: type checkers would not see the types")
    sizes = {"num_warmup": 100, "num_samples": 200, "num_chains": 4}
    mcmc = MCMC(RWPO(model), chain_method="vectorized", **sizes)
    mcmc.run(jax.random.key(0), jnp.array([0.5, 1.5, 2.5]))
    print(diagnose(mcmc))
    draws = mcmc.get_samples()["mean"]
    if draws.shape != (800,) or not jnp.isfinite(draws).all():
        sys.exit(f"expected 800 finite draws; got shape {draws.shape}")


if __name__ == "__main__":
    main(*sys.argv[1:])
