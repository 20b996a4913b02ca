"""Model arguments of any class: sampled as with NUTS, and described in errors without failing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.sparse
from helpers import light_kernel
from jax.experimental import sparse

from numpyro_rwpo.model.checks import check_model, describe_arguments

X = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, -1.0], [4.0, 0.0, 0.0]], np.float32)
Y = np.array([0.3, 1.2, -0.5, 2.0], np.float32)
WORDS = ["b", "a", "c", "a"]


class Odd:
    """An object whose attributes look like those of an array and are not."""

    shape = "wide"
    dtype = 7


class Broken:
    """An object that raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __repr__(self) -> str:
        raise ZeroDivisionError

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError


class Wordless(Odd):
    """An object whose `repr` is no text."""

    shape = None

    def __repr__(self) -> Any:
        return 3


class Huge:
    """An array of the user's that cannot be turned into NumPy's."""

    shape = (10**9,)
    dtype = np.dtype("f4")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise MemoryError


def of_rows(X: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


def of_scipy(X: Any, y: Any) -> None:
    of_rows(X.toarray(), y)


def of_codes(X: Any, y: Any) -> None:
    of_rows(jax.nn.one_hot(pd.Categorical(X).codes, 3), y)


def of_numbers(X: Any, y: Any) -> None:
    of_rows(jnp.outer(X.to_numpy(np.float32, na_value=0.0), np.ones(3)), y)


def of_nothing(X: Any, y: Any) -> None:
    of_rows(jnp.ones((4, 3)), y)


ARGUMENTS: list[tuple[Callable[..., None], Any, str]] = [
    (of_rows, sparse.BCOO.fromdense(X), "BCOO of float32, shape (4, 3)"),
    (of_rows, sparse.BCSR.fromdense(X), "BCSR of float32, shape (4, 3)"),
    (of_scipy, scipy.sparse.csr_matrix(X), "csr_matrix of float32, shape (4, 3)"),
    (of_scipy, scipy.sparse.coo_array(X), "coo_array of float32, shape (4, 3)"),
    (of_codes, pd.Series(WORDS, dtype="string"), "Series of string, shape (4,)"),
    (of_codes, pd.Series(WORDS, dtype="category"), "Series of category, shape (4,)"),
    (of_codes, pd.Index(WORDS, dtype="string"), "Index of string, shape (4,)"),
    (of_numbers, pd.Series([1.0, None, 2.0, 3.0], dtype="Float64"), "Series of Float64, shape"),
    (of_nothing, Odd(), "Odd object at"),
    (of_nothing, Broken(), "an object of class Broken"),
    (of_nothing, Wordless(), "an object of class Wordless"),
    (of_nothing, Huge(), "Huge of float32, shape (1000000000,)"),
]


@pytest.mark.parametrize(
    ("model", "value", "words"), ARGUMENTS, ids=[words for _, _, words in ARGUMENTS]
)
def test_arguments_of_any_class(model: Callable[..., None], value: Any, words: str) -> None:
    """The model is prepared as it is, and its own errors come with a description of them."""
    kernel = light_kernel(model, num_particles=8, corrected=False)
    state = kernel.init(jax.random.key(0), 8, None, (value, Y), {})
    assert state.z["beta"].shape == (3,)

    def fails(X: Any, y: Any) -> None:
        raise KeyError("price")

    with pytest.raises(KeyError, match="price") as error:
        check_model(fails, (value, Y), {})
    (note,) = (note for note in error.value.__notes__ if "model's arguments were" in note)
    assert words in note  # JAX adds a note of its own
    assert note.endswith("array of float32, shape (4,).")


def test_arguments_are_described_only_where_something_fails() -> None:
    """A large argument costs nothing where nothing is wrong."""

    class Watched:
        asked = 0

        def __repr__(self) -> str:
            Watched.asked += 1
            return "Watched()"

    check_model(of_nothing, (Watched(), Y), {})
    assert Watched.asked == 0
    assert describe_arguments((Watched(),), {"n": 3}) == "Watched(), n=3"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1.0, np.nan, np.inf]), "array of float64, shape (3,) with 2 values nan or inf"),
        (np.float32(np.nan), "array of float32, shape () with 1 values nan or infinite"),
        (pd.Series([1.0, np.nan]), "Series of float64, shape (2,) with 1 values nan or infinite"),
        (np.zeros(2, [(80 * "n", "f4")]), "n..., shape (2,)"),
        ("x" * 100, "x" * 56 + "..."),
        (jax.random.key(0), "array of key<fry>, shape ()"),
    ],
)
def test_descriptions(value: Any, words: str) -> None:
    """What is worth knowing about an argument, in a line."""
    text = describe_arguments((value,), {})
    assert words in text
    assert len(text) < 100
