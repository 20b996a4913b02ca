"""The split model has the density of the user's, whatever handlers and arguments a site has.

Density and shapes are compared with NumPyro's own ``potential_energy`` of the model as it is
written, in double precision: no draws are needed to see that a posterior is the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import random_eqx_module
from numpyro.distributions.transforms import AffineTransform, SigmoidTransform
from numpyro.infer import init_to_uniform
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import potential_energy

from numpyro_rwpo.diagnostics.posterior import model_posterior
from numpyro_rwpo.model import laplace_sites
from numpyro_rwpo.model.laplace_sites import split_laplace_sites
from numpyro_rwpo.model.location_scale import standardize
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.prior_registry import unwrapped
from numpyro_rwpo.model.site_bits import all_centered
from numpyro_rwpo.model.split_check import describe_laplace_sites, refused_sites, split_errors
from numpyro_rwpo.model.target import Differentiation
from numpyro_rwpo.model.tracing import default_key, is_latent

Y = np.array([0.3, -1.2, 2.0, 0.5], np.float32)


def observe(mean: Any) -> None:
    numpyro.sample("y", dist.Normal(mean, 0.5).expand([4]).to_event(1), obs=jnp.asarray(Y))


def laplace(name: str, loc: Any, scale: Any, *shape: int, **options: Any) -> Any:
    return numpyro.sample(name, dist.Laplace(loc, scale).expand(shape), **options)


def latent_scale() -> Any:
    return numpyro.sample("s", dist.HalfNormal(1.0))


# ------------------------------------------------------------------------- the models


def sample_shape_with_a_fixed_scale() -> None:
    observe(numpyro.sample("b", dist.Laplace(0.2, 0.5), sample_shape=(4,)))


def sample_shape_with_a_latent_location() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(numpyro.sample("b", dist.Laplace(mu, 0.5), sample_shape=(4,)))


def sample_shape_of_asymmetric_sites() -> None:
    c = numpyro.sample("c", dist.AsymmetricLaplace(0.1, 0.5, 2.0), sample_shape=(4,))
    skewed = dist.AsymmetricLaplace(0.2, latent_scale(), 2.0)
    observe(c + numpyro.sample("b", skewed, sample_shape=(4,)))


def sample_shape_of_events() -> None:
    scales = numpyro.sample("s", dist.HalfNormal(1.0).expand([3]).to_event(1))
    prior = dist.Laplace(jnp.arange(3.0), scales).to_event(1)
    observe(numpyro.sample("b", prior, sample_shape=(2, 4)).sum((0, 2)))


def sample_shape_in_a_plate() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 4):
        b = numpyro.sample("b", dist.Laplace(mu, 0.5), sample_shape=(2, 1))
    observe(b.sum(0))


def expanded_twice() -> None:
    scales = numpyro.sample("s", dist.HalfNormal(1.0).expand([4]).to_event(1))
    observe(numpyro.sample("b", dist.Laplace(0.0, scales).to_event(1).expand([2])).sum(0))


def scoped() -> None:
    with handlers.scope(prefix="outer"), handlers.scope(prefix="inner", divider="."):
        observe(laplace("b", 0.0, latent_scale(), 4) + laplace("c", 0.0, 1.0))


def net() -> None:
    module = eqx.nn.Linear(4, 4, key=jax.random.key(0))

    def prior(name: str, shape: tuple[int, ...]) -> Any:
        return dist.Laplace(0.0, scale)

    scale = latent_scale()
    linear = random_eqx_module("net", module, prior=prior)
    observe(linear(jnp.arange(4.0)))


def site_of_the_base_sites_name() -> None:
    b = laplace("b", 0.0, latent_scale(), 4)
    observe(b + numpyro.sample("b_decentered", dist.Normal(0.0, 1.0)))


def deterministic_of_the_base_sites_name() -> None:
    scale = latent_scale()
    b = laplace("b", 0.0, scale, 4)
    numpyro.deterministic("b_decentered", b / scale)
    observe(b)


@handlers.reparam(config={"b": LocScaleReparam(0.5)})
def reparameterized_by_the_user() -> None:
    observe(laplace("b", 0.3, latent_scale(), 4))


def read_from_an_inner_trace() -> None:
    with handlers.trace() as trace:
        observe(laplace("b", 0.0, latent_scale(), 4) + laplace("c", 0.0, 0.5))
    for name in ("b", "c"):
        site = trace[name]
        numpyro.factor(f"{name}_again", site["fn"].log_prob(site["value"]).sum())


def weighted() -> None:
    scale = latent_scale()
    with handlers.mask(mask=jnp.array([True, False, True, True])):
        b = laplace("b", 0.0, scale, 4)
    with handlers.scale(scale=2.0):
        observe(b + laplace("c", 0.0, scale) + laplace("d", 0.0, 1.0))


@handlers.lift(prior={"b": dist.Laplace(0.0, 1.0)})
def lifted() -> None:
    observe(numpyro.param("b", 0.0))


@handlers.do(data={"b": jnp.ones(4), "c": 2.0})
def intervened() -> None:
    observe(laplace("b", 0.0, latent_scale(), 4) + laplace("c", 0.0, 1.0))


@handlers.uncondition
def unconditioned() -> None:
    laplace("b", 0.0, latent_scale(), 4, obs=jnp.ones(4))


def inside_scan() -> None:
    scale = latent_scale()

    def step(level: Any, y: Any) -> tuple[Any, None]:
        level = numpyro.sample("b", dist.Laplace(level, scale))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
        return level, None

    scan(step, laplace("start", 0.0, 1.0), jnp.asarray(Y))


def scale_from_a_key() -> None:
    noise = jax.random.normal(numpyro.prng_key(), (4,))
    observe(laplace("b", 0.0, jnp.exp(noise), 4))


def partly_observed() -> None:
    seen = jnp.array([True, False, True, True])
    observe(laplace("b", 0.0, latent_scale(), 4, obs=jnp.asarray(Y), obs_mask=seen))


def latent_asymmetry() -> None:
    asymmetry = numpyro.sample("k", dist.Gamma(5.0, 5.0))
    observe(numpyro.sample("b", dist.AsymmetricLaplace(0.0, latent_scale(), asymmetry)))


def chain_of_sites() -> None:
    a = laplace("a", 0, latent_scale())
    b = laplace("b", a, jnp.exp(a))
    observe(a + b + numpyro.sample("u", dist.Uniform(0.0, jnp.exp(b))))  # a support that moves


def normal_hierarchy() -> None:
    """The eight schools, and beside them sites whose scale is known."""
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), latent_scale()
    with numpyro.plate("schools", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        observe(theta + numpyro.sample("u", dist.Normal(mu, 1.0)))


def other_families() -> None:
    scale = latent_scale()
    a = numpyro.sample("a", dist.StudentT(4.0, 0.5, scale).expand([4]).to_event(1))
    b = numpyro.sample("b", dist.Cauchy(a, scale).to_event(1))
    c = numpyro.sample("c", dist.Logistic(0.0, scale), sample_shape=(4,))
    d = laplace("d", 0.0, scale, 4)
    observe(a + b + c + d + numpyro.sample("e", dist.Gumbel(0.0, scale)))


def vectors() -> None:
    """Multivariate normal sites in each of its three forms, and random walks."""
    scale, mean = latent_scale(), numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    square = scale**2 * (jnp.eye(2) + 0.5)
    with numpyro.plate("groups", 3):
        a = numpyro.sample("a", dist.MultivariateNormal(mean, scale_tril=scale * corr))
        b = numpyro.sample("b", dist.MultivariateNormal(a, covariance_matrix=square))
    c = numpyro.sample(
        "c", dist.MultivariateNormal(0.0, precision_matrix=square), sample_shape=(3,)
    )
    walks = dist.GaussianRandomWalk(scale * jnp.array([1.0, 2.0]), 4).to_event(1)
    numpyro.sample("d", dist.MultivariateNormal(mean, scale_tril=jnp.eye(2)))
    observe(numpyro.sample("walks", walks).sum() + (b + c).sum())


def degrees_of_freedom_are_latent() -> None:
    df = numpyro.sample("df", dist.Gamma(5.0, 1.0))
    observe(numpyro.sample("b", dist.StudentT(df, 0.0, latent_scale())))


class OwnDensity(dist.Laplace):
    """A Laplace distribution by name, twice as narrow by density."""

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        return super().log_prob(2 * value)


def mapped_from_the_reals() -> None:
    scale = latent_scale()
    a = numpyro.sample("a", dist.LogNormal(0.3, scale).expand([4]).to_event(1))
    normal = dist.Normal(jnp.zeros(4), scale)
    b = numpyro.sample("b", dist.TransformedDistribution(normal, SigmoidTransform()))
    observe(a + b)


def mapped_elsewhere() -> None:
    """NumPyro's unconstrained values are not those that have the latent scale."""
    shift = AffineTransform(1.0, 2.0)
    normal = dist.Normal(0.0, latent_scale())
    observe(numpyro.sample("a", dist.TransformedDistribution(normal, shift)))


class OwnNormal(dist.Normal):
    """Not known to be a location-scale family: a subclass may have any density."""


def subclass_of_normal() -> None:
    observe(numpyro.sample("b", OwnNormal(0.0, latent_scale())))


class OwnConstructor(dist.Laplace):
    """The same distribution in terms of the rate."""

    def __init__(self, rate: Any) -> None:
        super().__init__(0.0, 1 / rate)


def subclass_with_its_own_density() -> None:
    wide = numpyro.sample("b", OwnDensity(0.0, latent_scale()).expand([4]))
    observe(wide + numpyro.sample("c", OwnDensity(0.0, 1.0)))


def subclass_with_its_own_constructor() -> None:
    b = numpyro.sample("b", OwnConstructor(latent_scale()))
    observe(b + numpyro.sample("c", OwnConstructor(2.0)))


# NumPyro's own `log_prob` broadcasts parameters against values of more axes silently.
BATCHED_PARAMETERS = (sample_shape_of_events, expanded_twice, vectors)


@pytest.mark.parametrize(
    ("model", "fixed", "rewritten"),
    [
        (sample_shape_with_a_fixed_scale, "b", ""),
        (sample_shape_with_a_latent_location, "", "b"),
        (sample_shape_of_asymmetric_sites, "c", "b"),
        (sample_shape_of_events, "", "b"),
        (sample_shape_in_a_plate, "", "b"),
        (expanded_twice, "", "b"),
        (scoped, "outer/inner.c", "outer/inner.b"),
        (net, "", "net/bias net/weight"),
        (site_of_the_base_sites_name, "", "b"),
        (deterministic_of_the_base_sites_name, "", "b"),
        (reparameterized_by_the_user, "", "b_decentered"),
        (read_from_an_inner_trace, "c", "b"),
        (weighted, "", ""),
        (lifted, "b", ""),
        (intervened, "c", "b"),
        (unconditioned, "", "b"),
        (inside_scan, "start", ""),
        (scale_from_a_key, "b", ""),
        (partly_observed, "", ""),
        (latent_asymmetry, "", ""),
        (chain_of_sites, "", "a b"),
        (normal_hierarchy, "", "theta"),
        (other_families, "", "a b c d e"),
        (mapped_from_the_reals, "", "a b"),
        (mapped_elsewhere, "", ""),
        (vectors, "", "a b c walks"),
        (degrees_of_freedom_are_latent, "", ""),
        (subclass_with_its_own_density, "", ""),
        (subclass_with_its_own_constructor, "c", "b"),
        (subclass_of_normal, "", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_density_and_shapes_of_the_split_model(
    model: Callable[..., None],
    fixed: str,
    rewritten: str,
    x64: None,
    request: pytest.FixtureRequest,
) -> None:
    """At several centerings, with constants that the closed forms leave out, and Jacobians."""
    if model in BATCHED_PARAMETERS:
        request.getfixturevalue("silent_broadcasting")
    source = make_source(model)
    split, bound = source.split, source.bind((), {})
    assert (set(split.fixed), set(split.rewritten)) == (set(fixed.split()), set(rewritten.split()))

    @jax.jit
    def evaluate(x: jax.Array, centering: jax.Array) -> tuple[Any, ...]:
        at = bound.target()._replace(centering=centering)
        potential = at.value_and_grad(x[None])[0][0] + at.prior_potential(x)
        for name, prior in split.site_priors((), {}).items():
            if name in split.fixed:
                potential += jnp.log(1 / prior.rate_left + 1 / prior.rate_right).sum()
        values, log_jacobian = bound.emit(x, centering)
        expected = potential_energy(default_key(model), (), {}, values)
        back = bound.emit(bound.ravel(values), jnp.zeros(()))[0]
        drawn = bound.constrain(values)
        return potential - log_jacobian, expected, values, back, drawn, split_errors(split, (), {})

    every = all_centered(len(split.rewritten))
    for centering in sorted({0, 1, every, every & 0b10101}):
        x = jax.random.normal(jax.random.key(1), (source.position(source.prototype).size,))
        density, expected, values, back, drawn, errors = evaluate(x, jnp.asarray(float(centering)))
        np.testing.assert_allclose(density, expected, rtol=1e-10)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), back, values)
        assert not refused_sites(errors)
    assert {name: drawn[name].shape for name in values} == latent_shapes(model)


def latent_shapes(model: Callable[..., None]) -> dict[str, tuple[int, ...]]:
    """Of the sites with a value in the model as it is written."""
    trace = jax.eval_shape(
        lambda: {
            name: site["value"]
            for name, site in handlers.trace(handlers.seed(model, 0)).get_trace().items()
            if is_latent(site) and not isinstance(site["fn"], dist.Unit)
        }
    )
    return {name: x.shape for name, x in trace.items()}


def make_source(model: Callable[..., None]) -> ModelSource:
    return ModelSource(
        model,
        (),
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )


# -------------------------------------------------------------------- what the check finds


def patched() -> None:
    """A distribution of the exact class whose density was replaced, beside a sound one."""
    prior = dist.Laplace(0.0, 1.0)
    prior.log_prob = lambda value, intermediates=None: -(value**4)
    observe(numpyro.sample("odd", prior) + laplace("b", 0.0, latent_scale()))


def with_a_latent_location() -> None:
    observe(laplace("b", numpyro.sample("mu", dist.Normal(0.0, 1.0)), 0.5, 4))


def normal_with_a_latent_scale() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(numpyro.sample("b", dist.Normal(mu, latent_scale()), sample_shape=(4,)))


def mixture() -> None:
    switch = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    observe(numpyro.sample("b", dist.Laplace(2.0 * switch, 1.0)))


class ForgetsSampleShape(standardize):
    """What NumPyro's LocScaleReparam does."""

    def process_message(self, msg: dict[str, Any]) -> None:
        super().process_message(msg)
        if msg["name"] in self._originals:
            msg["kwargs"]["sample_shape"] = ()


class ForgetsTheLocation(standardize):
    def postprocess_message(self, msg: dict[str, Any]) -> None:
        fn = self._originals.get(msg["name"])
        super().postprocess_message(msg)
        if fn is not None:
            msg["value"] = msg["value"] - unwrapped(fn).loc


class WrongBase(standardize):
    def _base(self, name: str, fn: Any) -> Any:
        return dist.StudentT(3.0, 0.0, 1.0).expand(fn.shape()).to_event(fn.event_dim)


@pytest.mark.parametrize(
    ("model", "handler"),
    [
        (sample_shape_with_a_latent_location, ForgetsSampleShape),
        (with_a_latent_location, ForgetsTheLocation),
        (with_a_latent_location, WrongBase),
        (normal_with_a_latent_scale, ForgetsSampleShape),
        (normal_with_a_latent_scale, ForgetsTheLocation),
        (normal_with_a_latent_scale, WrongBase),
    ],
)
def test_check_finds_a_wrong_rewriting(
    model: Callable[..., None], handler: type[standardize], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_laplace_sites(model, (), {})
    assert split.rewritten == ("b",)
    monkeypatch.setattr(laplace_sites, "standardize", handler)
    assert refused_sites(jax.jit(lambda: split_errors(split, (), {}))()) == {"b"}


def test_check_finds_a_site_that_a_discrete_one_makes_a_mixture() -> None:
    right = split_laplace_sites(mixture, (), {})
    assert right.names == ()
    wrong = right._replace(fixed=("b",))
    assert refused_sites(jax.jit(lambda: split_errors(wrong, (), {}))()) == {"b"}


def test_normal_sites_that_a_discrete_one_mixes_are_left_alone() -> None:
    def model() -> None:
        switch = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        observe(numpyro.sample("b", dist.Normal(2.0 * switch, latent_scale())))

    assert split_laplace_sites(model, (), {}).rewritten == ()


def test_check_finds_a_density_of_its_own() -> None:
    split = split_laplace_sites(subclass_with_its_own_density, (), {})
    forced = split._replace(fixed=("c",), rewritten=("b",))
    assert refused_sites(jax.jit(lambda: split_errors(forced, (), {}))()) == {"b", "c"}


@pytest.mark.parametrize("is_mapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_site_that_the_check_refuses_is_left_alone(is_mapped: bool) -> None:
    """Also where the whole run is mapped over chains, so that `init` sees no numbers."""
    kernel = light_kernel(patched, num_particles=4, corrected=False)

    def init(keys: jax.Array) -> Any:
        return kernel.init(keys, 4, None, (), {}).z

    keys = jax.random.split(jax.random.key(0), 2)
    values = jax.vmap(init)(keys) if is_mapped else init(keys)
    assert values["odd"].shape == (2,)
    assert kernel._programs.source.split.names == ("b",)


def test_diagnose_says_which_site_was_left_alone() -> None:
    words = describe_laplace_sites(patched, (), {}, "auto", np.array([0.0, 1.0]))
    assert "not be those that you wrote" in words["odd"]
    assert "split off in 1 of 2 chains, left as written in 1" in words["b"]
    words = describe_laplace_sites(subclass_with_its_own_density, (), {}, "auto", np.zeros(2))
    assert "a density of its own" in words["b"]


def test_check_is_part_of_the_preparation(caplog: pytest.LogCaptureFixture) -> None:
    """One program for a sound model, a second one only after a site was refused."""
    keys = jax.random.split(jax.random.key(0), 2)
    for model, number in ((with_a_latent_location, 1), (patched, 2)):
        with jax.log_compiles():
            light_kernel(model, num_particles=4, corrected=False).init(keys, 4, None, (), {})
        assert caplog.text.count("Compiling jit(prepared)") == number
        caplog.clear()


def test_diagnose_has_two_names_for_two_sites() -> None:
    """The standardized site is called as in NumPyro, unless the user calls another one so."""
    samples = {
        "s": np.ones((2, 4), np.float32),
        "b": np.ones((2, 4, 4), np.float32),
        "b_decentered": np.zeros((2, 4), np.float32),
    }
    names = model_posterior(site_of_the_base_sites_name, (), {}, samples).names
    assert names[0] == "b (standardized)[0]"
    assert names[4:] == ["b_decentered", "s"]
    names = model_posterior(deterministic_of_the_base_sites_name, (), {}, samples).names
    assert names == ["b_decentered[0]", *(f"b_decentered[{i}]" for i in (1, 2, 3)), "s"]
