"""Models whose posterior moments are known, and the statistics that compare draws with them.

Moments come from closed forms or from numerical quadrature in double precision, never from
another sampler. Models stand at module level so that a finished ``MCMC`` can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions import constraints, transforms
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.reparam import LocScaleReparam

from numpyro_rwpo import RWPO

Log = Callable[[np.ndarray], np.ndarray]


class Moments(NamedTuple):
    """Mean and variance of one site, each in the site's shape."""

    mean: np.ndarray
    variance: np.ndarray


def scalar_moments(mean: float, variance: float) -> Moments:
    """Moments of a scalar site."""
    return Moments(np.asarray(mean), np.asarray(variance))


# ------------------------------------------------------------------------------ running

# The optimization of users' programs, which the tests go without to save time. Without it, XLA
# computes what several outputs share once for each, and may round it differently.
OPTIMIZED = {"xla_backend_optimization_level": "3"}


def run_mcmc(
    kernel: MCMCKernel,
    *args: Any,
    key: int | jax.Array = 0,
    num_warmup: int = 40,
    num_samples: int = 40,
    num_chains: int = 1,
    chain_method: str | Callable[..., Any] = "vectorized",
    thinning: int = 1,
    jit_model_args: bool = False,
    progress_bar: bool = True,
    postprocess_fn: Callable[[Any], Any] | None = None,
    extra_fields: Sequence[str] = (),
    init_params: Any = None,
    **kwargs: Any,
) -> MCMC:
    """Run a kernel through NumPyro's ``MCMC`` and return it; small sizes unless told otherwise."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        thinning=thinning,
        jit_model_args=jit_model_args,
        progress_bar=False,
        postprocess_fn=postprocess_fn,
    )
    # Set here because NumPyro's constructor turns the bar off on CI and under xdist. With the
    # bar, `MCMC` compiles one step and reuses it; without, it compiles the loop on every run.
    mcmc.progress_bar = progress_bar
    rng_key = jax.random.key(key) if isinstance(key, int) else key
    mcmc.run(rng_key, *args, extra_fields=extra_fields, init_params=init_params, **kwargs)
    return mcmc


def light_kernel(model: Callable[..., Any] | None = None, **options: Any) -> RWPO:
    """A kernel that compiles in half the time of the default one, for tests of mechanics.

    It has few particles, and neither the dense metric nor the copula of the tests of posteriors.
    """
    light: dict[str, Any] = {"num_particles": 16, "attention": "joint", "dense_mass": False}
    return RWPO(model, **{**light, **options})


def draw_matrix(samples: Any) -> np.ndarray:
    """Flatten draws of one chain, (draws, ...) per leaf, to one row per draw."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(samples)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


# --------------------------------------------------------------------------- statistics


def mcse_z(draws: Any, mean: Any) -> np.ndarray:
    """(Monte Carlo mean - mean) in Monte Carlo standard errors; draws (chains, draws, ...).

    The standard error is sd / sqrt(ESS); NumPyro's ESS counts the spread between chains, so
    chains that disagree make it wide rather than the z-score large: read it with `ess`.
    """
    draws = np.asarray(draws, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # draws that never move
        standard_error = draws.std(axis=(0, 1)) / np.sqrt(effective_sample_size(draws))
        return np.asarray((draws.mean(axis=(0, 1)) - mean) / standard_error)


def assert_moments(
    samples: Mapping[str, Any],
    moments: Mapping[str, Moments],
    *,
    max_z: float = 4.5,
    min_ess: float = 200.0,
) -> None:
    """Check mean and variance of every site against the truth, in Monte Carlo errors.

    Args:
        samples: Draws grouped by chain, (chains, draws, ...) per site.
        moments: Truth per site; sites not named here are not looked at.
        max_z: Largest |z| allowed. Two-sided normal tail at 4.5: 7e-6 per number, so a file
            with some 300 numbers fails by chance once in 500 seeds.
        min_ess: Smallest effective sample size allowed: below it the test would have no power.
    """
    failures = []
    for name, truth in moments.items():
        draws = np.asarray(samples[name], dtype=np.float64)
        assert draws.shape[2:] == np.shape(truth.mean), (name, draws.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            ess = np.min(effective_sample_size(draws))
        z_mean = mcse_z(draws, truth.mean)
        z_variance = mcse_z((draws - truth.mean) ** 2, truth.variance)
        # Written so that NaN (a chain that never moved) fails too.
        good = ess >= min_ess and np.all(np.abs([z_mean, z_variance]) <= max_z)
        if not good:
            failures.append(
                f"{name}: ess {ess:.0f}; z of the mean {np.round(z_mean, 1).tolist()}; "
                f"z of the variance {np.round(z_variance, 1).tolist()}; "
                f"mean {draws.mean((0, 1)).tolist()} (truth {np.asarray(truth.mean).tolist()}); "
                f"variance {draws.var((0, 1)).tolist()} "
                f"(truth {np.asarray(truth.variance).tolist()})"
            )
    assert not failures, "\n".join(failures)


# --------------------------------------------------------------------------- quadrature


def quadrature(log_density: Log, lower: float, upper: float, points: int = 200_001) -> Moments:
    """Moments of a density on [lower, upper], known up to a constant, by the trapezoid rule."""
    x = np.linspace(lower, upper, points)
    log = log_density(x)
    density = np.exp(log - log.max())
    density /= np.trapezoid(density, x)
    mean = np.trapezoid(density * x, x)
    return Moments(np.asarray(mean), np.asarray(np.trapezoid(density * (x - mean) ** 2, x)))


def hierarchy_quadrature(
    log_hyper: Log,
    log_children: Sequence[Callable[[np.ndarray, np.ndarray], np.ndarray]],
    hyper_range: tuple[float, float],
    child_range: tuple[float, float],
    hyper_points: int = 601,
    child_points: int = 4_001,
) -> tuple[Moments, list[Moments]]:
    """Moments when children are independent given one hyperparameter.

    Args:
        log_hyper: Log prior of the hyperparameter.
        log_children: One ``log p(child, its data | hyper)`` per child, of (child, hyper) arrays.
        hyper_range: Interval of the hyperparameter.
        child_range: Interval of the children.
        hyper_points: Midpoints on the first interval, so that its ends are never touched.
        child_points: Trapezoid points on the second.
    """
    width = (hyper_range[1] - hyper_range[0]) / hyper_points
    hyper = hyper_range[0] + width * (np.arange(hyper_points) + 0.5)
    child = np.linspace(*child_range, child_points)
    log_evidence, firsts, seconds = log_hyper(hyper), [], []
    for log_child in log_children:
        log = log_child(child[None, :], hyper[:, None])
        top = log.max(axis=1, keepdims=True)
        density = np.exp(log - top)
        total = np.trapezoid(density, child, axis=1)
        log_evidence = log_evidence + np.log(total) + top[:, 0]
        firsts.append(np.trapezoid(density * child, child, axis=1) / total)
        seconds.append(np.trapezoid(density * child**2, child, axis=1) / total)
    weight = np.exp(log_evidence - log_evidence.max())
    weight /= weight.sum()

    def moments(first: np.ndarray, second: np.ndarray) -> Moments:
        mean = weight @ first
        return Moments(mean, weight @ second - mean**2)

    children = [moments(*pair) for pair in zip(firsts, seconds, strict=True)]
    return moments(hyper, hyper**2), children


def stack_moments(parts: Sequence[Moments], shape: tuple[int, ...] | None = None) -> Moments:
    """Put scalar moments together into one site's."""
    mean, variance = (np.stack(column) for column in zip(*parts, strict=True))
    return (
        Moments(mean, variance)
        if shape is None
        else Moments(mean.reshape(shape), variance.reshape(shape))
    )


def log_normal(x: Any, loc: Any, scale: Any) -> Any:
    """Normal log density up to terms free of ``x`` and ``loc``."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale)


def log_laplace(x: Any, loc: Any, scale: Any, asymmetry: float = 1.0) -> Any:
    """Log density of NumPyro's (asymmetric) Laplace distribution, up to a constant."""
    z = np.asarray(x) - loc
    return -np.abs(z) / np.where(z < 0, scale * asymmetry, scale / asymmetry) - np.log(scale)


# ------------------------------------------------------------- a regression for mechanics


def regression_data() -> tuple[np.ndarray, np.ndarray]:
    """A small data set, (24, 3) and (24,), in float32."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 3)).astype(np.float32)
    y = X @ np.array([1.0, 0.0, -2.0], np.float32) + 0.5 * rng.normal(size=24)
    return X, y.astype(np.float32)


def lasso_regression(X: Any, y: Any = None, *, offset: float = 0.0) -> None:
    """Laplace, Normal and positive sites, a deterministic site, plates, a keyword argument."""
    num_data, num_features = X.shape
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("features", num_features):
        weights = numpyro.sample("weights", dist.Laplace(0.0, 0.5))
    mean = numpyro.deterministic("mean", X @ weights + intercept + offset)
    with numpyro.plate("data", num_data):
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def normal_mean(y: Any) -> None:
    """Conjugate normal mean: mu ~ N(0, 2^2), y ~ N(mu, 1)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal_mean_moments(y: np.ndarray) -> dict[str, Moments]:
    """Posterior of `normal_mean`."""
    variance = 1 / (1 / 4 + len(y))
    return {"mu": Moments(np.asarray(variance * np.sum(y)), np.asarray(variance))}


def shrunken_means(y: Any, scale: Any) -> None:
    """One Laplace(0, scale) mean per observation; the scale comes as an argument."""
    with numpyro.plate("data", y.shape[0]):
        theta = numpyro.sample("theta", dist.Laplace(0.0, scale))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def shrunken_means_moments(y: np.ndarray, scale: float) -> dict[str, Moments]:
    """Posterior of `shrunken_means`, coordinate by coordinate."""
    return {
        "theta": stack_moments(
            [
                quadrature(lambda x, v=v: log_laplace(x, 0, scale) + log_normal(v, x, 1), -12, 12)
                for v in np.asarray(y, float)
            ]
        )
    }


# --------------------------------------------------- a correlated Gaussian, as a potential

GAUSSIAN_MEAN = np.array([1.0, -2.0])
GAUSSIAN_COVARIANCE = np.array([[1.0, 0.9], [0.9, 2.0]])


def gaussian_potential(x: jax.Array) -> jax.Array:
    """Potential of a correlated Gaussian of an array of two numbers."""
    centered = x - jnp.asarray(GAUSSIAN_MEAN, x.dtype)
    return 0.5 * centered @ jnp.asarray(np.linalg.inv(GAUSSIAN_COVARIANCE), x.dtype) @ centered


def gaussian_moments(inverse_temperature: float = 1.0) -> Moments:
    """Moments of `gaussian_potential`, tempered."""
    return Moments(GAUSSIAN_MEAN, np.diag(GAUSSIAN_COVARIANCE) / inverse_temperature)


# -------------------------------------------------------------------- constrained supports


def constrained_sites() -> None:
    """Independent sites on many supports, all with known moments."""
    numpyro.sample("simplex", dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))
    cholesky = numpyro.sample("cholesky", dist.LKJCholesky(3, concentration=2.0))
    numpyro.deterministic("correlations", (cholesky @ cholesky.T)[jnp.tril_indices(3, -1)])
    ordered = numpyro.sample("ordered", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    numpyro.factor("order_statistics", dist.Normal(0.0, 1.0).log_prob(ordered).sum())
    numpyro.sample("positive", dist.Gamma(3.0, 2.0))
    numpyro.sample("unit", dist.Beta(2.0, 5.0))
    numpyro.sample("interval", dist.Uniform(-1.0, 3.0))
    improper = numpyro.sample("improper", dist.ImproperUniform(constraints.real, (2,), ()))
    numpyro.factor("made_proper", dist.Normal(2.0, 0.5).log_prob(improper).sum())


def unusual_sites() -> None:
    """Rarer supports, all with known moments."""
    steps = dist.Normal(0.0, 0.5).expand([3]).to_event(1)
    numpyro.sample("cutpoints", dist.TransformedDistribution(steps, transforms.OrderedTransform()))
    numpyro.sample("above", dist.TruncatedNormal(0.0, 1.0, low=0.5))
    numpyro.sample("angle", dist.VonMises(0.5, 3.0))
    numpyro.sample("zero_sum", dist.ZeroSumNormal(1.0, (4,)))
    upper = numpyro.sample("upper", dist.Gamma(4.0, 2.0))
    numpyro.sample("below_upper", dist.Uniform(0.0, upper))  # a support that moves


def constrained_moments() -> dict[str, Moments]:
    """Moments of `constrained_sites`."""
    dirichlet = np.array([0.2, 0.3, 0.5])
    # Order statistics of three standard normals.
    extreme = 1.5 / np.sqrt(np.pi)
    outer, middle = 1 + np.sqrt(3) / (2 * np.pi) - extreme**2, 1 - np.sqrt(3) / np.pi
    return {
        "simplex": Moments(dirichlet, dirichlet * (1 - dirichlet) / 11),
        # Each correlation is 2 Beta(5/2, 5/2) - 1.
        "correlations": Moments(np.zeros(3), np.full(3, 1 / 6)),
        "ordered": Moments(np.array([-extreme, 0, extreme]), np.array([outer, middle, outer])),
        "positive": scalar_moments(1.5, 0.75),
        "unit": scalar_moments(2 / 7, 10 / 392),
        "interval": scalar_moments(1.0, 4 / 3),
        "improper": Moments(np.full(2, 2.0), np.full(2, 0.25)),
    }


def unusual_moments() -> dict[str, Moments]:
    """Moments of `unusual_sites`."""
    step, step_variance = np.exp(1 / 8), (np.exp(1 / 4) - 1) * np.exp(1 / 4)  # log-sd 1/2
    return {
        "cutpoints": Moments(np.arange(3) * step, 0.25 + np.arange(3) * step_variance),
        "above": quadrature(lambda x: log_normal(x, 0, 1), 0.5, 12),
        "angle": quadrature(lambda x: 3 * np.cos(x - 0.5), -np.pi, np.pi),
        "zero_sum": Moments(np.zeros(4), np.full(4, 3 / 4)),
        "upper": scalar_moments(2.0, 1.0),
        "below_upper": scalar_moments(1.0, 5 / 3 - 1),
    }


# ------------------------------------------------------------------ handlers and primitives


def primitives(
    y: Any, mask: Any, grid: Any, num_repeats: int = 2, label: str | None = None
) -> None:
    """Masks, scale, factor, deterministic and param sites, nested and full subsample plates."""
    masked = numpyro.sample("masked", dist.Normal(0.0, 1.0))
    handled = numpyro.sample("handled", dist.Normal(0.0, 1.0))
    scaled = numpyro.sample("scaled", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", y.shape[0], subsample_size=y.shape[0]):
        batch = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y_masked", dist.Normal(masked, 1.0).mask(mask), obs=batch)
        with handlers.mask(mask=mask):
            numpyro.sample("y_handled", dist.Normal(handled, 1.0), obs=batch)
        with handlers.scale(scale=0.5):
            numpyro.sample("y_scaled", dist.Normal(scaled, 1.0), obs=batch)
    factored = numpyro.sample("factored", dist.Normal(0.0, 1.0))
    numpyro.factor("tilt", -1.5 * factored**2 + factored)
    for i in range(num_repeats):
        numpyro.sample(f"repeated_{i}" if label is None else label, dist.Normal(i, 1.0))
    numpyro.sample("shifted", dist.Normal(numpyro.param("shift", 1.5), 1.0))
    rows, columns = grid.shape
    with numpyro.plate("rows", rows, dim=-2), numpyro.plate("columns", columns, dim=-1):
        cells = numpyro.sample("cells", dist.Normal(0.0, 1.0))
        numpyro.deterministic("doubled", 2 * cells)
        numpyro.sample("y_cells", dist.Normal(cells, 1.0), obs=grid)
    numpyro.deterministic("total", masked + handled)


def primitives_moments(y: np.ndarray, mask: np.ndarray, grid: np.ndarray) -> dict[str, Moments]:
    """Posterior of `primitives`; every site is Gaussian."""

    def posterior(precision: Any, weighted_data: Any) -> Moments:
        return Moments(
            np.asarray(weighted_data / (1 + precision)),
            np.broadcast_to(1 / (1 + precision), np.shape(weighted_data)),
        )

    half = posterior(mask.sum(), y[mask].sum())
    cells = posterior(1.0, grid)
    return {
        "masked": half,
        "handled": half,
        "scaled": posterior(0.5 * len(y), 0.5 * y.sum()),
        "factored": scalar_moments(0.25, 0.25),
        "repeated_0": scalar_moments(0.0, 1.0),
        "repeated_1": scalar_moments(1.0, 1.0),
        "shifted": scalar_moments(1.5, 1.0),
        "cells": cells,
        "doubled": Moments(2 * cells.mean, 4 * cells.variance),
        "total": Moments(2 * half.mean, 2 * half.variance),
    }


def two_levels(y: Any, num_groups: int) -> None:
    """A small hierarchy for handlers to work on."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("phi", dist.Normal(numpyro.param("shift", 0.0), 1.0))
    with numpyro.plate("groups", num_groups):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def handled_two_levels() -> Callable[..., None]:
    """`two_levels` conditioned, substituted, reparameterized by the user and tempered."""
    model = handlers.condition(two_levels, data={"mu": 0.7})
    model = handlers.substitute(model, data={"shift": 5.0})
    model = handlers.reparam(model, config={"theta": LocScaleReparam(centered=0)})
    return handlers.scale(model, scale=2.0)


def handled_two_levels_moments(y: np.ndarray) -> dict[str, Moments]:
    """Posterior of `handled_two_levels`: every log density counts twice."""
    theta = Moments((0.7 + y) / 2, np.full(len(y), 1 / 4))
    return {
        "phi": scalar_moments(5.0, 0.5),
        "theta": theta,
        "theta_decentered": Moments(theta.mean - 0.7, theta.variance),
    }


def scan_model(y: Any, jumps: Any) -> None:
    """A Gaussian autoregression and a Laplace random walk, both inside `scan`."""

    def walk(previous: Any, observed: Any) -> tuple[Any, None]:
        state = numpyro.sample("state", dist.Normal(0.9 * previous, 0.5))
        numpyro.sample("y", dist.Normal(state, 1.0), obs=observed)
        return state, None

    def jump(previous: Any, observed: Any) -> tuple[Any, None]:
        level = numpyro.sample("level", dist.Laplace(previous, 0.5))
        numpyro.sample("jumps", dist.Normal(level, 1.0), obs=observed)
        return level, None

    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    scan(walk, start, y)
    scan(jump, jnp.zeros(()), jumps)


def scan_moments(y: np.ndarray, jumps: np.ndarray) -> dict[str, Moments]:
    """Posterior of `scan_model`: a Gaussian solve, and a grid for the two jumps."""
    size = len(y) + 1
    precision = np.diag(np.r_[1.0, np.full(size - 1, 1.0)])  # start's prior; the observations
    for t in range(1, size):
        difference = np.zeros(size)
        difference[[t - 1, t]] = -0.9, 1.0
        precision += np.outer(difference, difference) / 0.25
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.r_[0.0, y]
    variance = np.diag(covariance)

    grid = np.linspace(-10, 10, 2001)
    first, second = grid[:, None], grid[None, :]
    log = log_laplace(first, 0, 0.5) + log_normal(jumps[0], first, 1)
    log = log + log_laplace(second, first, 0.5) + log_normal(jumps[1], second, 1)
    density = np.exp(log - log.max())
    density /= density.sum()
    marginals = [density.sum(1), density.sum(0)]
    level_mean = np.array([p @ grid for p in marginals])
    level_square = np.array([p @ grid**2 for p in marginals])
    return {
        "start": Moments(mean[0], variance[0]),
        "state": Moments(mean[1:], variance[1:]),
        "level": Moments(level_mean, level_square - level_mean**2),
    }


# ------------------------------------------------------------------------- Laplace sites

OBSERVED = 1.3  # every site below is observed once with unit normal noise
ROBUST_DATA = np.array([0.2, 0.5, 4.0])


def laplace_sites(scales: Any) -> None:
    """Laplace sites in every dress whose parameters depend on no other site."""

    def observe(name: str, value: Any) -> None:
        data = jnp.full_like(value, OBSERVED)
        numpyro.sample(f"{name}_data", dist.Normal(value, 1.0), obs=data)

    def latent(name: str, fn: dist.Distribution) -> None:
        observe(name, numpyro.sample(name, fn))

    latent("plain", dist.Laplace(0.0, 0.5))
    latent("shifted", dist.Laplace(2.0, 0.5))
    latent("asymmetric", dist.AsymmetricLaplace(0.3, 0.5, 2.0))
    latent("quantile", dist.AsymmetricLaplaceQuantile(0.0, 0.25, 0.5))  # Laplace(0, 1/2)
    latent("vector", dist.Laplace(0.0, 1.0).expand([2]).to_event(1))
    affine = transforms.AffineTransform(1.0, 2.0)
    latent("affine", dist.TransformedDistribution(dist.Laplace(0.0, 0.25), affine))
    with numpyro.plate("scales", len(scales)):
        latent("scaled", dist.Laplace(0.0, scales))
    with numpyro.plate("pair", 2):
        latent("masked", dist.Laplace(0.0, 0.5).mask(jnp.array([True, False])))
        with handlers.mask(mask=jnp.array([False, True])):
            handler_masked = numpyro.sample("handler_masked", dist.Laplace(0.0, 0.5))
        observe("handler_masked", handler_masked)
    with handlers.scale(scale=3.0):
        tempered = numpyro.sample("tempered", dist.Laplace(0.0, 1.0))
    observe("tempered", tempered)
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1):
        latent("grid", dist.Laplace(0.0, jnp.array([[0.2], [2.0]])))
    center = numpyro.sample("robust_center", dist.Normal(0.0, 2.0))
    with numpyro.plate("robust_data", len(ROBUST_DATA)):
        numpyro.sample("robust", dist.Laplace(center, 0.7), obs=jnp.asarray(ROBUST_DATA))


def laplace_moments(scales: np.ndarray) -> dict[str, Moments]:
    """Posterior of `laplace_sites`; all coordinates are independent."""

    def one(log_prior: Log) -> Moments:
        return quadrature(lambda x: log_prior(x) + log_normal(x, OBSERVED, 1), -12, 12)

    def plain(scale: float, loc: float = 0.0) -> Moments:
        return one(lambda x: log_laplace(x, loc, scale))

    flat = one(np.zeros_like)
    return {
        "plain": plain(0.5),
        "shifted": plain(0.5, 2.0),
        "asymmetric": one(lambda x: log_laplace(x, 0.3, 0.5, 2.0)),
        "quantile": plain(0.5),
        "vector": stack_moments([plain(1.0)] * 2),
        "affine": plain(0.5, 1.0),
        "scaled": stack_moments([plain(scale) for scale in scales]),
        "masked": stack_moments([plain(0.5), flat]),
        "handler_masked": stack_moments([flat, plain(0.5)]),
        "tempered": plain(1 / 3),
        "grid": stack_moments([plain(s) for s in (0.2, 0.2, 2.0, 2.0)], (2, 2)),
        "robust_center": quadrature(
            lambda x: log_normal(x, 0, 2) + log_laplace(ROBUST_DATA[:, None], x, 0.7).sum(0),
            -15,
            15,
        ),
    }


HIERARCHY_DATA = np.array([-0.3, 0.4, 2.0])


def laplace_hierarchies() -> None:
    """Laplace sites whose scale, location or parent is itself latent."""

    def observe(name: str, value: Any, data: Any, noise: float) -> None:
        numpyro.factor(f"{name}_data", dist.Normal(value, noise).log_prob(data).sum())

    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("features", 3):
        weights = numpyro.sample("weights", dist.Laplace(0.0, tau))
    observe("weights", weights, HIERARCHY_DATA, 0.5)
    numpyro.deterministic("halved", weights / 2)

    center = numpyro.sample("center", dist.Normal(0.0, 1.0))
    around = numpyro.sample("around", dist.Laplace(center, 0.5).expand([3]).to_event(1))
    observe("around", around, HIERARCHY_DATA, 1.0)

    width = numpyro.sample("width", dist.HalfNormal(1.0))
    skewed = numpyro.sample("skewed", dist.AsymmetricLaplace(0.2, width, 2.0))
    observe("skewed", skewed, OBSERVED, 1.0)

    parent = numpyro.sample("parent", dist.Laplace(0.0, 1.0))
    child = numpyro.sample("child", dist.Laplace(parent, 0.5))
    observe("child", child, OBSERVED, 1.0)


def hierarchy_moments() -> dict[str, Moments]:
    """Posterior of `laplace_hierarchies`."""

    def normal_data(data: float, noise: float, log_prior: Callable[..., Any]) -> Any:
        return lambda child, hyper: log_prior(child, hyper) + log_normal(child, data, noise)

    def half_normal(x: np.ndarray) -> np.ndarray:
        return -0.5 * x**2

    tau, weights = hierarchy_quadrature(
        half_normal,
        [normal_data(v, 0.5, lambda x, s: log_laplace(x, 0, s)) for v in HIERARCHY_DATA],
        (0, 7),
        (-8, 8),
    )
    center, around = hierarchy_quadrature(
        half_normal,
        [normal_data(v, 1.0, lambda x, c: log_laplace(x, c, 0.5)) for v in HIERARCHY_DATA],
        (-7, 7),
        (-12, 12),
    )
    width, (skewed,) = hierarchy_quadrature(
        half_normal,
        [normal_data(OBSERVED, 1.0, lambda x, s: log_laplace(x, 0.2, s, 2.0))],
        (0, 7),
        (-12, 12),
    )
    parent, (child,) = hierarchy_quadrature(
        lambda x: log_laplace(x, 0, 1),
        [normal_data(OBSERVED, 1.0, lambda x, p: log_laplace(x, p, 0.5))],
        (-15, 15),
        (-15, 15),
    )
    coefficients = stack_moments(weights)
    return {
        "tau": tau,
        "weights": coefficients,
        "halved": Moments(coefficients.mean / 2, coefficients.variance / 4),
        "center": center,
        "around": stack_moments(around),
        "width": width,
        "skewed": skewed,
        "parent": parent,
        "child": child,
    }


# ---------------------------------------------------------------------- hostile potentials


def hazards() -> None:
    """Standard normals cut off by an infinite, a NaN and a 1e10-steep potential."""
    infinite = numpyro.sample("infinite", dist.Normal(0.0, 1.0))
    numpyro.factor("infinite_wall", jnp.where(infinite < -0.5, -jnp.inf, 0.0))
    undefined = numpyro.sample("undefined", dist.Normal(0.0, 1.0))
    numpyro.factor("undefined_wall", jnp.where(undefined > 1.0, jnp.nan, 0.0))
    steep = numpyro.sample("steep", dist.Normal(0.0, 1.0))
    numpyro.factor("steep_wall", -1e10 * jax.nn.relu(steep - 0.5))


def hazard_moments() -> dict[str, Moments]:
    """Truncated normals: what is left of `hazards`."""

    def standard(x: np.ndarray) -> np.ndarray:
        return -0.5 * x**2

    return {
        "infinite": quadrature(standard, -0.5, 12),
        "undefined": quadrature(standard, -12, 1.0),
        "steep": quadrature(standard, -12, 0.5),
    }


def two_islands() -> None:
    """Two unit normals at -20 and 20 with nothing between: a chain stays where it starts."""
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    log_left = dist.Normal(-20.0, 1.0).log_prob(x)
    log_right = dist.Normal(20.0, 1.0).log_prob(x)
    numpyro.factor("islands", jnp.logaddexp(log_left, log_right))


def far_island() -> None:
    """A unit normal at 50 that is exactly zero farther than 5 away."""
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    log_density = dist.Normal(50.0, 1.0).log_prob(x)
    numpyro.factor("island", jnp.where(jnp.abs(x - 50.0) < 5.0, log_density, -jnp.inf))


def forward_only(y: Any) -> None:
    """The conjugate mean behind a `while_loop`, which reverse mode cannot differentiate."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    start = (0, jnp.zeros_like(mu))
    halves = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] + mu / 2), start)
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Normal(halves[1], 1.0), obs=y)
