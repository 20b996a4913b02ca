"""Whole runs compile for accelerators that are not here, and do nothing there but compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest
from helpers import lasso_regression, regression_data
from jax import export
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO

X, Y = regression_data()
PLATFORMS = ["cuda", "tpu"]


def whole_run(attention: str, corrected: bool = True) -> Callable[..., Any]:
    """Warm-up and sampling of two chains as one function of seed and data."""

    def run(seed: jax.Array, X: jax.Array, y: jax.Array) -> Any:
        kernel = RWPO(lasso_regression, num_particles=16, attention=attention, corrected=corrected)
        mcmc = MCMC(kernel, num_warmup=40, num_samples=32, num_chains=2, chain_method="vectorized")
        mcmc.progress_bar = False
        mcmc.run(jax.random.key(seed), X, y=y, extra_fields=("potential_energy", "num_steps"))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

    return run


def primitives(jaxpr: Any) -> set[str]:
    """Names of all primitives, those in loops and branches included."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


@pytest.mark.parametrize(
    ("attention", "corrected"),
    [
        ("copula", True),
        pytest.param("marginal", True, marks=pytest.mark.slow),
        pytest.param("joint", False, marks=pytest.mark.slow),
    ],
)
def test_whole_run_exports_for_cuda_and_tpu(attention: str, corrected: bool) -> None:
    run = jax.jit(whole_run(attention, corrected))
    exported = export.export(run, platforms=PLATFORMS)(0, X, Y)
    assert exported.platforms == ("cuda", "tpu")
    # Without the names of the files from which the operations come.
    lines = exported.mlir_module().splitlines()
    module = "\n".join(line for line in lines if not line.startswith("#loc"))
    assert "f64" not in module
    assert "callback" not in module


def test_no_callback_in_the_loops() -> None:
    jaxpr = jax.make_jaxpr(whole_run("copula"))(0, X, Y)
    names = primitives(jaxpr.jaxpr)
    assert "while" in names
    assert not {name for name in names if "callback" in name or "infeed" in name}


def test_no_double_precision_unless_enabled(x64: None) -> None:
    """The check above would see it: with double precision enabled, it is there."""
    exported = export.export(jax.jit(whole_run("joint", False)), platforms=PLATFORMS)(
        0, X.astype(float), Y.astype(float)
    )
    assert "f64" in exported.mlir_module()
