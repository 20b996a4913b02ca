"""The benchmark of the sampler's parts: what it replaces exists, and how runs are judged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ablation
from benchmarks.ablation import NAMES, PARTS, WHOLE, is_wrong, page, parse, price


def record(part: str = WHOLE, **changes: Any) -> dict[str, Any]:
    values = {"problem": NAMES[0], "part": part, "seed": 0, "status": "complete"}
    values |= {"gradients": 20_000, "kernels": 1000, "ess": 2000.0, "r_hat": 1.003}
    return values | {"mean_error": 0.03} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"r_hat": 1.03},
        {"r_hat": float("nan")},
        {"mean_error": 0.2},  # 5 / sqrt(2000) is 0.11
        {"mean_error": float("nan")},
        {"status": "failed"},
    ],
)
def test_wrong_runs(changes: dict[str, Any]) -> None:
    assert not is_wrong(record())
    assert is_wrong(record(**changes))


def test_tables_compare_with_the_whole_sampler() -> None:
    """A part that saves half of the gradients, one that costs some, and one that a result needs."""
    assert price(record()) == 10
    records = [
        record(),
        record("descents", gradients=40_000, kernels=800),
        record("transport", gradients=10_000, kernels=700),
        record("NUTS transitions", r_hat=1.5),
    ]
    text = page(records)
    assert "| diabetes lasso | 10.0 | 2.00 | 0.50 | 1.00 wrong |" in text
    assert "| descents | 200 | 1 | 0 | 0 |" in text
    assert "| transport | 300 | 0 | 1 | 0 |" in text
    assert "| NUTS transitions | 0 | 0 | 0 | 1 |" in text


def test_fused_operations_are_one_kernel() -> None:
    x, weights = jnp.ones((4, 4)), jnp.eye(4)
    before = ablation.num_kernels()
    program = jax.jit(
        lambda x: jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x) + jnp.cos(x) @ weights, x)
    )
    compiled = program.lower(x).compile()
    # The product and what is before and after it, the count of the loop, and its condition.
    assert 4 <= ablation.num_kernels() - before <= 6
    del compiled


def test_a_part_that_is_gone_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"placement has no TRANSPORT to take out"):
        ablation._set(ablation.placement, "TRANSPORT", 0)
    with pytest.raises(SystemExit):
        parse(["--parts", "attention heads"])
    assert parse([]).parts == list(PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_sampler_runs_without_each_part(part: str) -> None:
    found = ablation.run_cell("diabetes_lasso", part, 0)
    assert found["status"] == "complete", found
    assert not is_wrong(found)
