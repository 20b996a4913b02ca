"""Draws by name: deterministic sites that are dictionaries, tuples or lists, or no real numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

from numpyro_rwpo import compare_runs, to_arviz
from numpyro_rwpo.diagnostics.draws import flat_sites, samples_of
from tests.helpers import light_kernel, run_mcmc


class Pair(NamedTuple):
    slope: Any
    offset: Any


def structured() -> None:
    """Deterministic sites of every structure that NumPyro takes."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.deterministic("word", {"x": b, "y": {"z": b[0]}})
    numpyro.deterministic("pair", (b, b + 1.0))
    numpyro.deterministic("rest", [b, b[0]])
    numpyro.deterministic("named", Pair(b[0], b))
    numpyro.deterministic("empty", {})
    numpyro.deterministic("plane", b[0] + 1j * b[1])
    numpyro.deterministic("sign", b[0] > 0)
    numpyro.deterministic("three", 3.0)


ARRAYS = {
    "b": (2,),
    "word.x": (2,),
    "word.y.z": (),
    "pair.0": (2,),
    "pair.1": (2,),
    "rest.0": (2,),
    "rest.1": (),
    "named.slope": (),
    "named.offset": (2,),
    "plane": (),
    "sign": (),
    "three": (),
}


@pytest.fixture(scope="module")
def run() -> MCMC:
    return run_mcmc(light_kernel(structured), num_chains=2, num_samples=20)


def test_structured_sites_in_compare(run: MCMC) -> None:
    """Each array of such a site is compared, in any kind of input, and a site names all of its."""
    data = to_arviz(run, evidence=False)
    comparison = compare_runs(run, data, run.get_samples(group_by_chain=True))
    assert comparison.agrees
    for rows in comparison.rows.values():
        assert all(row.worst_z == 0 for row in rows)
        names = {row.name for row in rows}
        assert {"b[0]", "word.x[1]", "word.y.z", "pair.1[0]", "rest.1", "named.offset[1]"} <= names
        assert {"plane.real", "plane.imag", "sign", "three"} <= names
    # A constant does not make figures of the whole run undefined.
    assert "nan" not in str(comparison)
    samples = run.get_samples(group_by_chain=True)

    def compared(*sites: str) -> list[str]:
        return [row.name for row in compare_runs(run, samples, sites=list(sites)).rows["draws"]]

    assert compared("b") == ["b[0]", "b[1]"]
    assert compared("word", "pair.0") == [
        "word.x[0]",
        "word.x[1]",
        "word.y.z",
        "pair.0[0]",
        "pair.0[1]",
    ]
    with pytest.raises(ValueError, match="'wor'"):
        compare_runs(run, data, sites=["wor"])


def test_structured_sites_in_arviz_data(run: MCMC) -> None:
    """One variable for each array, with its draws."""
    posterior = to_arviz(run, evidence=False)["posterior"]
    assert {str(name): x.shape[2:] for name, x in posterior.data_vars.items()} == ARRAYS
    samples = run.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(posterior["pair.1"], samples["pair"][1])
    np.testing.assert_array_equal(posterior["word.y.z"], samples["word"]["y"]["z"])


def test_names() -> None:
    """Names differ whatever the sites are called; nested lists of numbers are draws themselves."""
    x = np.zeros((2, 5))
    assert list(flat_sites({"a": {"x": x, "y": x}, "a.x": x})) == ["a['x']", "a.y", "a.x"]
    assert list(flat_sites((x, {"u": x}))) == ["0", "1.u"]
    assert list(flat_sites(x)) == ["x"]
    assert list(flat_sites({"a": x.tolist(), "b": list(x)})) == ["a", "b"]
    # ArviZ makes an array of objects of a dictionary; words are no numbers either.
    odd = {"a": np.array([[{}] * 5] * 2), "b": np.full((2, 5), "yes"), "c": x}
    assert list(samples_of(odd)) == ["c"]
