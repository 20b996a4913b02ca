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
- ``deblurring``, ``tomography``: isotropic total variation of a photograph of 64 x 64 pixels, from
  a blurred image and from projections in fifteen directions, latent scales of prior and noise
  (:mod:`benchmarks.images`). Its prior is always in the smooth part; only RWPO and NUTS run.
- ``matrix_completion``: a 12 x 9 matrix of rank 2, 57 of whose 108 entries are observed, nuclear
  norm prior, latent scales of the matrix and of the noise.

On ``nile`` and ``air_miles``, RWPO runs with ``target_accept_prob=0.95``.

The samplers are RWPO; RWPO with the prior in its smooth part, ``laplace_sites=None``; NUTS, which
takes subgradients; NUTS on the model in the coordinates in which RWPO moves, which a user would
have to write by hand; MYULA and SK-ROCK (:mod:`benchmarks.proximal_langevin`), in the same
coordinates, with the prior's proximal map; and on ``sparse_group`` an exact Gibbs sampler
(:mod:`benchmarks.posteriors.lasso.sparse_group_gibbs`). A nuclear norm prior is never split off: it
has no second run of RWPO, and none of MYULA. All run four chains, MYULA and SK-ROCK with 200,000
gradients each. ESS is ArviZ's bulk ESS of the worst coordinate. ``error`` is the largest difference
of a posterior mean from that of an exact sampler (NUTS or Gibbs, the run with the largest ESS), in
posterior standard deviations; ``ratio`` is the largest factor between the standard deviations. Both
contain the Monte Carlo errors of the two runs. For MYULA and SK-ROCK, they show the bias that their
ESS does not know of. Gradients are those of all chains.
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
from numpyro.infer import MCMC, NUTS

from benchmarks import images, proximal_langevin
from benchmarks.cell import write_json
from benchmarks.effective_size import smallest_ess
from benchmarks.machine import versions
from benchmarks.posteriors.lasso import sparse_group_gibbs
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

LIMIT_SECONDS = 900.0
NUM_CHAINS, NUM_SAMPLES = 4, 1000
GIBBS_DRAWS = 20_000
SAMPLERS = ("rwpo", "rwpo_whole", "nuts", "nuts_by_hand", "myula", "sk_rock", "gibbs")
SPLIT = tuple(name for name in SAMPLERS if name != "gibbs")
EXACT = ("nuts", "nuts_by_hand", "gibbs")
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
    samplers: tuple[str, ...] = SPLIT
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

    return Case(model, partial(model, by_hand=True), (X, y), samplers=SAMPLERS)


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


def image_case(name: str) -> Case:
    """See the module's docstring."""
    problem = images.PROBLEMS[name]
    data = problem.simulated(images.photograph(*images.PHOTOGRAPHS[0]), 0)
    # 200 updates of warm-up would take minutes: it waits for the scale, the slowest parameter.
    samplers, num_warmup = ("rwpo", "nuts"), images.NUM_WARMUP
    return Case(problem.model, problem.model, data, images.OPTIONS, samplers, num_warmup)


def deblurring() -> Case:
    """See the module's docstring."""
    return image_case("deblurring")


def tomography() -> Case:
    """See the module's docstring."""
    return image_case("tomography")


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
    for f in (
        group_logistic,
        sparse_group,
        nile,
        air_miles,
        deblurring,
        tomography,
        matrix_completion,
    )
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
    return {name: np.asarray(v) for name, v in samples.items()}, total, sampling


def run_gibbs(case: Case) -> tuple[dict[str, np.ndarray], int, int]:
    """The same for the Gibbs sampler of :func:`sparse_group`, which has no gradients."""
    X, y = case.arguments
    chains = [
        sparse_group_gibbs.sample(
            seed, X, y, scale_sd=1.0, noise_sd=2.0, num_warmup=1000, number=GIBBS_DRAWS
        )
        for seed in range(NUM_CHAINS)
    ]
    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}, 0, 0


def measure(name: str, sampler: str) -> dict[str, Any]:
    """Make one run in this process."""
    case, begin = CASES[name](), time.perf_counter()
    if sampler in proximal_langevin.STEPS:
        run = proximal_langevin.run(case.model, case.arguments, sampler, NUM_CHAINS)
    else:
        run = run_gibbs(case) if sampler == "gibbs" else run_kernel(case, sampler)
    draws, total, sampling = run
    draws = {name: values for name, values in draws.items() if name in SITES}
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
            exacts = [done[problem, name] for name in EXACT if (problem, name) in done]
            exact = max(exacts or [record], key=lambda r: r["min_bulk_ess"])
            error = np.abs(np.subtract(record["mean"], exact["mean"])) / np.asarray(exact["sd"])
            gradients = record["num_sampling_gradients"]
            per_gradient = 1000 * record["min_bulk_ess"] / gradients if gradients else np.inf
            ratio = np.asarray(record["sd"]) / np.asarray(exact["sd"])
            numbers = [
                record["num_gradients"],
                gradients / (NUM_CHAINS * NUM_SAMPLES),
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
