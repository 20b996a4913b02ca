"""The benchmark of everyday models: its references, its comparison with them, and its cells."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import reparam
from numpyro.infer.util import initialize_model, log_density, unconstrain_fn

from benchmarks import everyday
from benchmarks.cell import replace_nan
from benchmarks.everyday_tables import is_right, page, summarize
from benchmarks.posteriors.everyday import MODELS
from benchmarks.posteriors.everyday.reference import (
    FOLDER,
    MAX_SCALARS,
    Reference,
    compare,
    load,
    scalar_draws,
)
from benchmarks.posteriors.everyday.reference import (
    summarize as make_summary,
)
from numpyro_rwpo.diagnostics.findings import max_z

EXACT = ("funnel_centered", "funnel_noncentered", "banana_thin", "bananas_thin", "change_point")
EXACT += ("dual_moon",)


def cauchy_draws(seed: int, num_draws: int = 2000) -> dict[str, np.ndarray]:
    """Four chains of ten Cauchy and one normal coordinate."""
    rng = np.random.default_rng(seed)
    heavy = rng.standard_cauchy((4, num_draws, 10))
    return {"heavy": heavy, "light": 3.0 + 0.1 * rng.normal(size=(4, num_draws))}


@pytest.fixture(scope="module")
def cauchy() -> Reference:
    return make_summary(cauchy_draws(0, 20_000), {})


def test_draws_of_the_same_heavy_tails_are_right(cauchy: Reference) -> None:
    accuracy = compare(scalar_draws(cauchy_draws(1), cauchy.indices), cauchy)
    assert accuracy.max_score < accuracy.limit == max_z(22)
    assert accuracy.mean_error < 0.06  # 8,000 draws: one standard error is 0.011
    assert 0.95 < accuracy.min_sd_ratio < accuracy.max_sd_ratio < 1.05


@pytest.mark.parametrize("site", ["heavy", "light"])
@pytest.mark.parametrize("change", [lambda x: x + 0.15 * x.std(), lambda x: np.median(x) + 1.2 * x])
def test_shifted_or_widened_draws_are_wrong(cauchy: Reference, site: str, change: Any) -> None:
    draws = cauchy_draws(1)
    # A Cauchy has no standard deviation; its quartiles are at +- 1.
    draws[site] = change(np.clip(draws[site], -3.0, 3.1) if site == "heavy" else draws[site])
    accuracy = compare(scalar_draws(draws, cauchy.indices), cauchy)
    assert accuracy.max_score > 1.5 * accuracy.limit
    assert accuracy.max_score_of.startswith(site)


def test_scalars_that_do_not_vary_are_left_out_and_the_others_spread() -> None:
    rng = np.random.default_rng(0)
    draws = {"many": rng.normal(size=(4, 50, 30, 20)), "one": rng.normal(size=(4, 50))}
    draws["many"][:, :, 0] = 1.0
    reference = make_summary(draws, {})
    assert len(reference.names) <= MAX_SCALARS
    kept = reference.indices["many"]
    assert (kept[0], kept[-1]) == (20, 599)
    assert reference.indices["one"] == [0]


def test_every_reference_can_be_relied_on() -> None:
    stored = {path.stem for path in FOLDER.glob("*.json")}
    assert stored and stored <= set(MODELS)
    for name in stored:
        reference = load(name)
        assert reference is not None
        assert 0 < len(reference.names) <= MAX_SCALARS
        for values in reference.columns.values():
            assert values.shape == (len(reference.names),)
            assert np.isfinite(values).all()
        assert reference.about["max_r_hat"] < 1.01
        assert reference.about["min_bulk_ess"] > 1000


@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_satisfy_steins_identity(name: str) -> None:
    """E[x dV/dx] = 1 for every coordinate in which the density is smooth."""
    model = MODELS[name]()
    assert model.exact is not None
    draws = model.exact(np.random.default_rng(0), 20_000)
    arguments = (model.args, model.kwargs)
    info = initialize_model(
        jax.random.key(0), model.model, model_args=model.args, model_kwargs=model.kwargs
    )

    def products(values: Any) -> Any:
        z = unconstrain_fn(model.model, *arguments, values)
        return jax.tree.map(jnp.multiply, z, jax.grad(info.potential_fn)(z))

    latent = {site: jnp.asarray(draws[site], jnp.float32) for site in info.param_info.z}
    for site, values in jax.jit(jax.vmap(products))(latent).items():
        if (name, site) == ("change_point", "tau"):
            continue  # the density jumps
        values = np.asarray(values, np.float64)
        score = (values.mean(0) - 1) / (values.std(0) / np.sqrt(len(values)))
        assert np.abs(score).max() < max_z(np.size(score))


def test_walk_by_its_steps_has_the_same_density() -> None:
    model, (returns,), *_ = everyday_model = MODELS["stochastic_volatility"]()
    reparametrized = reparam(model, config=everyday_model.reparam)
    z = jnp.asarray(np.random.default_rng(0).normal(size=len(returns)), jnp.float32)

    def both(sigma: float) -> tuple[float, float]:
        others = {"sigma": sigma, "nu": 5.0}
        steps, _ = log_density(reparametrized, (returns,), {}, {**others, "s_decentered": z})
        walk, _ = log_density(model, (returns,), {}, {**others, "s": sigma * jnp.cumsum(z)})
        return float(steps), float(walk) + len(returns) * np.log(sigma)  # the Jacobian

    for sigma in (0.03, 0.07):
        np.testing.assert_allclose(*both(sigma), rtol=1e-4)


@pytest.fixture(scope="module")
def nuts_record() -> dict[str, Any]:
    return everyday.measure("banana_thin", "nuts", 0, num_warmup=24, num_samples=64)


@pytest.mark.parametrize("sampler", [pytest.param("rwpo", marks=pytest.mark.slow), "nuts"])
def test_a_cell_measures_two_runs(sampler: str, nuts_record: dict[str, Any]) -> None:
    record = nuts_record
    if sampler == "rwpo":
        record = everyday.measure("banana_thin", "rwpo", 0, num_warmup=24, num_samples=64)
    json.dumps(replace_nan(record), allow_nan=False)
    assert record["status"] == "complete"
    assert 0 < record["gradients_warmup"] <= record["gradients_before"] <= record["gradients"]
    assert record["first_seconds"] > record["first_compile_seconds"] > 0
    assert record["again_seconds"] > 0
    assert not is_right(record)  # too few draws for that
    assert f"| banana_thin | {sampler} | 0/1 |" in page([record])


def test_gradients_of_warmup_and_sampling_add_up(nuts_record: dict[str, Any]) -> None:
    """A run without draws to speak of spends what its warm-up spends, and little more."""
    shorter = everyday.measure("banana_thin", "nuts", 0, num_warmup=24, num_samples=4)
    assert shorter["gradients_warmup"] == nuts_record["gradients_warmup"]
    assert shorter["gradients"] < nuts_record["gradients"]


def test_cells_that_failed_are_named_in_the_table() -> None:
    failed = {"model": "banana_thin", "sampler": "rwpo", "seed": 0, "status": "ended"}
    summary = summarize([{**failed, "reason": "still running after 1200 s"}])
    assert summary.right == "still running after 1200 s"
    text = page([{**failed, "reason": "still running after 1200 s"}])
    assert "| banana_thin | rwpo | still running after 1200 s |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nonsense"], "invalid choice: 'nonsense'"),
        (["--samplers", "hmc"], "invalid choice: 'hmc'"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_command_line_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        everyday.parse(arguments)
    assert message in capsys.readouterr().err
