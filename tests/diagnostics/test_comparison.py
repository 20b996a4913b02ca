"""``compare_runs``: agreement within Monte Carlo error, differences, and every kind of input."""

from __future__ import annotations

import json
import re
from typing import Any

import arviz as az
import numpy as np
import pytest

from numpyro_rwpo import compare_runs, to_arviz


def draws(seed: int, shift: float = 0.0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": shift + scale * rng.normal(size=(4, 500)),
        "b": rng.normal(size=(4, 500, 2, 2)) * 5 + 1,
    }


def test_two_samples_of_one_distribution_agree() -> None:
    comparison = compare_runs(draws(0), draws(1), labels=["one", "two"])
    assert comparison.agrees
    assert "one and two agree" in comparison.verdict
    rows = comparison.rows["two"]
    assert [row.name for row in rows] == ["a", "b[0, 0]", "b[0, 1]", "b[1, 0]", "b[1, 1]"]


def test_z_scores_are_standard_normal_when_samplers_agree() -> None:
    """120 comparisons of independent draws: standard deviation 1 +- 1/sqrt(2 * 120 * number)."""
    rng = np.random.default_rng(0)
    rows = compare_runs(
        {"x": rng.normal(size=(2, 500, 120))}, {"x": rng.normal(size=(2, 500, 120))}
    ).rows["draws 2"]
    for scores in (
        [r.mean_z for r in rows],
        [r.sd_z for r in rows],
        [r.quantile_z[0] for r in rows],
        [r.quantile_z[1] for r in rows],
    ):
        # Quantiles' errors are estimated, from order statistics: hence 5 standard errors.
        assert abs(np.std(scores) - 1) < 5 / np.sqrt(2 * 120)
        assert abs(np.mean(scores)) < 5 / np.sqrt(120)


@pytest.mark.parametrize(
    ("shift", "scale", "expected"),
    [(0.5, 1.0, "mean_z"), (0.0, 0.7, "sd_z"), (0.0, 0.7, "quantile_z")],
)
def test_differences_are_found_and_named(shift: float, scale: float, expected: str) -> None:
    comparison = compare_runs(draws(0), draws(1, shift, scale))
    assert not comparison.agrees
    row = comparison.rows["draws 2"][0]
    assert np.max(np.abs(getattr(row, expected))) > comparison.max_z
    assert "differ in 1 of 5 coordinates" in comparison.verdict
    assert "at least one of them is wrong" in comparison.verdict
    assert str(comparison).index("draws 1 | draws 2") > 0


def test_figures_of_a_row() -> None:
    first, second = draws(0), draws(1, 0.3, 1.5)
    row = compare_runs(first, second).rows["draws 2"][0]
    a, b = first["a"], second["a"]
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    np.testing.assert_allclose(row.mean_difference, (a.mean() - b.mean()) / pooled)
    np.testing.assert_allclose(row.sd_ratio, a.std(ddof=1) / b.std(ddof=1))
    np.testing.assert_allclose(row.quantiles_b, np.quantile(b, [0.05, 0.95]))
    error = np.sqrt(a.var() / a.size + b.var() / b.size)  # independent draws
    np.testing.assert_allclose(row.mean_z, (a.mean() - b.mean()) / error, rtol=0.15)


def test_draws_that_are_not_numbers_do_not_agree() -> None:
    broken = draws(1)
    broken["a"][0, 3] = np.nan
    assert not compare_runs(draws(0), broken).agrees


def test_constants_agree_with_themselves_and_leave_the_other_figures_alone() -> None:
    """Deterministic sites may be constant: 0.1 has means that differ by rounding."""

    def with_constant(seed: int, chains: int, value: float) -> dict[str, np.ndarray]:
        size = (chains, 300)
        return {"c": np.full(size, value), "x": np.random.default_rng(seed).normal(size=size)}

    comparison = compare_runs(with_constant(0, 4, 0.1), with_constant(1, 3, 0.1))
    assert comparison.agrees
    assert "nan" not in str(comparison)
    assert not compare_runs(with_constant(0, 4, 0.1), with_constant(1, 3, 0.2)).agrees


def test_every_kind_of_run(lasso_run: Any) -> None:
    mcmc = lasso_run.mcmc
    data = to_arviz(mcmc, evidence=False)
    comparison = compare_runs(
        mcmc, data, mcmc.get_samples(group_by_chain=True), seconds=[2.0, None, None]
    )
    assert comparison.agrees
    assert list(comparison.rows) == ["draws 2", "draws 3"]
    rows = comparison.rows["draws 2"]
    assert all(row.worst_z == 0 for row in rows)
    assert {"intercept", "noise", "weights[0]"} <= {row.name for row in rows}
    costs = comparison.to_dict()["costs"]["RWPO"]
    assert costs["num_gradients"] == int(mcmc.last_state.num_gradients.sum())
    assert costs["ess_per_second"] == costs["min_ess"] / 2.0
    json.dumps(comparison.to_dict())
    text = str(comparison)
    assert "smallest ESS per gradient" in text
    assert re.search(r"seconds +2\.0 +unknown +unknown", text)
    assert "<table>" in comparison._repr_html_()


def test_sites_can_be_chosen_and_chains_may_differ_in_number() -> None:
    second = {k: v[:2, :100] for k, v in draws(1).items()}
    comparison = compare_runs(draws(0), {**second, "other": second["a"]}, sites=["a"])
    assert [row.name for row in comparison.rows["draws 2"]] == ["a"]
    assert az.convert_to_dataset({"x": draws(0)["a"]}) is not None


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((draws(0),), {}, ValueError, "at least two runs; got 1"),
        ((draws(0), 3), {}, TypeError, "got int"),
        ((draws(0), {"c": np.zeros((2, 50))}), {}, ValueError, "in common"),
        ((draws(0), draws(1)), {"sites": ["z"]}, ValueError, "'z'"),
        ((draws(0), draws(1)), {"labels": ["one"]}, ValueError, "one entry per run, 2; got 1"),
        ((draws(0), draws(1)), {"labels": ["one", "one"]}, ValueError, "must differ"),
        ((draws(0), draws(1)), {"seconds": [1.0]}, ValueError, "`seconds`"),
        ((draws(0), {"a": np.zeros(50)}), {}, ValueError, "Group draws by chain"),
    ],
)
def test_bad_input(arguments: Any, options: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        compare_runs(*arguments, **options)
