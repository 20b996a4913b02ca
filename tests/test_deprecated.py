"""Names of the last version: they still work, and say what they are called now."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import lasso_regression, shrunken_means
from numpyro.infer import MCMC

import numpyro_rwpo
from numpyro_rwpo import RWPO, load_state, save_state
from numpyro_rwpo.support.archive import read_archive, write_archive


@pytest.mark.parametrize(
    ("old", "new"), [("compare", "compare_runs"), ("load", "load_state"), ("save", "save_state")]
)
def test_old_names_work_and_warn(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"renamed to `numpyro_rwpo.{new}`") as caught:
        function = getattr(numpyro_rwpo, old)
    assert function is getattr(numpyro_rwpo, new)
    assert caught[0].filename == __file__
    assert old not in numpyro_rwpo.__all__


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({"nonsmooth": None}, {"laplace_sites": None}, "`nonsmooth` has been renamed to `laplace"),
        (
            {"nonsmooth": ["b"]},
            {"laplace_sites": ["b"]},
            "`nonsmooth` has been renamed to `laplace",
        ),
        ({"correction": None}, {"corrected": False}, "`correction=None` is written `corrected=Fal"),
        ({"correction": "metropolis"}, {"corrected": True}, "`correction='metropolis'` is written"),
    ],
)
def test_old_arguments_work_and_warn(
    old: dict[str, Any], new: dict[str, Any], message: str
) -> None:
    with pytest.warns(DeprecationWarning, match=message) as caught:
        kernel = RWPO(lasso_regression, **old)
    assert kernel._arguments == RWPO(lasso_regression, **new)._arguments
    assert [warning.filename for warning in caught] == [__file__]
    assert not set(old) & set(inspect.signature(RWPO).parameters)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"correction": "mala"}, ValueError, "`correction` must be .*'metropolis', None.*'mala'"),
        ({"correction": True}, ValueError, "`correction` must be .*'metropolis', None.*True"),
        ({"correction": None, "corrected": True}, TypeError, "got both. Leave `correction` out"),
        ({"nonsmooth": 1.0}, (TypeError, ValueError), "`laplace_sites` must be .*1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_values_of_old_arguments(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        RWPO(lasso_regression, **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nonsmooth", ["b"], "renamed to `RWPO.laplace_sites`"),
        ("settings", None, "see `diagnose"),
    ],
)
def test_old_attributes_work_and_warn(name: str, value: Any, message: str) -> None:
    kernel = RWPO(lasso_regression, laplace_sites=["b"])
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert getattr(kernel, name) == value
    assert caught[0].filename == __file__


def test_arguments_are_private() -> None:
    with pytest.warns(DeprecationWarning, match="keep the arguments that you pass"):
        arguments = RWPO(lasso_regression).arguments
    assert arguments["corrected"] is True
    assert arguments["laplace_sites"] == "auto"


def test_old_names_of_flows() -> None:
    flow = pytest.importorskip("numpyro_rwpo.flow")
    with pytest.warns(DeprecationWarning, match="`numpyro_rwpo.flow.Regularized`"):
        assert flow.Regularised is flow.Regularized
    with pytest.warns(DeprecationWarning, match="`centre` has been renamed to `center`"):
        moved = flow.SparseTransformerFlow(2, centre=1.0, rng_key=jax.random.key(0))
    assert moved._center.tolist() == [1.0, 1.0]


def test_states_of_the_last_version_are_refused_with_one_error(tmp_path: Path) -> None:
    """They have fields of that version, and arguments under their old names."""
    mcmc = MCMC(
        RWPO(shrunken_means, num_particles=8, attention="marginal", dense_mass=False),
        num_warmup=4,
        num_samples=8,
        progress_bar=False,
    )
    mcmc.warmup(jax.random.key(0), np.zeros(3, np.float32), np.float32(0.5))
    save_state(mcmc, tmp_path / "new.npz")
    header, arrays = read_archive(tmp_path / "new.npz")
    assert header["arguments"].pop("corrected") is True
    header["arguments"]["correction"] = "metropolis"
    arrays["centring"] = arrays.pop("centering")
    write_archive(tmp_path / "old.npz", header, arrays)
    with pytest.raises(ValueError, match="field 'centering' is missing.*start a new run"):
        load_state(tmp_path / "old.npz", mcmc)
    load_state(tmp_path / "new.npz", mcmc)


def test_importing_an_old_name_points_at_the_import(tmp_path: Path) -> None:
    """With Python's own filters, which show it only where the user's script is the cause."""
    script = tmp_path / "script.py"
    script.write_text("from numpyro_rwpo import compare\nprint(compare.__name__)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "compare_runs\n"
    assert f"{script}:1: DeprecationWarning" in done.stderr


def test_names_that_never_were() -> None:
    with pytest.raises(AttributeError, match="no attribute 'contrast'"):
        _ = numpyro_rwpo.contrast
