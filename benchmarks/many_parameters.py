"""Measures the benefit of a few directions in the metric, with more parameters than particles / 2.

From the repository root::

    python -m benchmarks.many_parameters [--problems NAME ...] [--out FOLDER]

RWPO with the metric that it uses by default in this case, diagonal except in up to 16 directions,
is compared with RWPO with the diagonal one (``dense_mass=False``). Each run has a fresh process;
peak memory is the maximum of its resident set less its size when the model was loaded. Gradients
are those of all chains, including warm-up; effective sizes and R-hat are for the worst coordinate.

- ``normal``: 400 dimensions, unit precision except for four directions of 100 and four of 0.01;
- ``factors_normal``, ``factors_laplace``: logistic regression of 1000 rows on 300 columns that
  share five factors, with normal and with Laplace priors;
- ``p_much_larger_n``: the benchmark's lasso, 200 rows and 2000 columns;
- ``lasso_10000``: the same with 10,000 columns;
- ``network``: a network of one hidden layer with Laplace weights on the diabetes data, 9,997
  parameters; one chain of 64 particles, which are not expected to move between modes.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.infer import MCMC
from sklearn.datasets import load_diabetes

from benchmarks.cell import write_json
from benchmarks.effective_size import smallest_ess
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.convergence import r_hat
from numpyro_rwpo.dynamics.flows import ExactFlow
from numpyro_rwpo.dynamics.moves import HamiltonianMove

LIMIT_SECONDS = 900.0


class Case(NamedTuple):
    """A model with its data and the settings of its run."""

    model: Callable[..., None]
    arguments: dict[str, Any]
    num_chains: int = 2
    num_warmup: int = 200
    num_samples: int = 1000
    num_particles: int | None = None
    metrics: tuple[str, ...] = ("auto", "diagonal")


def normal(precision: ArrayLike) -> None:
    """A normal density by its precision matrix."""
    shape = (np.shape(precision)[0],)
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), shape))
    numpyro.factor("density", -0.5 * x @ precision @ x)


def logistic(X: ArrayLike, y: ArrayLike, prior: dist.Distribution) -> None:
    """Logistic regression with an intercept."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", prior.expand([np.shape(X)[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def wide_lasso(X: ArrayLike, y: ArrayLike) -> None:
    """50 times more coefficients than observations."""
    beta = numpyro.sample("beta", dist.Laplace(0.0, 0.1).expand([np.shape(X)[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


def network(X: ArrayLike, y: ArrayLike, num_hidden: int) -> None:
    """One hidden layer with Laplace weights."""

    def weights(name: str, *shape: int) -> jax.Array:
        prior = dist.Laplace(0.0, 1 / np.sqrt(shape[0]))
        return numpyro.sample(name, prior.expand(shape).to_event(len(shape)))

    inner = X @ weights("inner", np.shape(X)[1], num_hidden)
    hidden = jnp.tanh(inner + weights("bias", num_hidden))
    mean = hidden @ weights("outer", num_hidden)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def normal_case() -> Case:
    rng, dim = np.random.default_rng(0), 400
    directions = np.linalg.qr(rng.normal(size=(dim, 8)))[0]
    spectrum = np.repeat([0.01, 100.0], 4)
    precision = np.eye(dim) + (directions * (spectrum - 1)) @ directions.T
    return Case(normal, {"precision": precision.astype(np.float32)})


def factors_case(prior: dist.Distribution) -> Case:
    rng = np.random.default_rng(0)
    num_rows, num_columns, num_factors = 1000, 300, 5
    factors = rng.normal(size=(num_rows, num_factors))
    common = factors @ rng.normal(size=(num_factors, num_columns)) / np.sqrt(num_factors)
    X = rng.normal(size=(num_rows, num_columns)) + 3 * common
    X = (X - X.mean(0)) / X.std(0)
    beta = np.where(rng.random(num_columns) < 0.05, rng.normal(size=num_columns), 0.0)
    y = rng.random(num_rows) < 1 / (1 + np.exp(-X @ beta))
    arguments = {"X": X.astype(np.float32), "y": y.astype(np.int32), "prior": prior}
    return Case(logistic, arguments)


def lasso_case() -> Case:
    problem = load_problem("p_much_larger_n")
    return Case(problem.model, problem.kwargs)


def wide_lasso_case() -> Case:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 10_000)).astype(np.float32)
    y = (X[:, :5].sum(1) + rng.normal(size=200)).astype(np.float32)
    return Case(wide_lasso, {"X": X, "y": y})


def network_case() -> Case:
    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    data = {"X": X.astype(np.float32), "y": y.astype(np.float32), "num_hidden": 833}
    return Case(network, data, 1, 100, 128, 64, ("auto",))


CASES: dict[str, Callable[[], Case]] = {
    "normal": normal_case,
    "factors_normal": lambda: factors_case(dist.Normal(0.0, 0.3)),
    "factors_laplace": lambda: factors_case(dist.Laplace(0.0, 0.15)),
    "p_much_larger_n": lasso_case,
    "lasso_10000": wide_lasso_case,
    "network": network_case,
}


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, metric: str) -> dict[str, Any]:
    """Make one run in this process: its gradients, seconds, memory and worst coordinate."""
    case = CASES[name]()
    kernel = RWPO(
        case.model,
        num_particles=case.num_particles,
        dense_mass="auto" if metric == "auto" else False,
    )
    mcmc = MCMC(
        kernel,
        num_warmup=case.num_warmup,
        num_samples=case.num_samples,
        num_chains=case.num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    before, begin = _memory_mb(), time.perf_counter()
    mcmc.run(jax.random.key(0), extra_fields=("num_steps", "accept_prob"), **case.arguments)
    state = jax.block_until_ready(mcmc.last_state)
    seconds = time.perf_counter() - begin
    fields = mcmc.get_extra_fields(group_by_chain=True)
    draws = np.concatenate(
        [
            np.asarray(x).reshape(case.num_chains, case.num_samples, -1)
            for x in mcmc.get_samples(group_by_chain=True).values()
        ],
        axis=-1,
    )
    move = state.move
    flow = "no U-turn"
    if isinstance(move, HamiltonianMove):
        flow = "exact" if isinstance(move.flow, ExactFlow) else "harmonic"
    return {
        "problem": name,
        "metric": metric,
        "status": "complete",
        "dim": int(state.ensemble.particles.shape[-1]),
        "num_particles": int(state.ensemble.particles.shape[-2]),
        "num_chains": case.num_chains,
        "num_gradients": int(state.num_gradients.sum()),
        "gradients_a_draw": float(np.mean(fields["num_steps"])),
        "accept_prob": float(np.mean(fields["accept_prob"])),
        "flows": [flow],
        "seconds": seconds,
        "peak_memory_mb": _memory_mb() - before,
        "min_bulk_ess": smallest_ess(np.moveaxis(draws, -1, 0), "bulk"),
        "max_r_hat": float(np.max(r_hat(draws))),
        "num_divergences": int(np.sum(mcmc.get_extra_fields()["diverging"])),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }


def _known(value: float | None) -> float:
    return float("nan") if value is None else value  # JSON cannot represent NaN


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each run."""
    rows = []
    order = {name: k for k, name in enumerate(CASES)}
    for record in sorted(records, key=lambda r: (order[r["problem"]], r["metric"])):
        label = f"{record['problem']}, {record['metric']}"
        if (device := record.get("device", "cpu")) != "cpu":
            label += f" ({device})"
        if record["status"] != "complete":
            rows.append([label, record["reason"], *[""] * 8])
            continue
        columns = ("num_gradients", "gradients_a_draw", "min_bulk_ess", "max_r_hat")
        columns += ("accept_prob", "num_divergences", "peak_memory_mb")
        shape = f"{record['num_chains']} x {record['num_particles']} x {record['dim']}"
        flows = ", ".join(record["flows"])
        rows.append([label, shape, flows, *(three_digits(_known(record[c])) for c in columns)])
    header = ["problem, metric", "chains x particles x parameters", "flow", "gradients"]
    header += ["per draw", "bulk ESS", "R-hat", "acceptance", "divergences", "peak memory, MB"]
    return markdown_table(header, rows)


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", nargs=2, metavar=("METRIC", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        write_json(Path(args.worker[1]), measure(args.problems[0], args.worker[0]))
        return
    folder = args.out / "many_parameters"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.problems:
        for metric in CASES[name]().metrics:
            path = folder / f"{name}--{metric}.json"
            if path.exists():
                continue
            arguments = ["benchmarks.many_parameters", "--problems", name]
            arguments += ["--worker", metric, str(path)]
            record = {"problem": name, "metric": metric}
            run_process(arguments, path, limit=LIMIT_SECONDS, record=record)
            print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "many_parameters.json", {"records": records})
    (args.out / "many_parameters.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
