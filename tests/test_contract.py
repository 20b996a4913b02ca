"""What NumPyro users do with any kernel, done with `RWPO`.

Shapes, keys and names are compared with `NUTS` on the same model; draw-for-draw statements
(resuming, thinning, chain methods) hold for `NUTS` too and were tried on it first. Posterior
moments are compared with closed forms or quadrature (see `helpers`) in Monte Carlo errors.

Compilation takes most of the time, so tests of mechanics share few programs: the same kernel,
model, sizes and number of chains wherever they can. Rarer combinations are marked `slow`.
Posteriors that are there for what a model may contain are sampled with the light kernel, too; the
others have the copula and the dense metric.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import (
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    Moments,
    assert_moments,
    constrained_moments,
    constrained_sites,
    draw_matrix,
    far_island,
    forward_only,
    gaussian_moments,
    gaussian_potential,
    handled_two_levels,
    handled_two_levels_moments,
    hazard_moments,
    hazards,
    hierarchy_moments,
    laplace_hierarchies,
    laplace_moments,
    laplace_sites,
    lasso_regression,
    light_kernel,
    normal_mean,
    normal_mean_moments,
    primitives,
    primitives_moments,
    regression_data,
    run_mcmc,
    scan_model,
    scan_moments,
    shrunken_means,
    shrunken_means_moments,
    two_islands,
    unusual_moments,
    unusual_sites,
)
from numpyro.infer import (
    MCMC,
    NUTS,
    Predictive,
    init_to_median,
    init_to_value,
    log_likelihood,
)
from numpyro.infer.util import potential_energy

from numpyro_rwpo import RWPO

LONG = 121  # draws of the long run: almost four particles; a third of it is a short run
EXTRA_FIELDS = (
    "potential_energy",
    "accept_prob",
    "num_steps",
    "energy",
    "i",
    "mean_accept_prob",
    "adapt_state.step_size",
)
STATISTICAL = {"num_warmup": 200, "num_samples": 500, "num_chains": 4}

X, Y = regression_data()
MEANS_DATA = np.array([0.3, 1.2, -2.5], np.float32)
MEANS_SCALE = np.float32(0.5)
MEANS = (MEANS_DATA, MEANS_SCALE)


def run_means(kernel: RWPO, **options: Any) -> MCMC:
    """Run the three shrunken means, the common subject of the tests of mechanics."""
    return run_mcmc(kernel, *MEANS, **{"num_chains": 2, **options})


def theta(mcmc: MCMC) -> np.ndarray:
    """Draws of the shrunken means, (chains, draws, 3)."""
    return np.asarray(mcmc.get_samples(group_by_chain=True)["theta"])


def assert_all_distinct(draws: np.ndarray) -> None:
    """Every row of (draws, dim) differs from every other."""
    assert len(np.unique(draws, axis=0)) == len(draws)


def assert_repeats_are_rejections(repeats: np.ndarray, accept_prob: np.ndarray) -> None:
    """No more draws repeat the one before than chance rejects, up to 4.5 standard errors."""
    expected = (1 - accept_prob).sum()
    error = np.sqrt((accept_prob * (1 - accept_prob)).sum())
    assert repeats.sum() <= expected + 4.5 * error


@pytest.fixture(scope="module")
def lasso() -> MCMC:
    """A finished vectorized run of two chains on the regression."""
    return run_mcmc(light_kernel(lasso_regression), X, y=Y, num_chains=2, extra_fields=EXTRA_FIELDS)


@pytest.fixture(scope="module")
def nuts_lasso() -> MCMC:
    """The same run with NUTS."""
    kernel = NUTS(lasso_regression)
    return run_mcmc(kernel, X, y=Y, num_chains=2, num_warmup=10, extra_fields=EXTRA_FIELDS)


@pytest.fixture(scope="module")
def means_kernel() -> RWPO:
    """A kernel for the shrunken means, whose programs are compiled once."""
    return light_kernel(shrunken_means)


@pytest.fixture(scope="module")
def long_run(means_kernel: RWPO) -> MCMC:
    """Two vectorized chains of 121 draws."""
    return run_means(means_kernel, num_samples=LONG)


# ------------------------------------------------------------------- what a run returns


class TestFinishedRun:
    """One vectorized run, looked at from all sides; NUTS gives the expected shapes."""

    @pytest.mark.parametrize("group_by_chain", [False, True])
    def test_samples_look_like_those_of_nuts(
        self, lasso: MCMC, nuts_lasso: MCMC, group_by_chain: bool
    ) -> None:
        ours, theirs = (m.get_samples(group_by_chain) for m in (lasso, nuts_lasso))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(
            lambda x: (x.shape, x.dtype), theirs
        )
        assert all(np.isfinite(value).all() for value in ours.values())

    @pytest.mark.parametrize("group_by_chain", [False, True])
    def test_extra_fields_look_like_those_of_nuts(
        self, lasso: MCMC, nuts_lasso: MCMC, group_by_chain: bool
    ) -> None:
        ours, theirs = (m.get_extra_fields(group_by_chain) for m in (lasso, nuts_lasso))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert (value.shape, value.dtype) == (theirs[name].shape, theirs[name].dtype), name
        assert np.all((ours["accept_prob"] >= 0) & (ours["accept_prob"] <= 1))
        assert np.all((ours["mean_accept_prob"] >= 0) & (ours["mean_accept_prob"] <= 1))
        assert np.all(ours["adapt_state.step_size"] > 0)
        assert np.all(ours["num_steps"] >= 1)  # ArviZ takes its logarithm
        # The difference is a kinetic energy, here of five momenta; rounding aside.
        kinetic = {k: v["energy"] - v["potential_energy"] for k, v in enumerate((ours, theirs))}
        assert all(np.all(x > -1e-3 * np.abs(ours["energy"]).max()) for x in kinetic.values())
        assert abs(np.mean(kinetic[0]) - 2.5) < 1.5
        draws = np.arange(1, 41)  # NUTS goes on counting from its warm-up
        np.testing.assert_array_equal(ours["i"].reshape(2, 40), np.stack([draws, draws]))

    def test_unknown_extra_fields_are_named_beside_those_there_are(self, lasso: MCMC) -> None:
        with pytest.raises(ValueError, match="`extra_fields` names 'tree_depth'.*'energy'.*'i'"):
            copy(lasso).run(jax.random.key(0), X, y=Y, extra_fields=("tree_depth",))

    def test_state_is_one_particle_per_chain(self, lasso: MCMC, nuts_lasso: MCMC) -> None:
        ours, theirs = lasso.last_state, nuts_lasso.last_state
        assert jax.tree.map(jnp.shape, ours.z) == jax.tree.map(jnp.shape, theirs.z)
        assert ours.rng_key.shape == theirs.rng_key.shape
        # What `MCMC` itself does to the state after a warm-up.
        assert ours._replace(rng_key=theirs.rng_key).rng_key is theirs.rng_key
        assert lasso.sampler.sample_field == "z"
        assert tuple(lasso.sampler.default_fields) == ("z", "diverging")
        assert not lasso.sampler.is_ensemble_kernel
        assert lasso.sampler.model is lasso_regression

    def test_chains_differ_and_draws_do_not_repeat(self, lasso: MCMC) -> None:
        """A draw is that before it only where the particle rejected all between."""
        draws = np.asarray(lasso.get_samples(group_by_chain=True)["weights"])
        assert not set(map(tuple, draws[0])) & set(map(tuple, draws[1]))
        accept_prob = np.asarray(lasso.get_extra_fields(group_by_chain=True)["accept_prob"])
        repeats = np.all(draws[:, 1:] == draws[:, :-1], axis=-1)
        assert_repeats_are_rejections(repeats, accept_prob[:, 1:])

    def test_potential_energy_is_that_of_the_draw(self, lasso: MCMC) -> None:
        """In the user's unconstrained space, Laplace part and Jacobians included."""
        samples = lasso.get_samples()
        unconstrained = {
            "intercept": samples["intercept"],
            "noise": jnp.log(samples["noise"]),
            "weights": samples["weights"],
        }
        energy = partial(potential_energy, lasso_regression, (X,), {"y": Y})
        np.testing.assert_allclose(
            lasso.get_extra_fields()["potential_energy"], jax.vmap(energy)(unconstrained), rtol=1e-4
        )

    def test_print_summary_has_the_rows_of_nuts(
        self, lasso: MCMC, nuts_lasso: MCMC, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def rows(mcmc: MCMC, **options: Any) -> list[str]:
            mcmc.print_summary(**options)
            return re.findall(r"^ *(\S+)(?: +\S+){7}$", capsys.readouterr().out, re.MULTILINE)

        assert rows(lasso) == rows(nuts_lasso)
        assert "weights[2]" in rows(lasso)
        everything = rows(lasso, exclude_deterministic=False)
        assert everything == rows(nuts_lasso, exclude_deterministic=False)
        assert "mean[23]" in everything

    def test_predictive(self, lasso: MCMC) -> None:
        samples = lasso.get_samples()
        new_X = X[:5]
        prediction = Predictive(lasso_regression, posterior_samples=samples)(
            jax.random.key(1), new_X
        )
        assert prediction["y"].shape == (80, 5)
        expected = samples["weights"] @ new_X.T + samples["intercept"][:, None]
        np.testing.assert_allclose(prediction["mean"], expected, rtol=1e-4, atol=1e-4)
        grouped = Predictive(
            lasso_regression,
            posterior_samples=lasso.get_samples(group_by_chain=True),
            batch_ndims=2,
        )(jax.random.key(1), new_X)
        assert grouped["y"].shape == (2, 40, 5)

    def test_log_likelihood(self, lasso: MCMC) -> None:
        samples = lasso.get_samples()
        value = log_likelihood(lasso_regression, samples, X, y=Y)["y"]
        expected = dist.Normal(samples["mean"], samples["noise"][:, None]).log_prob(Y[None])
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)

    def test_arviz(self, lasso: MCMC) -> None:
        data = az.from_numpyro(lasso, log_likelihood=True)
        stats, posterior = data["sample_stats"], data["posterior"]
        names = {"lp", "acceptance_rate", "n_steps", "step_size", "diverging"}
        assert names <= set(stats.data_vars)
        assert all(stats[name].shape == (2, 40) for name in names)
        assert stats["diverging"].dtype == bool
        np.testing.assert_allclose(
            stats["lp"].values, -lasso.get_extra_fields(group_by_chain=True)["potential_energy"]
        )
        assert posterior["weights"].dims == ("chain", "draw", "features")
        assert set(data["observed_data"].data_vars) == {"y"}
        summary = az.summary(data)
        assert "weights[2]" in summary.index
        assert np.isfinite(summary.loc["weights[2]", "r_hat"])

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
    def test_arviz_loo(self, lasso: MCMC) -> None:
        loo = az.loo(az.from_numpyro(lasso, log_likelihood=True))
        value = log_likelihood(lasso_regression, lasso.get_samples(), X, y=Y)["y"]
        in_sample = jax.nn.logsumexp(value, axis=0).sum() - len(Y) * np.log(80)
        # Leaving out costs about one nat per parameter: here five.
        elpd = loo.elpd if hasattr(loo, "elpd") else loo["elpd_loo"]  # ArviZ 1.x and 0.x
        assert in_sample - 15 < elpd < in_sample

    # Matplotlib 3.11 deprecates a call that ArviZ 0.23 makes.
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    @pytest.mark.parametrize("plot", [az.plot_trace, az.plot_forest])
    def test_arviz_plots(self, lasso: MCMC, plot: Callable[..., Any]) -> None:
        plot(az.from_numpyro(lasso), var_names=["weights"])
        plt.close("all")

    def test_transfer_to_host_and_pickle(self, lasso: MCMC) -> None:
        """The pickled run still has its draws, and runs again to the same ones."""
        pickled = pickle.loads(pickle.dumps(lasso))
        before = lasso.get_samples()["weights"]
        pickled.transfer_states_to_host()
        np.testing.assert_array_equal(pickled.get_samples()["weights"], before)
        pickled.run(jax.random.key(0), X, y=Y)
        np.testing.assert_allclose(pickled.get_samples()["weights"], before, rtol=1e-5, atol=1e-6)

    def test_rerun_on_the_same_object(self, lasso: MCMC) -> None:
        """The same key gives the same draws, as a key or as one key per chain; another, others.

        NUTS in NumPyro 0.22 fails here: it maps itself over the chains once more on every run.
        """
        before = np.asarray(lasso.get_samples()["weights"])
        fields = {"extra_fields": EXTRA_FIELDS}
        lasso.run(jax.random.split(jax.random.key(0), 2), X, y=Y, **fields)
        np.testing.assert_array_equal(lasso.get_samples()["weights"], before)
        lasso.run(jax.random.key(1), X, y=Y, **fields)
        assert np.all(lasso.get_samples()["weights"] != before)
        lasso.run(jax.random.key(0), X, y=Y, **fields)
        np.testing.assert_array_equal(lasso.get_samples()["weights"], before)


# ------------------------------------------------------- chain methods, keys, precision


# NumPyro's loop donates buffers, which XLA cannot always use when a whole run is mapped.
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.slow  # four runs; `test_parallel_chains` has the methods in single precision
def test_chain_methods_agree_in_double_precision(x64: None) -> None:
    """Vectorized, sequential and `jax.vmap` chains see the same keys, so give the same draws.

    New-style and old-style keys hold the same bits, so they do too. Only the order of sums may
    differ: 3e-11 was measured (1e-3 for NUTS, whose trees amplify rounding more); another random
    number would change every draw by the posterior sd, here about 1. Warm-up is so short that it is
    over before chains that run side by side could decide together when to end it.
    """

    def run(chain_method: Any, rng_key: jax.Array, progress_bar: bool = True) -> MCMC:
        options = {"num_chains": 2, "chain_method": chain_method, "progress_bar": progress_bar}
        options["num_warmup"] = 6
        data = (np.array([0.3, 1.2, -2.5]), np.array(0.5))
        return run_mcmc(light_kernel(shrunken_means), *data, key=rng_key, **options)

    vectorized = theta(run("vectorized", jax.random.key(0)))
    assert vectorized.shape == (2, 40, 3)
    assert vectorized.dtype == np.float64
    assert np.all(vectorized[0] != vectorized[1])
    sequential = run("sequential", jax.random.PRNGKey(0))
    np.testing.assert_allclose(theta(sequential), vectorized, atol=1e-6)
    assert sequential.last_state.rng_key.shape == (2, 2)
    mapped = run(jax.vmap, jax.random.key(0), progress_bar=False)
    np.testing.assert_allclose(theta(mapped), vectorized, atol=1e-6)


def test_parallel_chains(means_kernel: RWPO, long_run: MCMC) -> None:
    """Chains on two devices have the shapes and, up to rounding, the draws of vectorized ones.

    In single precision, where one flipped acceptance may change a few draws: hence the median
    (1e-6 was measured). Not in double: `pmap` under `jax.enable_x64` leaves caches behind that
    break later single-precision calls in JAX 0.10.
    """
    options = {"chain_method": "parallel", "progress_bar": False, "extra_fields": EXTRA_FIELDS}
    mcmc = run_means(means_kernel, **options)
    assert theta(mcmc).shape == (2, 40, 3)
    assert theta(mcmc).dtype == np.float32
    assert np.median(np.abs(theta(mcmc) - theta(long_run)[:, :40])) < 1e-3
    assert mcmc.last_state.z["theta"].shape == (2, 3)
    for name, value in mcmc.get_extra_fields(group_by_chain=True).items():
        assert value.shape == (2, 40), name


@pytest.mark.slow
def test_old_style_keys(means_kernel: RWPO, long_run: MCMC) -> None:
    """`jax.random.PRNGKey` arrays, one or a batch, give the draws of new-style keys.

    Two chains have keys of shape (2, 2), which could be mistaken for something else.
    """
    expected = theta(long_run)[:, :40]
    mcmc = run_means(means_kernel, key=jax.random.PRNGKey(0))
    np.testing.assert_allclose(theta(mcmc), expected, atol=1e-4)
    assert mcmc.last_state.rng_key.shape == (2, 2)
    assert mcmc.last_state.rng_key.dtype == np.uint32
    mcmc.run(jax.random.split(jax.random.PRNGKey(0), 2), *MEANS)
    np.testing.assert_allclose(theta(mcmc), expected, atol=1e-4)


# ----------------------------------------------------------------- particles and draws


def test_draws_are_successive_states_of_one_particle_after_another() -> None:
    """Draw t of a refresh is state t mod S of particle t // S; its neighbors are near.

    With steps of a thousandth, a particle moves a few thousandths from state to state, also from
    its last state of a refresh to its first of the next; different particles are far apart.
    """
    kernel = light_kernel(shrunken_means, num_particles=4)
    start = kernel.init(jax.random.key(0), 30, None, MEANS, {})
    one = jnp.ones_like(start.move.num_steps)
    tiny = start.move._replace(
        step_size=jnp.full_like(start.step_size, 1e-3), num_steps=one, num_sweeps=one
    )
    start = start._replace(move=tiny, iteration=jnp.zeros_like(start.iteration))
    num_states = kernel._settings.num_states
    total = 2 * kernel._settings.draws_per_refresh

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, MEANS, {})
        return state, (state.z["theta"], state.buffer.particles, state.ensemble.particles)

    _, collected = jax.jit(lambda state: jax.lax.scan(step, state, None, length=total))(start)
    draws, buffers, ensembles = map(np.asarray, collected)
    shape = (2, 4, num_states, 3)  # refreshes, particles, states
    draws = draws.reshape(shape)
    for refresh in range(2):
        first, last = (refresh * total // 2 + k for k in (0, total // 2 - 1))
        for t in (first, last):  # one refresh fills the buffer for all of its draws
            np.testing.assert_array_equal(buffers[t], draws[refresh])
            np.testing.assert_array_equal(ensembles[t], draws[refresh, :, -1])
    way = np.concatenate(list(draws), axis=1)  # of each particle, through both refreshes
    steps = np.linalg.norm(np.diff(way, axis=1), axis=-1)
    assert 0 < steps.max() < 0.02
    assert np.all((steps > 0).mean(1) > 0.9)
    between = np.linalg.norm(way[:, None, 0] - way[None, :, 0], axis=-1)
    assert between[~np.eye(4, dtype=bool)].min() > 0.1


@pytest.mark.slow
def test_refreshes_are_nearly_uncorrelated() -> None:
    """A particle's states remember little of each other, within a refresh and across two.

    Six refreshes of 64 particles in four chains give 1280 pairs, a standard error of 0.028 on
    each correlation of exact independent draws; 0.3 is ten of them. Emitting the particles
    again without a refresh would give 1. Successive states are kept apart until the slowest
    statistic's correlation is a half.
    """
    kernel = RWPO(shrunken_means, num_particles=64)
    sizes = {"num_warmup": 100, "num_samples": 6 * 64 * 16, "num_chains": 4}
    mcmc = run_mcmc(kernel, *MEANS, **sizes)
    assert mcmc.sampler._settings.draws_per_refresh == 64 * 16
    draws = theta(mcmc)
    assert_moments({"theta": draws}, shrunken_means_moments(MEANS_DATA, 0.5))
    passes = draws.reshape(4, 6, 64, 16, 3)
    passes = (passes - draws.mean((0, 1))) / draws.std((0, 1))
    across = (passes[:, :-1, :, -1] * passes[:, 1:, :, -1]).mean((0, 1, 2))
    assert np.all(np.abs(across) < 0.3), across
    neighbors = (passes[:, :, :, :-1] * passes[:, :, :, 1:]).mean((0, 1, 2, 3))
    assert np.all(np.abs(neighbors) < 0.6), neighbors


# ------------------------------------------------------ warm-up, resuming and thinning


@pytest.mark.parametrize("num_chains", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_resuming_continues_the_same_chain(num_chains: int) -> None:
    """run(100), run(100) and warmup(), run(100) give the draws of one long run.

    Four particles are drawn 128 times between two refreshes: the first run ends in the middle of
    a particle, and the second goes on across a refresh. A pickled run goes on as well.
    """

    kernel = light_kernel(shrunken_means, num_particles=4)

    def few(**options: Any) -> MCMC:
        return run_means(kernel, **{"num_chains": num_chains, "num_samples": 100, **options})

    whole = few(num_samples=200)
    assert whole.sampler._settings.draws_per_refresh == 128
    expected = theta(whole)
    mcmc = few()
    np.testing.assert_allclose(theta(mcmc), expected[:, :100], atol=1e-4)
    assert mcmc.post_warmup_state is None

    mcmc.post_warmup_state = mcmc.last_state
    for again in (mcmc, pickle.loads(pickle.dumps(mcmc))):
        again.run(again.post_warmup_state.rng_key, *MEANS)
        np.testing.assert_allclose(theta(again), expected[:, 100:], atol=1e-4)

    mcmc.warmup(jax.random.key(0), *MEANS)
    mcmc.run(mcmc.post_warmup_state.rng_key, *MEANS)
    np.testing.assert_allclose(theta(mcmc), expected[:, :100], atol=1e-4)

    # Another key after the same warm-up: other draws, but for a first state or two where both
    # have rejected all.
    mcmc.run(jax.random.key(5), *MEANS)
    assert np.mean(theta(mcmc) != expected[:, :100]) > 0.95


def test_init_is_safe_to_repeat(means_kernel: RWPO) -> None:
    """NumPyro calls it again after unpickling; it gives the same state and disturbs none."""
    sample = jax.jit(lambda state: means_kernel.sample(state, MEANS, {}))
    arguments = (jax.random.split(jax.random.key(3)), 40, None, MEANS, {})
    first = means_kernel.init(*arguments)
    drawn = sample(first)
    again = means_kernel.init(*arguments)
    first, again = (state._replace(rng_key=()) for state in (first, again))
    jax.tree.map(np.testing.assert_array_equal, again, first)
    redrawn = sample(again._replace(rng_key=drawn.rng_key))
    np.testing.assert_array_equal(redrawn.z["theta"], drawn.z["theta"])


def test_thinning_keeps_every_third_draw(means_kernel: RWPO, long_run: MCMC) -> None:
    thinned = run_means(means_kernel, num_samples=LONG, thinning=3)
    assert theta(thinned).shape == (2, 40, 3)
    np.testing.assert_allclose(theta(thinned), theta(long_run)[:, 2 + LONG % 3 :: 3], atol=1e-4)


def test_collecting_the_warmup(means_kernel: RWPO, long_run: MCMC) -> None:
    mcmc = MCMC(
        means_kernel,
        num_warmup=40,
        num_samples=40,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.warmup(jax.random.key(0), *MEANS, collect_warmup=True, extra_fields=EXTRA_FIELDS)
    assert theta(mcmc).shape == (2, 40, 3)
    assert np.isfinite(theta(mcmc)).all()
    assert mcmc.get_extra_fields()["potential_energy"].shape == (80,)
    counts = mcmc.get_extra_fields(group_by_chain=True)["i"]
    np.testing.assert_array_equal(counts, np.tile(np.arange(-39, 1), (2, 1)))
    mcmc.run(mcmc.post_warmup_state.rng_key, *MEANS, extra_fields=EXTRA_FIELDS)
    np.testing.assert_allclose(theta(mcmc), theta(long_run)[:, :40], atol=1e-4)


@pytest.mark.parametrize(
    ("num_warmup", "num_samples"),
    [
        (0, 20),
        pytest.param(1, 20, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
)
def test_hardly_any_warmup(num_warmup: int, num_samples: int, means_kernel: RWPO) -> None:
    """No promise about the draws, but the run gives finite ones in the right shape."""
    mcmc = run_means(means_kernel, num_warmup=num_warmup, num_samples=num_samples)
    assert theta(mcmc).shape == (2, num_samples, 3)
    assert np.isfinite(theta(mcmc)).all()


def test_progress_bar_and_diagnostics(
    means_kernel: RWPO, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one chain the bar shows the kernel's diagnostics; they name numbers."""
    mcmc = run_means(means_kernel, num_chains=1)
    shown = capsys.readouterr().err
    assert "sample: 100%" in shown
    text = mcmc.sampler.get_diagnostics_str(mcmc.last_state)
    assert re.search(r"\d", text)
    assert text in shown


# --------------------------------------------------------------------- starting points


@pytest.mark.parametrize("starts", [(20.0, 20.0), (-20.0, -20.0)])
def test_init_params_are_where_each_chain_starts(starts: tuple[float, float]) -> None:
    """If no chain starts on the other of the two islands, none finds it."""
    init_params = {"x": np.array(starts, np.float32)}
    mcmc = run_mcmc(light_kernel(two_islands), num_chains=2, init_params=init_params)
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert np.all(np.sign(draws) == np.sign(starts)[:, None])


@pytest.mark.slow
def test_init_params_of_one_chain_and_single_sites() -> None:
    """One chain takes its values without a leading axis, in unconstrained space.

    `z.site` collects unconstrained values, `~z.site` drops a site from the samples.
    """
    init_params = {
        "intercept": np.float32(0.1),
        "noise": np.float32(-1.0),  # the logarithm of the site
        "weights": np.zeros(3, np.float32),
    }
    fields = ("z.noise", "z.weights", "~z.intercept", "~z.mean")
    mcmc = run_mcmc(
        light_kernel(lasso_regression), X, y=Y, init_params=init_params, extra_fields=fields
    )
    samples = mcmc.get_samples(group_by_chain=True)
    unconstrained = mcmc.get_extra_fields(group_by_chain=True)
    assert set(samples) == {"noise", "weights"}
    assert samples["weights"].shape == (1, 40, 3)
    assert set(unconstrained) == {"z.noise", "z.weights", "diverging"}
    np.testing.assert_allclose(jnp.exp(unconstrained["z.noise"]), samples["noise"], rtol=1e-5)
    np.testing.assert_array_equal(unconstrained["z.weights"], samples["weights"])


def test_init_to_value_starts_where_uniform_cannot() -> None:
    """The density is exactly zero around the default start."""
    kernel = light_kernel(far_island, init_strategy=init_to_value(values={"x": 50.0}))
    mcmc = run_mcmc(kernel, **STATISTICAL)
    moments = {"x": Moments(np.asarray(50.0), np.asarray(1.0))}
    assert_moments(mcmc.get_samples(group_by_chain=True), moments)


def test_init_to_median() -> None:
    """A strategy that samples the prior."""
    kernel = light_kernel(shrunken_means, init_strategy=init_to_median(num_samples=5))
    assert np.isfinite(theta(run_mcmc(kernel, *MEANS, num_chains=2))).all()


# ------------------------------------------------- new data, kernels used more than once


class _CountedModel:
    """`shrunken_means`, counting how often Python runs it; a model may be any callable."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, y: Any, scale: Any) -> None:
        self.calls += 1
        shrunken_means(y, scale)


def compiled(caplog: pytest.LogCaptureFixture, run: Callable[[], Any]) -> list[str]:
    """Names of the programs that are compiled while ``run`` runs."""
    caplog.clear()
    with jax.log_compiles():
        run()
    messages = [record.getMessage() for record in caplog.records]
    return [m.split()[1] for m in messages if m.startswith("Compiling ")]


def test_a_second_run_does_not_compile_warm_up_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nor for new data of the same shapes; and with `jit_model_args` nothing at all."""

    def shifted(mcmc: MCMC, shift: float) -> Callable[[], None]:
        data = MEANS_DATA + np.float32(shift), MEANS_SCALE
        return lambda: mcmc.run(jax.random.key(1), *data)

    programs = ["jit(prepared)", "jit(placed)", "jit(adapted)"]

    def warm_ups(names: list[str]) -> list[str]:
        return [name for name in names if name in programs]

    made: list[MCMC] = []
    kernel = light_kernel(shrunken_means)
    first = compiled(caplog, lambda: made.append(run_means(kernel)))
    assert warm_ups(first) == programs
    (mcmc,) = made
    assert warm_ups(compiled(caplog, shifted(mcmc, 0.0))) == []
    assert warm_ups(compiled(caplog, shifted(mcmc, 1.0))) == []

    mcmc = run_means(kernel, jit_model_args=True)
    compiled(caplog, shifted(mcmc, 0.0))
    assert compiled(caplog, shifted(mcmc, 1.0)) == []


def _with_target(target_accept_prob: jax.Array) -> tuple[jax.Array, jax.Array]:
    kernel = light_kernel(shrunken_means, num_particles=32, target_accept_prob=target_accept_prob)
    fields = ("adapt_state.step_size",)
    options = {"num_samples": 300, "num_chains": 2, "progress_bar": False, "extra_fields": fields}
    mcmc = run_mcmc(kernel, *MEANS, **options)
    return mcmc.get_samples(group_by_chain=True)["theta"], mcmc.get_extra_fields()[
        "adapt_state.step_size"
    ]


def test_the_target_acceptance_may_be_traced() -> None:
    """One program for all targets; the posterior is the same, the step size is not."""
    num_traces = 0

    @jax.jit
    def with_traced_target(target_accept_prob: jax.Array) -> tuple[jax.Array, jax.Array]:
        nonlocal num_traces
        num_traces += 1
        return _with_target(target_accept_prob)

    draws, step_sizes = zip(*(with_traced_target(t) for t in (0.6, 0.99)), strict=True)
    for chains in draws:
        assert_moments({"theta": chains}, shrunken_means_moments(MEANS_DATA, 0.5), min_ess=100)
    assert np.min(step_sizes[0]) > np.max(step_sizes[1])
    assert num_traces == 1


@pytest.mark.parametrize("num_chains", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_jit_model_args(num_chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New data of the same shape: right answers, the loop is not traced again.

    The Laplace scale is an argument too, so the nonsmooth part of the target changes as well. With
    `dense_mass=False` there is one flow only: where new data make warm-up choose another one than
    before, the loop is another program.
    """
    model = _CountedModel()
    mcmc = run_mcmc(
        light_kernel(model, num_particles=64),
        *MEANS,
        jit_model_args=True,
        num_warmup=100,
        num_samples=400,
        num_chains=num_chains,
    )
    first = model.calls
    counts = []
    for shift in (1.0, 2.0):
        before = model.calls
        mcmc.run(jax.random.key(0), MEANS_DATA + np.float32(shift), MEANS_SCALE + np.float32(shift))
        counts.append(model.calls - before)
    assert_moments(
        mcmc.get_samples(group_by_chain=True),
        shrunken_means_moments(MEANS_DATA + 2, 2.5),
        min_ess=100,
    )
    # Initialization looks at the model on every run, as with NUTS; the loop must not.
    assert counts[0] == counts[1] <= first

    # From a post-warm-up state no initialization is left, and the sites of a draw are known.
    mcmc.post_warmup_state = mcmc.last_state
    before = model.calls
    monkeypatch.setattr(RWPO, "init", None)
    mcmc.run(mcmc.post_warmup_state.rng_key, *MEANS)
    assert model.calls == before


def test_one_kernel_serves_several_runs(lasso: MCMC) -> None:
    """A kernel remembers nothing of its last data, shapes or number of chains."""
    before = np.asarray(lasso.get_samples()["weights"])
    shorter = run_mcmc(lasso.sampler, X[:15, :2], y=Y[:15])
    fresh = run_mcmc(light_kernel(lasso_regression), X[:15, :2], y=Y[:15])
    assert shorter.get_samples()["weights"].shape == (40, 2)
    np.testing.assert_allclose(
        draw_matrix(shorter.get_samples()), draw_matrix(fresh.get_samples()), atol=1e-4
    )

    lasso.run(jax.random.key(0), X, y=Y, extra_fields=EXTRA_FIELDS)
    np.testing.assert_allclose(lasso.get_samples()["weights"], before, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_whole_run_under_vmap_over_data_sets() -> None:
    """Keys, data and everything else are traced; several vectorized chains inside."""
    data = np.stack([MEANS_DATA, MEANS_DATA + 3])

    def run(rng_key: jax.Array, y: jax.Array) -> jax.Array:
        options = {"num_chains": 2, "num_samples": 200, "progress_bar": False}
        mcmc = run_mcmc(RWPO(normal_mean, num_particles=64), y, key=rng_key, **options)
        return mcmc.get_samples(group_by_chain=True)["mu"]

    draws = jax.vmap(run)(jax.random.split(jax.random.key(0)), data)
    assert draws.shape == (2, 2, 200)
    for chains, y in zip(draws, data, strict=True):
        assert_moments({"mu": chains}, normal_mean_moments(y), min_ess=100)


# ---------------------------------------------------------------- potential functions


class _Pair(NamedTuple):
    a: Any
    b: Any


def _standard_potential(tree: Any) -> jax.Array:
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


POTENTIAL_PARAMETERS = {
    "scalar": np.float32(0.3),
    "array": np.zeros((2, 2), np.float32),
    "nested": {
        "u": _Pair(np.zeros(2, np.float32), [np.float32(1.0)]),
        "v": (np.zeros((1, 3), np.float32),),
    },
}


@pytest.mark.parametrize(
    ("structure", "num_chains"),
    [("scalar", 1), ("nested", 2), pytest.param("array", 2, marks=pytest.mark.slow)],
)
def test_potential_fn_takes_any_pytree(structure: str, num_chains: int) -> None:
    """Draws come back in the structure of `init_params`, with the axes of NUTS in front."""
    parameters = POTENTIAL_PARAMETERS[structure]
    if num_chains > 1:
        init_params = jax.tree.map(lambda x: np.stack([x] * num_chains), parameters)
    else:
        init_params = parameters
    kernel = light_kernel(potential_fn=_standard_potential)
    mcmc = run_mcmc(
        kernel, num_chains=num_chains, init_params=init_params, extra_fields=("potential_energy",)
    )
    draws = mcmc.get_samples()
    assert jax.tree.structure(draws) == jax.tree.structure(parameters)
    total = 40 * num_chains
    for leaf, like in zip(jax.tree.leaves(draws), jax.tree.leaves(parameters), strict=True):
        assert leaf.shape == (total, *like.shape)
        assert leaf.dtype == np.float32
    np.testing.assert_allclose(
        mcmc.get_extra_fields()["potential_energy"],
        0.5 * (draw_matrix(draws) ** 2).sum(1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert mcmc.sampler.model is None
    if not isinstance(parameters, dict):  # ArviZ takes no dict of nested values
        assert az.from_numpyro(mcmc)["posterior"]["Param:0"].shape[:2] == (num_chains, 40)


def test_potential_fn_posterior_and_postprocess() -> None:
    """A correlated Gaussian, renamed on the way out by the user's `postprocess_fn`."""
    mcmc = run_mcmc(
        RWPO(potential_fn=gaussian_potential),
        init_params=np.zeros((4, 2), np.float32),
        postprocess_fn=lambda z: {"x": z, "sum": z.sum()},
        **STATISTICAL,
    )
    total = Moments(GAUSSIAN_MEAN.sum(), GAUSSIAN_COVARIANCE.sum())
    moments = {"x": gaussian_moments(), "sum": total}
    assert_moments(mcmc.get_samples(group_by_chain=True), moments)


def test_potential_fn_with_its_nonsmooth_part() -> None:
    """The user names the Laplace part of a potential; the posterior is that of the whole."""
    y, scale = jnp.asarray(MEANS_DATA), 0.5

    def potential(z: dict[str, jax.Array]) -> jax.Array:
        misfit = 0.5 * jnp.sum((z["theta"] - y) ** 2) + 0.5 * z["other"] ** 2
        return misfit + jnp.sum(jnp.abs(z["theta"])) / scale

    laplace_sites = {"theta": dist.Laplace(0.0, scale), "other": None}
    kernel = light_kernel(potential_fn=potential, laplace_sites=laplace_sites, num_particles=64)
    init_params = {"theta": np.zeros((4, 3), np.float32), "other": np.zeros(4, np.float32)}
    fields = ("potential_energy",)
    mcmc = run_mcmc(kernel, init_params=init_params, extra_fields=fields, **STATISTICAL)
    moments = shrunken_means_moments(MEANS_DATA, scale)
    moments["other"] = Moments(np.asarray(0.0), np.asarray(1.0))
    assert_moments(mcmc.get_samples(group_by_chain=True), moments)


# ---------------------------------------------------- posteriors: supports, primitives


def wide_kernel(model: Callable[..., None], **options: Any) -> RWPO:
    """The light kernel, with enough particles for a posterior: all that the default has."""
    return light_kernel(model, num_particles=64, **options)


def check_posterior(
    kernel: RWPO,
    moments: dict[str, Moments],
    *args: Any,
    sites: set[str] | None = None,
    num_samples: int = STATISTICAL["num_samples"],
) -> MCMC:
    """Run at the statistical sizes and compare moments; `sites` are all the keys expected."""
    mcmc = run_mcmc(kernel, *args, **{**STATISTICAL, "num_samples": num_samples})
    samples = mcmc.get_samples(group_by_chain=True)
    if sites is not None:
        assert set(samples) == sites
    assert_moments(samples, moments)
    return mcmc


def test_assert_moments_can_fail() -> None:
    """Negative control: exact draws pass; a shift, a wrong width and a stuck chain do not."""
    draws = np.random.default_rng(0).normal(size=(4, 500, 3))
    truth = {"x": Moments(np.zeros(3), np.ones(3))}
    assert_moments({"x": draws}, truth)
    for wrong in (draws + 0.2, 1.2 * draws, np.zeros_like(draws), np.repeat(draws, 50, 1)[:, :500]):
        with pytest.raises(AssertionError, match="^x: ess"):
            assert_moments({"x": wrong}, truth)


@pytest.mark.slow
def test_constrained_supports() -> None:
    """Simplex, Cholesky factor, ordered, positive, intervals, improper."""
    mcmc = check_posterior(wide_kernel(constrained_sites), constrained_moments())
    samples = mcmc.get_samples()
    np.testing.assert_allclose(samples["simplex"].sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose((samples["cholesky"] ** 2).sum(-1), 1.0, rtol=1e-5)
    assert np.all(np.diff(samples["ordered"], axis=-1) >= 0)
    assert np.all(samples["positive"] > 0)
    assert np.all((samples["interval"] >= -1) & (samples["interval"] <= 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular")
def test_unusual_supports() -> None:
    """Transformed, truncated, circular, zero-sum, and a support that depends on another site."""
    mcmc = check_posterior(RWPO(unusual_sites), unusual_moments())
    samples = mcmc.get_samples()
    assert np.all(samples["below_upper"] <= samples["upper"])
    np.testing.assert_allclose(samples["zero_sum"].sum(-1), 0.0, atol=1e-4)


def test_primitives() -> None:
    """Masks, scales, factors, deterministic and param sites, plates, static arguments.

    The model is a `functools.partial` with Python ints and None among its arguments.
    """
    rng = np.random.default_rng(1)
    y = rng.normal(1.0, 1.0, size=7).astype(np.float32)
    grid = rng.normal(size=(2, 3)).astype(np.float32)
    mask = np.arange(7) % 2 == 0
    model = partial(primitives, num_repeats=2, label=None)
    moments = primitives_moments(y, mask, grid)
    check_posterior(wide_kernel(model), moments, y, mask, grid, sites=set(moments))


def test_handlers_around_the_model() -> None:
    """`condition`, `substitute`, the user's own `reparam` and `scale`."""
    moments = handled_two_levels_moments(MEANS_DATA)
    kernel = wide_kernel(handled_two_levels())
    check_posterior(kernel, moments, MEANS_DATA, 3, sites=set(moments))


def test_scan() -> None:
    """Latent sites inside `scan`, one of them a Laplace random walk."""
    y = np.array([0.5, 0.1, -0.4, 0.9, 1.6, 1.1], np.float32)
    jumps = np.array([1.0, 3.0], np.float32)
    moments = scan_moments(y, jumps)
    check_posterior(wide_kernel(scan_model), moments, y, jumps, sites=set(moments))


def test_forward_mode_differentiation() -> None:
    """Reverse mode cannot differentiate the `while_loop` in this model."""
    kernel = wide_kernel(forward_only, forward_mode_differentiation=True)
    check_posterior(kernel, normal_mean_moments(MEANS_DATA), MEANS_DATA)


# -------------------------------------------------------------------------- Laplace sites


def test_laplace_sites() -> None:
    """Fixed, shifted, asymmetric, expanded, masked, tempered, in plates; a Laplace likelihood."""
    scales = np.array([0.1, 1.0, 10.0], np.float32)
    moments = laplace_moments(scales)
    check_posterior(wide_kernel(laplace_sites), moments, scales, sites=set(moments))


def test_laplace_hierarchies_keep_the_users_sites(capsys: pytest.CaptureFixture[str]) -> None:
    """Latent scales and locations: names as NUTS has them, whatever happens inside."""
    moments = hierarchy_moments()
    mcmc = check_posterior(RWPO(laplace_hierarchies), moments, sites=set(moments))
    # `print_summary` and `z.site` know the latent sites from the state.
    assert set(mcmc.last_state.z) == set(moments) - {"halved"}
    mcmc.print_summary()
    shown = capsys.readouterr().out
    assert "weights[2]" in shown
    assert "_decentered" not in shown


@pytest.mark.slow
def test_latent_scale_takes_the_users_init_params() -> None:
    """`init_params` name the user's sites, also where these are reparameterized inside."""
    init_params = {
        "tau": np.float32(0.0),
        "weights": np.array([0.0, 0.3, 2.0], np.float32),
        "center": np.float32(0.0),
        "around": np.zeros(3, np.float32),
        "width": np.float32(0.0),
        "skewed": np.float32(0.2),
        "parent": np.float32(0.0),
        "child": np.float32(1.0),
    }
    fields = ("z.weights", "~z.around")
    mcmc = run_mcmc(light_kernel(laplace_hierarchies), init_params=init_params, extra_fields=fields)
    samples = mcmc.get_samples()
    assert set(samples) == (set(init_params) | {"halved"}) - {"around"}
    np.testing.assert_array_equal(mcmc.get_extra_fields()["z.weights"], samples["weights"])


@pytest.mark.parametrize(
    "laplace_sites",
    [pytest.param(choice, marks=pytest.mark.slow) for choice in (None, ["theta"])],
    ids=str,
)
def test_choice_of_the_laplace_sites_leaves_the_posterior(
    laplace_sites: list[str] | None,
) -> None:
    kernel = RWPO(shrunken_means, laplace_sites=laplace_sites)
    check_posterior(kernel, shrunken_means_moments(MEANS_DATA, 0.5), *MEANS)


# -------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "joint", "dense_mass": True, "inverse_temperature": 4.0},
        pytest.param(
            {"attention": "marginal", "dense_mass": False, "inverse_temperature": 0.5},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"relative_prox_time": 0.3, "target_accept_prob": 0.9, "num_particles": 100},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: "-".join(options),
)
def test_options_leave_the_posterior(options: dict[str, Any]) -> None:
    """Whatever the transport does, the corrected draws are exact; the temperature tempers."""
    mcmc = run_mcmc(
        RWPO(potential_fn=gaussian_potential, **options),
        init_params=np.zeros((4, 2), np.float32),
        **STATISTICAL,
    )
    moments = gaussian_moments(options.get("inverse_temperature", 1.0))
    assert_moments({"x": mcmc.get_samples(group_by_chain=True)}, {"x": moments})


def test_uncorrected_particles() -> None:
    """Without correction the draws are the noise-free particles: close, and all different.

    The bounds are those of the transport on easy targets, means within a quarter and sds
    within a quarter of the posterior sd; no Monte Carlo error applies to noise-free particles.
    """
    kernel = RWPO(potential_fn=gaussian_potential, corrected=False, num_particles=128)
    init_params = np.zeros((2, 2), np.float32)
    sizes = {"num_warmup": 200, "num_samples": 128, "num_chains": 2}
    draws = np.asarray(
        run_mcmc(kernel, init_params=init_params, **sizes).get_samples(group_by_chain=True)
    )
    truth = gaussian_moments()
    sd = np.sqrt(truth.variance)
    for chain in draws:
        assert_all_distinct(chain)
        assert np.all(np.abs(chain.mean(0) - truth.mean) < 0.25 * sd)
        np.testing.assert_allclose(chain.std(0), sd, rtol=0.25)


# -------------------------------------------------------------------------- robustness


def test_infinite_undefined_and_steep_potentials() -> None:
    """Parts of the space with inf, NaN or gradients of 1e10 do not spoil the run.

    Six in ten of all uniform(-2, 2) starts lie in one of them. (NUTS gets stuck on the steep
    part when it starts there.)
    """
    # Particles turn back at walls, so that more draws are needed for the same effective size.
    mcmc = check_posterior(wide_kernel(hazards), hazard_moments(), num_samples=1500)
    samples = mcmc.get_samples()
    assert np.all(samples["infinite"] >= -0.5)
    assert np.all(samples["undefined"] <= 1.0)
    assert np.all(samples["steep"] < 0.5 + 1e-3)


@pytest.mark.slow
def test_hazards_of_a_potential_fn() -> None:
    """The same for a potential that is infinite on one side of zero."""

    def half_normal(x: jax.Array) -> jax.Array:
        return jnp.where(x > 0, 0.5 * x**2, jnp.inf)

    mcmc = run_mcmc(
        RWPO(potential_fn=half_normal), init_params=np.full(4, 0.5, np.float32), **STATISTICAL
    )
    moments = Moments(np.asarray(np.sqrt(2 / np.pi)), np.asarray(1 - 2 / np.pi))
    assert_moments({"x": mcmc.get_samples(group_by_chain=True)}, {"x": moments})
