"""Problems of the benchmark, most of them regressions with L1 priors: NumPyro models and data.

Every factory in :data:`PROBLEMS` takes no argument and returns the same :class:`Problem` each time:
data come from scikit-learn or from a NumPy generator with a fixed seed. Covariates and responses
are rounded to single precision once, so that runs in either precision see the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes

from benchmarks.posteriors.posteriordb.models import POSTERIORS, load_data

Vector = NDArray[np.float32]


class Problem(NamedTuple):
    """A posterior to sample.

    Attributes:
        name: Key in :data:`PROBLEMS`, and stem of the file with its reference posterior.
        model: NumPyro model.
        kwargs: Keyword arguments of the model, including the data.
        sites: Sites whose posterior is compared with the reference.
        laplace_rates: Rate of the Laplace prior centered at 0, for each site that has one with a
            fixed scale: the nonsmooth part, for samplers that do not find it themselves.
    """

    name: str
    model: Callable[..., None]
    kwargs: dict[str, Any]
    sites: tuple[str, ...]
    laplace_rates: dict[str, float] = {}


def lasso(X: ArrayLike, y: ArrayLike | None = None, *, scale: float) -> None:
    """Bayesian lasso with a fixed Laplace scale and a latent noise scale.

    Source: Park and Casella (2008), *The Bayesian Lasso*, except that the prior scale is not tied
    to the noise, so that the posterior is the exponential of minus the objective of the lasso.

    Args:
        X: Standardized covariates, shape (rows, columns).
        y: Standardized response, shape (rows,).
        scale: Scale of the Laplace prior, in units of the coefficients.
    """
    beta = numpyro.sample("beta", dist.Laplace(0.0, scale).expand([np.shape(X)[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def lasso_latent_scale(X: ArrayLike, y: ArrayLike | None = None) -> None:
    """Bayesian lasso whose Laplace scale is itself latent, with a half-Cauchy prior.

    Args:
        X: Standardized covariates, shape (rows, columns).
        y: Standardized response, shape (rows,).
    """
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Laplace(0.0, scale).expand([np.shape(X)[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def lasso_known_noise(
    X: ArrayLike, y: ArrayLike | None = None, *, scale: float, noise: float
) -> None:
    """Bayesian lasso with fixed Laplace scale and known noise: only coefficients are latent.

    Args:
        X: Covariates, shape (rows, columns).
        y: Response, shape (rows,).
        scale: Scale of the Laplace prior, in units of the coefficients.
        noise: Standard deviation of the response around its mean, in units of ``y``.
    """
    beta = numpyro.sample("beta", dist.Laplace(0.0, scale).expand([np.shape(X)[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, noise), obs=y)


def logistic(X: ArrayLike, y: ArrayLike | None = None, *, scale: float) -> None:
    """Logistic regression with Laplace coefficients, in a plate, and a normal intercept.

    Args:
        X: Standardized covariates, shape (rows, columns).
        y: Classes 0 and 1, shape (rows,).
        scale: Scale of the Laplace prior, in units of the coefficients.
    """
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    with numpyro.plate("column", np.shape(X)[1]):
        beta = numpyro.sample("beta", dist.Laplace(0.0, scale))
    numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def logistic_with_g_prior(
    X: ArrayLike, y: ArrayLike | None = None, *, rate: float, precision: float
) -> None:
    r"""Logistic regression with an L1 prior times a Gaussian g-prior.

    The potential is :math:`\sum_i [\log(1 + e^{x_i\beta}) - y_i x_i\beta]
    + \tfrac{\alpha}{2n} |X\beta|^2 + \lambda |\beta|_1`.

    Args:
        X: Covariates, shape (n, columns).
        y: Classes 0 and 1, shape (n,).
        rate: :math:`\lambda`, the rate of the L1 prior.
        precision: :math:`\alpha`, the weight of the g-prior.
    """
    num_rows, num_columns = np.shape(X)
    beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0 / rate).expand([num_columns]).to_event(1))
    logits = X @ beta
    numpyro.factor("g_prior", -0.5 * precision * (logits**2).mean(-1))
    numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def horseshoe_logistic_model(
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    global_scale: float,
    slab_scale: float,
) -> None:
    r"""Logistic regression with the regularized horseshoe prior, non-centered.

    .. math:: \beta_j = z_j \tau \tilde\lambda_j, \quad
        \tilde\lambda_j^2 = \frac{c^2 \lambda_j^2}{c^2 + \tau^2 \lambda_j^2}, \quad
        z_j \sim N(0, 1), \ \lambda_j \sim C^+(0, 1), \ \tau \sim C^+(0, \tau_0).

    Source: Piironen and Vehtari (2017), *Sparsity information and regularization in the horseshoe
    and other shrinkage priors*, section 2.3. Their slab scale c may be latent; here it is fixed,
    which makes the slab normal. The reason is that where classes are separable the likelihood does
    not bound the coefficients, so with a heavier slab the posterior sds would hardly exist.

    Args:
        X: Standardized covariates, shape (rows, columns).
        y: Classes 0 and 1, shape (rows,).
        global_scale: :math:`\tau_0`.
        slab_scale: c, in units of the coefficients.
    """
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(global_scale))
    with numpyro.plate("column", np.shape(X)[1]):
        z = numpyro.sample("z", dist.Normal())
        local = numpyro.sample("lambda", dist.HalfCauchy(1.0))
        # This is the formula above, written so that a huge scale does not overflow.
        scale = tau * local / jnp.sqrt(1.0 + (tau * local / slab_scale) ** 2)
        beta = numpyro.deterministic("beta", z * scale)
    numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def normal_mixture(weights: ArrayLike, means: ArrayLike) -> None:
    """Mixture of normals with unit variances: no data, exact moments.

    Args:
        weights: Weights of the components, shape (components,).
        means: Centers of the components, shape (components, dim).
    """
    component = dist.Normal(jnp.asarray(means), 1.0).to_event(1)
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.asarray(weights)), component))


def _standardize(x: NDArray[np.float64]) -> Vector:
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)


def diabetes_lasso() -> Problem:
    """Diabetes data of Efron et al. (2004), 442 x 10: strongly correlated, data-dominated."""
    X, y = load_diabetes(return_X_y=True)
    kwargs = {"X": _standardize(X), "y": _standardize(y), "scale": 0.2}
    rates = {"beta": 1.0 / kwargs["scale"]}
    return Problem("diabetes_lasso", lasso, kwargs, ("beta", "sigma"), rates)


def diabetes_lasso_latent_scale() -> Problem:
    """The diabetes data with a latent Laplace scale: the usual hierarchical lasso."""
    X, y = load_diabetes(return_X_y=True)
    kwargs = {"X": _standardize(X), "y": _standardize(y)}
    return Problem(
        "diabetes_lasso_latent_scale", lasso_latent_scale, kwargs, ("beta", "sigma", "scale")
    )


def breast_cancer_logistic() -> Problem:
    """Wisconsin diagnostic breast-cancer data, 569 x 30: nearly separable and collinear."""
    X, y = load_breast_cancer(return_X_y=True)
    kwargs = {"X": _standardize(X), "y": y.astype(np.int32), "scale": 1.0}
    sites = ("beta", "intercept")
    return Problem("breast_cancer_logistic", logistic, kwargs, sites, {"beta": 1.0})


def l1_logistic_d50() -> Problem:
    r"""Logistic regression of Han, Osher and Li (2025), arXiv:2502.16773, d = 50.

    Settings are those of the authors' published script: 10 d rows of independent signs, the first
    floor(d / 4) true coefficients 1 and the others 0, :math:`\lambda = 3d/\pi^2` and
    :math:`\alpha = 3d/(2\pi^2)`. It differs from the script in the random numbers, and in the
    energy of the g-prior, where the script's potential and its gradient disagree by a factor of 2:
    the potential used here is the one whose gradient the script uses.
    """
    dim = 50
    rng = np.random.default_rng(10)
    X = rng.choice([-1.0, 1.0], size=(10 * dim, dim)).astype(np.float32)
    beta = np.where(np.arange(dim) < dim // 4, 1.0, 0.0)
    y = rng.binomial(1, 1.0 / (1.0 + np.exp(-X @ beta))).astype(np.int32)
    kwargs = {"X": X, "y": y, "rate": 3 * dim / np.pi**2, "precision": 1.5 * dim / np.pi**2}
    rates = {"beta": kwargs["rate"]}
    return Problem("l1_logistic_d50", logistic_with_g_prior, kwargs, ("beta",), rates)


def p_much_larger_n() -> Problem:
    """Linear regression with 200 rows, 2000 columns and three nonzero coefficients."""
    num_rows, num_columns, noise = 200, 2000, 6.0
    rng = np.random.default_rng(2000)
    X = rng.standard_normal((num_rows, num_columns)).astype(np.float32)
    beta = np.zeros(num_columns)
    beta[:3] = 3.0, -2.0, 1.5
    y = (X @ beta + noise * rng.standard_normal(num_rows)).astype(np.float32)
    kwargs = {"X": X, "y": y, "scale": 0.15, "noise": noise}
    rates = {"beta": 1.0 / kwargs["scale"]}
    return Problem("p_much_larger_n", lasso_known_noise, kwargs, ("beta",), rates)


def horseshoe_logistic() -> Problem:
    """Breast-cancer data with all pairwise products: 569 x 465, more latent values than rows.

    The global scale is the one that Piironen and Vehtari derive (section 3.3) for ten relevant
    coefficients: p0 / (p - p0) * 2 / sqrt(n), where 2 is the pseudo-scale for balanced classes.
    """
    X, y = load_breast_cancer(return_X_y=True)
    single = (X - X.mean(0)) / X.std(0)
    first, second = np.triu_indices(single.shape[1], 1)
    X = _standardize(np.concatenate([single, single[:, first] * single[:, second]], 1))
    num_rows, num_columns = X.shape
    num_relevant = 10
    global_scale = num_relevant / (num_columns - num_relevant) * 2.0 / np.sqrt(num_rows)
    kwargs = {
        "X": X,
        "y": y.astype(np.int32),
        "global_scale": float(global_scale),
        "slab_scale": 2.0,
    }
    return Problem("horseshoe_logistic", horseshoe_logistic_model, kwargs, ("beta", "intercept"))


def logistic_n100k() -> Problem:
    """Logistic regression with 100,000 simulated rows and 50 columns, half of which have no effect.

    Neighboring covariates have a correlation of 0.5, so that no coordinate is independent.
    """
    num_rows, num_columns, correlation, scale = 100_000, 50, 0.5, 0.05
    rng = np.random.default_rng(100_000)
    X = rng.standard_normal((num_rows, num_columns))
    for k in range(1, num_columns):
        X[:, k] = correlation * X[:, k - 1] + np.sqrt(1 - correlation**2) * X[:, k]
    X = X.astype(np.float32)
    beta = np.where(np.arange(num_columns) % 2, 0.0, rng.laplace(0.0, 0.3, num_columns))
    logits = X @ beta - 0.5
    y = rng.binomial(1, 1.0 / (1.0 + np.exp(-logits))).astype(np.int32)
    kwargs = {"X": X, "y": y, "scale": scale}
    sites = ("beta", "intercept")
    return Problem("logistic_n100k", logistic, kwargs, sites, {"beta": 1.0 / scale})


def four_modes() -> Problem:
    """Four normal modes in two dimensions with unequal weights, six standard deviations apart."""
    kwargs = {
        "weights": np.array([0.4, 0.3, 0.2, 0.1], np.float32),
        "means": np.array([[3, 3], [-3, 3], [-3, -3], [3, -3]], np.float32),
    }
    return Problem("four_modes", normal_mixture, kwargs, ("x",))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "diabetes_lasso": diabetes_lasso,
    "diabetes_lasso_latent_scale": diabetes_lasso_latent_scale,
    "breast_cancer_logistic": breast_cancer_logistic,
    "l1_logistic_d50": l1_logistic_d50,
    "p_much_larger_n": p_much_larger_n,
    "horseshoe_logistic": horseshoe_logistic,
    "logistic_n100k": logistic_n100k,
    "four_modes": four_modes,
}

# The problems with a Laplace prior on most coordinates.
LAPLACE_PROBLEMS = (
    "diabetes_lasso",
    "diabetes_lasso_latent_scale",
    "breast_cancer_logistic",
    "l1_logistic_d50",
    "p_much_larger_n",
    "logistic_n100k",
)


def load_problem(name: str) -> Problem:
    """A problem of this module or a posterior of posteriordb.

    Args:
        name: Key of :data:`PROBLEMS` or of posteriordb's ``POSTERIORS``.

    Returns:
        The problem. A posterior names no sites, because its reference is for functions of them.

    Raises:
        KeyError: If there is no problem or posterior of that name.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]()
    return Problem(name, POSTERIORS[name].model, load_data(name), ())
