"""What is computed before sampling: one program, used again on new data of the same shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import lasso_regression, light_kernel, regression_data
from numpyro.infer import init_to_value

from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.preparation import CompiledOnce, join_arrays, split_arrays
from numpyro_rwpo.model.target import Differentiation


def grouped(y, group):
    """A model that looks at its data, as many do: it must stay possible without tracing them."""
    number = len(np.unique(group))
    mean = numpyro.sample("mean", dist.Laplace(0, 1).expand([number]).to_event(1))
    numpyro.sample("y", dist.Normal(mean[group], 1), obs=y)


def keyed(y):
    """A model that asks for a key of its own."""
    noise = jax.random.normal(numpyro.prng_key(), y.shape)
    mean = numpyro.sample("mean", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mean + 0.0 * noise, 1), obs=y)


def small(model):
    """Without what follows the preparation, as far as that is possible."""
    return light_kernel(model, num_particles=8, corrected=False)


def init(kernel, *args, key=0):
    return kernel.init(jax.random.split(jax.random.key(key), 2), 8, None, args, {})


def test_arguments_come_apart_and_together_again():
    args, kwargs = (np.arange(3), "name", None), {"x": jnp.ones(2), "flag": True, "n": 3}
    arrays, layout = split_arrays(args, kwargs)
    assert [a.shape for a in arrays] == [(3,), (2,)]
    assert hash(layout) == hash(split_arrays(args, kwargs)[1])
    joined = join_arrays([a + 1 for a in arrays], layout)
    np.testing.assert_array_equal(joined[0][0], np.arange(3) + 1)
    assert joined[0][1:] == ("name", None)
    assert (joined[1]["flag"], joined[1]["n"]) == (True, 3)


def test_new_data_need_no_new_program():
    traced = []

    def function(_, x, args, kwargs):
        traced.append(1)
        return x + args[0].sum() + kwargs["shift"]

    program = CompiledOnce(function)
    for k in range(3):
        value = program(None, jnp.zeros(()), (np.full(4, k, np.float32),), {"shift": 2.0})
        assert value == 4 * k + 2
    assert len(traced) == 1
    program(None, jnp.zeros(()), (np.zeros(5, np.float32),), {"shift": 2.0})
    program(None, jnp.zeros(()), (np.zeros(5, np.float32),), {"shift": 3.0})
    assert len(traced) == 3


def test_a_function_that_looks_at_its_data_has_them_as_constants():
    program = CompiledOnce(lambda _, x, args, kwargs: x + len(np.unique(args[0])))
    assert program(None, jnp.zeros(()), (np.array([1, 1, 2]),), {}) == 2
    assert program(None, jnp.zeros(()), (np.array([1, 3, 2]),), {}) == 3


def test_programs_in_a_row_are_each_traced_and_compiled_once(caplog: pytest.LogCaptureFixture):
    """The second one is traced for the shapes of the first one's result, before there is any."""
    traced, x, args = [], jnp.arange(3.0), (np.ones(2, np.float32),)

    def twice(_, x, args, kwargs):
        traced.append("twice")
        return {"weak": jnp.where(True, 2.0, 3.0), "x": 2 * x + args[0].sum()}

    def total(_, x, args, kwargs):
        traced.append("total")
        return x["weak"] + x["x"].sum()

    first, second = CompiledOnce(twice), CompiledOnce(total)
    with jax.log_compiles():
        for _ in range(2):
            shapes = first.begin(None, x, args, {})
            assert shapes["x"].shape == (3,)
            second.begin(None, shapes, args, {})
            result = second(None, first(None, x, args, {}), args, {})
    assert result == 2 + 6 + 6
    assert traced == ["twice", "total"]
    for name in traced:
        assert caplog.text.count(f"Compiling jit({name})") == 1
    # The other thread does not log. In this one, nothing is compiled once more.
    assert "Finished XLA compilation" not in caplog.text


def test_a_program_that_cannot_be_traced_ahead_does_not_begin():
    program = CompiledOnce(lambda _, x, args, kwargs: x + len(np.unique(args[0])))
    data = (np.array([1, 1, 2]),)
    assert program.begin(None, jnp.zeros(()), data, {}) is None
    assert program(None, jnp.zeros(()), data, {}) == 2
    traced = jax.jit(lambda x: x if program.begin(None, x, data, {}) is None else 1 / x)
    assert traced(jnp.zeros(())) == 0


def test_an_error_of_the_compiler_is_raised_by_the_call():
    program = CompiledOnce(lambda _, x, args, kwargs: x + 1, lambda *_: {"no_such_option": 1})
    assert program.begin(None, jnp.zeros(()), (), {}).shape == ()
    with pytest.raises(Exception, match="no_such_option"):
        program(None, jnp.zeros(()), (), {})


def test_start_of_new_data_compiles_nothing(caplog: pytest.LogCaptureFixture):
    X, y = regression_data()
    kernel = light_kernel(lasso_regression)
    with jax.log_compiles():
        init(kernel, X, y)
        assert "Compiling" in caplog.text
        caplog.clear()
        init(kernel, X + 1, y, key=1)
        assert "Compiling" not in caplog.text


def test_a_model_that_looks_at_its_data_is_compiled_once_for_each_data_set(caplog):
    def count(_, x, args, kwargs):
        return x + len(np.unique(np.asarray(args[0])))

    program = CompiledOnce(count)
    zero, data = jnp.zeros(()), np.array([0, 1, 1])
    assert program(None, zero, (data,), {}) == 2
    with jax.log_compiles():
        assert program(None, zero, (data.copy(),), {}) == 2
        assert "Compiling" not in caplog.text
        assert program(None, zero, (np.array([0, 1, 2]),), {}) == 3
        assert "Compiling" in caplog.text
    lists = {"a": [data]}  # still a pytree of arrays
    assert (
        CompiledOnce(lambda _, x, args, kwargs: x + int(kwargs["a"][0][1]))(None, zero, (), lists)
        == 1
    )


@pytest.mark.slow
def test_models_that_look_at_their_data_and_that_ask_for_a_key():
    y, group = np.zeros(4, np.float32), np.array([0, 1, 1, 2])
    kernel = small(grouped)
    assert init(kernel, y, group).z["mean"].shape == (2, 3)
    assert init(kernel, y, np.array([0, 1, 1, 1])).z["mean"].shape == (2, 2)
    assert np.isfinite(init(small(keyed), y).z["mean"]).all()


def test_a_model_whose_sites_follow_something_else_than_its_arguments():
    """As in a notebook, where data stand beside the model: another `init`, another program."""
    size = 2

    def model():
        numpyro.sample("mean", dist.Laplace(0, 1).expand([size]))

    kernel = small(model)
    assert init(kernel).z["mean"].shape == (2, 2)
    size = 3
    assert init(kernel).z["mean"].shape == (2, 3)


def test_a_strategys_values_are_those_of_the_users_sites():
    """Sites that are rewritten would otherwise take them for values of their standard sites."""

    def model():
        scale = numpyro.sample("scale", dist.LogNormal(0, 1))
        size = numpyro.sample("size", dist.LogNormal(0, scale))
        shift = numpyro.sample("shift", dist.Normal(0, scale))
        numpyro.sample("y", dist.Normal(size + shift, 1), obs=jnp.asarray(740.0))

    given = {"scale": 3.0, "size": 500.0, "shift": 240.0}
    strategy = init_to_value(values={name: jnp.asarray(x) for name, x in given.items()})
    source = ModelSource(
        model,
        (),
        {},
        init_strategy=strategy,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    bound = source.bind((), {})
    prepared = bound.prepare(jax.random.split(jax.random.key(0), 2), None)
    assert np.isfinite(prepared.potential).all()
    for name, x in given.items():
        start = bound.constrain(jax.tree.map(lambda z: z[1], prepared.values))[name]
        np.testing.assert_allclose(start, x, rtol=1e-3)
