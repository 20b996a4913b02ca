r"""RWPO on priors that tie coordinates together, beside NUTS and MYULA on the same models.

From the repository root::

    python -m benchmarks.structured [--problems NAME ...] [--out FOLDER]

- ``group_logistic``: logistic regression of 569 rows on ten covariates of five classes each, group
  lasso prior with a latent scale (the gallery's example);
- ``sparse_group``: linear regression of 100 rows on eight groups of four columns, two of which have
  effects, sparse group lasso prior with a latent scale;
- ``nile``: the level of the Nile, 100 years, fused lasso prior with latent scales of level and
  noise;
- ``air_miles``: piecewise linear trend of 24 years, latent scales (the gallery's example);
- ``deblurring``: isotropic total variation of a photograph of 64 x 64 pixels, latent scales of
  prior and noise (the gallery's example). Its prior is always in the smooth part; only RWPO and
  NUTS run.
- ``matrix_completion``: a 12 x 9 matrix of rank 2, 57 of whose 108 entries are observed, nuclear
  norm prior, latent scales of the matrix and of the noise.

On ``nile`` and ``air_miles``, RWPO runs with ``target_accept_prob=0.95``.

The samplers are RWPO; RWPO with the prior in its smooth part, ``laplace_sites=None``; NUTS, which
takes subgradients; NUTS on the model in the coordinates in which RWPO moves, which a user would
have to write by hand; and MYULA (:mod:`benchmarks.samplers.myula`, Durmus, Moulines and Pereyra
2018, eq. 9), in the same coordinates, with the prior's proximal map. A nuclear norm prior is never
split off: it has no second run of RWPO, and none of MYULA. All run four chains, MYULA with 200,000
steps each. ESS is ArviZ's bulk ESS of the worst coordinate. ``error`` is the largest difference of
a posterior mean from that of NUTS (its run with the larger ESS), in posterior standard deviations;
``ratio`` is the largest factor between the standard deviations. Both contain the Monte Carlo errors
of the two runs. For MYULA, they show the bias that its ESS does not know of. Gradients are those of
all chains.
"""

import argparse
import ast
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_uniform

from benchmarks import deblurring as images
from benchmarks.cell import write_json
from benchmarks.effective_size import smallest_ess
from benchmarks.machine import versions
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.convergence import r_hat
from numpyro_rwpo.distributions import (
    FusedLaplace,
    GroupLaplace,
    NuclearNorm,
    SparseGroupLaplace,
)
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation

LIMIT_SECONDS = 900.0
NUM_CHAINS, NUM_SAMPLES = 4, 1000
MYULA_STEPS, MYULA_WARMUP, MYULA_THINNING = 200_000, 20_000, 200
SAMPLERS = ("rwpo", "rwpo_whole", "nuts", "nuts_by_hand", "myula")
SITES = (
    "effect",
    "image",
    "intercept",
    "matrix",
    "noise",
    "scale",
    "trend",
)  # those of the models as written
EXAMPLES = Path(__file__).parents[1] / "examples"


class Case(NamedTuple):
    """A model with its data, and the same model in standard coordinates."""

    model: Callable[..., None]
    by_hand: Callable[..., None]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = MappingProxyType({})  # of RWPO
    samplers: tuple[str, ...] = SAMPLERS
    num_warmup: int = 200  # of RWPO


def scaled_site(name: str, site: dist.Distribution, scale: Any) -> Any:
    """A site of unit scale, and its value in units of ``scale``, written by hand."""
    return numpyro.deterministic(name, scale * numpyro.sample(f"standard_{name}", site))


def plain_site(name: str, site: dist.Distribution, _: Any) -> Any:
    """The site as it is."""
    return numpyro.sample(name, site)


def site_of(by_hand: bool) -> Callable[..., Any]:
    """How a model makes a site whose scale is latent."""
    return scaled_site if by_hand else plain_site


def group_logistic() -> Case:
    """See the module's docstring; the data are those of the example."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    values, y = data.data[:, :10], 1 - data.target.astype(np.float32)
    edges = np.quantile(values, np.arange(1, 5) / 5, axis=0)
    classes = (values[:, None] > edges[None]).sum(1)
    X = (classes[..., None] == np.arange(5)).astype(np.float32)

    def model(X: Any, y: Any, by_hand: bool = False) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 3.0))
        with numpyro.plate("measurements", X.shape[1]):
            effect = site_of(by_hand)("effect", GroupLaplace(1.0 if by_hand else scale, 5), scale)
        logits = intercept + jnp.einsum("nmc,mc->n", X, effect)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return Case(model, partial(model, by_hand=True), (X - X.mean(0), y))


def sparse_group() -> Case:
    """See the module's docstring."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 8, 4)).astype(np.float32)
    beta = np.zeros((8, 4))
    beta[:2] = rng.normal(size=(2, 4)) * np.array([1.0, 0.0, 1.0, 0.0])
    y = (np.einsum("ngc,gc->n", X, beta) + rng.normal(size=100)).astype(np.float32)

    def model(X: Any, y: Any, by_hand: bool = False) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        noise = numpyro.sample("noise", dist.HalfNormal(2.0))
        with numpyro.plate("groups", X.shape[1]):
            prior = SparseGroupLaplace(1.0 if by_hand else scale, 4)
            effect = site_of(by_hand)("effect", prior, scale)
        numpyro.sample("y", dist.Normal(jnp.einsum("ngc,gc->n", X, effect), noise), obs=y)

    return Case(model, partial(model, by_hand=True), (X, y))


def line(y: Any, order: int, noise_prior: dist.Distribution) -> Case:
    """A piecewise polynomial with latent scales."""

    def model(y: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(0.5))
        noise = numpyro.sample("noise", noise_prior)
        trend = numpyro.sample("trend", FusedLaplace(scale, y.shape[0], order))
        numpyro.sample("y", dist.Normal(trend, noise), obs=y)

    def by_hand(y: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(0.5))
        noise = numpyro.sample("noise", noise_prior)
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (order,))
        start = numpyro.sample("start", flat)
        unit = numpyro.sample("unit", dist.Laplace().expand([y.shape[0] - order]).to_event(1))
        line = FusedLaplace(1.0, y.shape[0], order)
        trend = line.to_vector(jnp.concatenate([start, scale * unit]))
        trend = numpyro.deterministic("trend", trend)
        numpyro.sample("y", dist.Normal(trend, noise), obs=y)

    # With the default, 0.8, `diagnose` reports divergences and drift, and the scale of the Nile's
    # level comes out too small.
    options = {"target_accept_prob": 0.95}
    return Case(model, by_hand, (np.asarray(y, np.float32),), options)


def example_data(name: str, variable: str) -> np.ndarray:
    """The numbers of an example's array, read from its script."""
    for node in ast.parse((EXAMPLES / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == variable:
            return np.asarray(ast.literal_eval(node.value.args[0]), np.float32)
    raise KeyError(variable)


def nile() -> Case:
    """See the module's docstring."""
    flow = example_data("plot_change_points", "flow")
    return line((flow - flow.mean()) / flow.std(), 1, dist.HalfNormal(1.0))


def air_miles() -> Case:
    """See the module's docstring."""
    miles = example_data("plot_trend_filtering", "miles")
    return line(np.log2(miles / 1000), 2, dist.LogNormal(np.log(0.05), 0.5))


def deblurring() -> Case:
    """See the module's docstring."""
    data = images.simulated(images.photograph(*images.PHOTOGRAPHS[0]), 0)
    # 200 updates of warm-up would take minutes: it waits for the scale, the slowest parameter.
    samplers, num_warmup = ("rwpo", "nuts"), images.NUM_WARMUP
    return Case(images.model, images.model, data, images.OPTIONS, samplers, num_warmup)


def matrix_completion() -> Case:
    """See the module's docstring."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9))
    noisy = (matrix + 0.3 * rng.normal(size=matrix.shape)).astype(np.float32)
    rows, columns = np.nonzero(rng.random(matrix.shape) < 0.6)

    def model(rows: Any, columns: Any, y: Any, by_hand: bool = False) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        noise = numpyro.sample("noise", dist.LogNormal(np.log(0.3), 0.5))
        prior = NuclearNorm(1.0 if by_hand else scale, (12, 9))
        matrix = site_of(by_hand)("matrix", prior, scale)
        numpyro.sample("y", dist.Normal(matrix[rows, columns], noise), obs=y)

    arguments = (rows, columns, noisy[rows, columns])
    samplers = ("rwpo", "nuts", "nuts_by_hand")
    return Case(model, partial(model, by_hand=True), arguments, samplers=samplers)


CASES = {
    f.__name__: f
    for f in (group_logistic, sparse_group, nile, air_miles, deblurring, matrix_completion)
}


def run_kernel(case: Case, sampler: str) -> tuple[dict[str, np.ndarray], int, int]:
    """Draws by site, (chains, draws, ...), and gradients of the whole run and of its draws."""
    if sampler in ("nuts", "nuts_by_hand"):
        kernel, num_warmup = NUTS(case.model if sampler == "nuts" else case.by_hand), 1000
    else:
        sites = "auto" if sampler == "rwpo" else None
        kernel = RWPO(case.model, laplace_sites=sites, **case.options)
        num_warmup = case.num_warmup
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    warmup = 0
    if isinstance(kernel, NUTS):
        mcmc.warmup(
            jax.random.key(0), *case.arguments, extra_fields=("num_steps",), collect_warmup=True
        )
        warmup = int(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum())
    mcmc.run(jax.random.key(0), *case.arguments, extra_fields=("num_steps",))
    sampling = int(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum())
    total = warmup + sampling
    if isinstance(kernel, RWPO):
        total = int(mcmc.last_state.num_gradients.sum())
    samples = mcmc.get_samples(group_by_chain=True)
    draws = {name: np.asarray(v) for name, v in samples.items() if name in SITES}
    return draws, total, sampling


def run_myula(case: Case) -> tuple[dict[str, np.ndarray], int, int]:
    """The same for MYULA, with lambda = 1 / L and a step of 1 / (4 L).

    L is the largest curvature of the smooth part, by power iterations, over positions of a short
    first run with an L that is ten times that of the start.
    """
    source = ModelSource(
        case.model,
        case.arguments,
        {},
        init_strategy=init_to_uniform(radius=0.5),
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    bound = source.bind(case.arguments, {})
    target = bound.target()
    prior = target.prior

    def curvature(x: jax.Array) -> jax.Array:
        """Largest eigenvalue of the smooth part's Hessian in size, over chains."""

        def gradient(v: jax.Array) -> jax.Array:
            return target.value_and_grad(v)[1]

        def power(_: int, v: jax.Array) -> jax.Array:
            product = jax.jvp(gradient, (x,), (v,))[1]
            return product / jnp.linalg.norm(product, axis=1, keepdims=True)

        v = jax.lax.fori_loop(0, 30, power, jnp.ones_like(x) / x.shape[1] ** 0.5)
        return jnp.abs((v * jax.jvp(gradient, (x,), (v,))[1]).sum(1)).max()

    def walk(key: jax.Array, x: jax.Array, lipschitz: jax.Array, number: int) -> Any:
        step = 0.25 / lipschitz

        def once(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            pull = prior.moreau_gradient(x, 1 / lipschitz) + target.value_and_grad(x)[1]
            noise = jax.random.normal(key, x.shape)
            return x - step * pull + jnp.sqrt(2 * step) * noise, None

        def kept(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, _ = jax.lax.scan(once, x, jax.random.split(key, MYULA_THINNING))
            return x, x

        return jax.lax.scan(kept, x, jax.random.split(key, number))

    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)
    x = bound.prepare(keys, None).start
    walk = jax.jit(walk, static_argnums=3)
    top = jax.jit(curvature)(x)
    for k in range(5):
        x, _ = walk(jax.random.key(k), x, 10 * top, MYULA_WARMUP // (5 * MYULA_THINNING))
        top = jnp.maximum(jax.jit(curvature)(x), 1e-3)
    _, path = walk(jax.random.key(9), x, top, MYULA_STEPS // MYULA_THINNING)

    def constrained(x: jax.Array) -> Any:
        return bound.constrain(bound.emit(x, jnp.zeros(()))[0])

    values = jax.jit(jax.vmap(jax.vmap(constrained)))(jnp.moveaxis(path, 1, 0))
    draws = {name: np.asarray(v) for name, v in values.items()}
    sampling = MYULA_STEPS * NUM_CHAINS
    return draws, sampling + MYULA_WARMUP * NUM_CHAINS, sampling


def measure(name: str, sampler: str) -> dict[str, Any]:
    """Make one run in this process."""
    case, begin = CASES[name](), time.perf_counter()
    run = run_myula(case) if sampler == "myula" else run_kernel(case, sampler)
    draws, total, sampling = run
    flat = np.concatenate(
        [draws[k].reshape(*draws[k].shape[:2], -1) for k in sorted(draws)], axis=-1
    )
    ess = smallest_ess(np.moveaxis(flat, -1, 0), "bulk")
    return {
        "problem": name,
        "sampler": sampler,
        "status": "complete",
        "dim": int(flat.shape[-1]),
        "num_gradients": total,
        "num_sampling_gradients": sampling,
        "min_bulk_ess": ess,
        "max_r_hat": float(np.max(r_hat(flat))),
        "mean": flat.mean((0, 1)).tolist(),
        "sd": flat.std((0, 1)).tolist(),
        "seconds": time.perf_counter() - begin,
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each run."""
    rows = []
    done = {(r["problem"], r["sampler"]): r for r in records if r["status"] == "complete"}
    for problem in CASES:
        for sampler in SAMPLERS:
            record = done.get((problem, sampler))
            if record is None:
                continue
            exact = max(
                (done.get((problem, name), record) for name in ("nuts", "nuts_by_hand")),
                key=lambda r: r["min_bulk_ess"],
            )
            error = np.abs(np.subtract(record["mean"], exact["mean"])) / np.asarray(exact["sd"])
            per_gradient = 1000 * record["min_bulk_ess"] / record["num_sampling_gradients"]
            ratio = np.asarray(record["sd"]) / np.asarray(exact["sd"])
            numbers = [
                record["num_gradients"],
                record["num_sampling_gradients"] / (NUM_CHAINS * NUM_SAMPLES),
                record["min_bulk_ess"],
                per_gradient,
                record["max_r_hat"],
                error.max(),
                np.exp(np.abs(np.log(ratio)).max()),
            ]
            rows.append([f"{problem} ({record['dim']}), {sampler}", *map(three_digits, numbers)])
    header = ["problem (parameters), sampler", "gradients", "per draw", "bulk ESS"]
    header += ["ESS per 1000 gradients", "R-hat", "error of means, sd", "worst ratio of sds"]
    return markdown_table(header, rows)


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", nargs=2, metavar=("SAMPLER", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        write_json(Path(args.worker[1]), measure(args.problems[0], args.worker[0]))
        return
    folder = args.out / "structured"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.problems:
        for sampler in CASES[name]().samplers:
            path = folder / f"{name}--{sampler}.json"
            if path.exists():
                continue
            arguments = ["benchmarks.structured", "--problems", name]
            arguments += ["--worker", sampler, str(path)]
            record = {"problem": name, "sampler": sampler}
            run_process(arguments, path, limit=LIMIT_SECONDS, record=record)
            print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "structured.json", {"records": records})
    (args.out / "structured.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
