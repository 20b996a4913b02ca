"""Compares the learned flows on Bayesian inverse problems, trained from the density.

From the repository root::

    python -m benchmarks.flow_inverse [--problems NAMES] [--flows NAMES] [--seeds 3] [--out FOLDER]
    python -m benchmarks.flow_inverse --report    # table and figure from stored results

Both flows get the same drift network, initialization, optimizer, draws and number of gradient
steps: first on the reverse Kullback-Leibler divergence, then on the forward one, by importance
sampling. The ODE makes eight times as many evaluations of the drift, because with fewer, training
exploits the error of the solver. Both start from the same normal distribution, at the optimum of a
smoothed posterior and with the curvature there. Learning rates were chosen in pilot runs, for each
flow and problem. The results go to one file, with a record for each problem, flow, seed and loss;
runs with a record are not repeated.

The flows are judged against a long exact run of RWPO, which itself is judged by R-hat and by NUTS:
largest error of a mean in posterior sds, sds, sliced W2, energy distance and share of coordinates
near zero; and by importance sampling: efficiency and Pareto k-hat. The loss is reported as a KL
divergence: its difference from minus the log evidence, which is computed by importance sampling
with a density fitted to the exact run. The density of the ODE is judged with a finer solver and the
exact trace.
"""

import argparse
import json
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpyro.infer import MCMC, NUTS

from benchmarks.cell import write_json
from benchmarks.flow_samples import KINDS, sliced_w2, spread
from benchmarks.inverse_problems import PROBLEMS, InverseProblem
from benchmarks.machine import versions
from benchmarks.posteriors.posteriordb.compare import r_hat
from benchmarks.report import markdown_table
from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.importance import (
    coverage_of_ratios,
    fitted_ratios,
    importance_evidence,
)
from numpyro_rwpo.diagnostics.plots.style import COLORS
from numpyro_rwpo.flow import (
    ForwardKL,
    NeuralODEFlow,
    ReverseKL,
    SparseTransformerFlow,
    energy_distance,
    train,
)
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.priors.laplace import laplace_prior

NUM_LAYERS, NUM_ODE_STEPS = 2, 8
LOSSES = {"reverse KL": ReverseKL, "then forward KL": ForwardKL}
NUM_STEPS, NUM_SAMPLES = 1000, 1024  # gradient steps on each loss, and draws per step
RELATIVE_TIME = 0.1


class Setting(NamedTuple):
    """Settings for one problem.

    Attributes:
        width: Units of the network; with more units than unknowns it can represent any linear map.
        num_particles: Number of points to which the transformer's density is fitted.
        learning_rates: Learning rates for the two losses, by flow.
    """

    width: int
    num_particles: int
    learning_rates: dict[str, tuple[float, float]]


SETTINGS = {
    "deconvolution": Setting(
        128, 8192, {"sparse transformer": (0.005, 0.002), "neural ODE": (0.01, 0.001)}
    ),
    "elliptic": Setting(
        32, 4096, {"sparse transformer": (0.02, 0.01), "neural ODE": (0.02, 0.005)}
    ),
}
FINE_STEPS = 16
EXACT_DRAWS = Path("benchmarks/results/cells")  # not under version control
NUM_DRAWS, NUM_DENSITY, NUM_ENERGY = 16_000, 2000, 2000
_CHUNK = 250  # points at which the exact trace is computed at a time
NUM_CHAINS, NUM_WARMUP = 4, 500


def near_zero(problem: InverseProblem, theta: np.ndarray) -> float:
    """Share of unknowns (n, dim) whose distance from 0 is within a tenth of their prior's scale."""
    return float((np.abs(theta) < 0.1 * problem.scale).mean())


@cache
def exact_draws(name: str) -> np.ndarray:
    """RWPO's draws of the unknowns by chain, (NUM_CHAINS, NUM_DRAWS / NUM_CHAINS, dim).

    They are stored in a file, so that flows can be trained on another machine.
    """
    path = EXACT_DRAWS / f"exact_draws_{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = _run(RWPO(PROBLEMS[name]().model), NUM_DRAWS // NUM_CHAINS)
        np.save(path, draws.astype(np.float32))
    return np.load(path).astype(np.float64)


def _run(kernel: Any, num_samples: int) -> np.ndarray:
    mcmc = MCMC(
        kernel,
        num_warmup=NUM_WARMUP,
        num_samples=num_samples,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    return np.asarray(mcmc.get_samples(group_by_chain=True)["theta"], np.float64)


def moment_errors(draws: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Largest error of a mean in sds and extreme ratios of sds, for (n, dim) and (m, dim)."""
    sd = exact.std(0)
    ratio = draws.std(0) / sd
    return {
        "mean_error": float((np.abs(draws.mean(0) - exact.mean(0)) / sd).max()),
        "min_sd": float(ratio.min()),
        "max_sd": float(ratio.max()),
    }


def judge_reference(name: str) -> dict[str, Any]:
    """R-hat of the exact run, errors relative to NUTS, distance between its halves, evidence."""
    problem, chains = PROBLEMS[name](), exact_draws(name)
    draws = chains.reshape(-1, problem.dim)
    half = len(draws) // 2
    density, ratios = fitted_ratios(
        jax.random.key(1),
        draws.astype(np.float32),
        lambda x: np.asarray(problem.log_density(x)),
        laplace_prior(1 / problem.scale, 0.0),
        attention=find_head("copula"),
        relative_time=0.1,
        num_proposals=NUM_DRAWS,
    )
    log_evidence, error, _ = importance_evidence(ratios)
    fitted = coverage_of_ratios(ratios, len(draws))
    nuts = _run(NUTS(problem.model), 2000).reshape(-1, problem.dim)
    rng = np.random.default_rng(0)
    return {
        "problem": name,
        "r_hat": float(max(r_hat(x) for x in np.moveaxis(chains, 2, 0))),
        "against_nuts": moment_errors(draws, nuts),
        "floor_w2": sliced_w2(rng, draws[:half], draws[half:]),
        "near_zero": near_zero(problem, draws),
        "log_evidence": log_evidence,
        "log_evidence_error": error,
        "fitted_efficiency": fitted.efficiency,
        "fitted_k_hat": fitted.k_hat,
    }


def starting_normal(problem: InverseProblem) -> tuple[np.ndarray, np.ndarray]:
    """Mean (dim,) and covariance (dim, dim) of a normal distribution near the posterior.

    The mean is the optimum of a smoothed posterior, in which the root of x^2 + b^2 replaces the |x|
    of the prior. The covariance is from the Gauss-Newton curvature there and the prior's variance.
    """

    def residual(theta: jax.Array) -> jax.Array:
        return (problem.y - problem.forward(theta)) / problem.noise

    def objective(unit: jax.Array) -> jax.Array:  # takes positions in units of the prior's scales
        prior = jnp.sum(jnp.sqrt(unit**2 + 1))
        return 0.5 * jnp.sum(residual(problem.scale * unit) ** 2) + prior

    search = jax.jit(lambda start: minimize(objective, start, method="BFGS").x)
    mean = problem.scale * np.asarray(search(jnp.zeros(problem.dim)))
    jacobian = np.asarray(jax.jacfwd(residual)(jnp.asarray(mean)), np.float64)
    precision = jacobian.T @ jacobian + np.diag(0.5 / problem.scale.astype(np.float64) ** 2)
    return mean, np.linalg.inv(precision)


def new_flow(kind: str, name: str, seed: int) -> Any:
    """A flow that starts at the normal distribution of :func:`starting_normal`.

    Its base has the marginal scales; the quadratic part of its potential gives the correlations.
    """
    problem, setting = PROBLEMS[name](), SETTINGS[name]
    mean, covariance = starting_normal(problem)
    sd = np.sqrt(np.diag(covariance))
    base: dict[str, Any] = {"location": mean, "scale": sd, "rng_key": jax.random.key(seed)}
    spectrum, rotation = np.linalg.eigh(covariance / np.outer(sd, sd))
    if kind == "sparse transformer":
        flow: Any = SparseTransformerFlow(
            problem.dim,
            NUM_LAYERS,
            setting.width,
            1 / problem.scale,
            # Of the variance given all other unknowns: a layer moves points by T times a score,
            # which is as steep as the posterior's narrowest direction.
            RELATIVE_TIME / np.diag(np.linalg.inv(covariance)),
            "copula",
            num_particles=setting.num_particles,
            **base,
        )
        growth = NUM_LAYERS * (spectrum ** (0.5 / NUM_LAYERS) - 1)
    else:
        flow = NeuralODEFlow(problem.dim, NUM_ODE_STEPS, setting.width, trace="hutchinson", **base)
        growth = 0.5 * np.log(spectrum)
    # Velocity -(A'B + B'A)/2 z; the last column and row belong to the time.
    left, right = np.eye(problem.dim + 1), np.zeros((problem.dim + 1, problem.dim + 1))
    right[:-1, :-1] = -(rotation * growth) @ rotation.T
    single = jnp.result_type(float)
    quadratic = jnp.asarray(left, single), jnp.asarray(right, single)
    return eqx.tree_at(lambda f: (f.potential.left, f.potential.right), flow, quadratic)


@eqx.filter_jit
def _draw(flow: Any, rng_key: jax.Array, num_draws: int) -> jax.Array:
    return flow.sample(rng_key, num_draws)


@eqx.filter_jit
def _log_prob(flow: Any, x: jax.Array) -> jax.Array:
    if isinstance(flow, SparseTransformerFlow):
        return flow.log_prob(x)
    return jax.lax.map(flow.log_prob, x.reshape(-1, _CHUNK, x.shape[1])).ravel()


def judge(flow: Any, name: str, log_evidence: float, seed: int) -> dict[str, float]:
    """Distances of a trained flow to the posterior."""
    problem = PROBLEMS[name]()
    if isinstance(flow, NeuralODEFlow):
        flow = flow.with_solver(num_steps=FINE_STEPS)
    x = _draw(flow, jax.random.key(200 + seed), NUM_DRAWS)
    few = x[:NUM_DENSITY]
    ratios = np.asarray(problem.log_density(few), np.float64) - np.asarray(_log_prob(flow, few))
    coverage = coverage_of_ratios(ratios, 0)
    draws, rng = np.asarray(x, np.float64), np.random.default_rng(seed)
    exact = exact_draws(name).reshape(-1, problem.dim)
    some = rng.permutation(exact)[:NUM_ENERGY].astype(np.float32)
    return {
        **moment_errors(draws, exact),
        "sliced_w2": sliced_w2(rng, draws, exact),
        "energy": float(jax.jit(energy_distance)(x[:NUM_ENERGY], some)),
        "kl": log_evidence - float(ratios.mean()),
        "efficiency": coverage.efficiency,
        "k_hat": coverage.k_hat,
        "near_zero": near_zero(problem, draws),
    }


def run(name: str, kind: str, seed: int, log_evidence: float) -> list[dict[str, Any]]:
    """Train one flow on one problem with one seed, and judge it after each loss."""
    problem, flow, rows = PROBLEMS[name](), new_flow(kind, name, seed), []
    learning_rates = SETTINGS[name].learning_rates[kind]
    for (loss, make), learning_rate in zip(LOSSES.items(), learning_rates, strict=True):
        result = train(
            jax.random.key(seed),
            flow,
            make(problem.log_density, NUM_SAMPLES),
            num_steps=NUM_STEPS,
            learning_rate=learning_rate,
        )
        flow = result.flow
        row = {
            "problem": name,
            "flow": kind,
            "seed": seed,
            "loss": loss,
            **judge(flow, name, log_evidence, seed),
            "monitored": (result.monitored + log_evidence).tolist(),
            "device": jax.devices()[0].device_kind,
        }
        print(json.dumps({k: v for k, v in row.items() if k != "monitored"}), flush=True)
        rows.append(row)
    return rows


def time_steps(name: str, kind: str) -> dict[str, Any]:
    """Milliseconds per gradient step on each loss, without compilation."""
    problem, times = PROBLEMS[name](), {}
    for loss, make in LOSSES.items():
        step = make(problem.log_density, NUM_SAMPLES)
        result = train(jax.random.key(0), new_flow(kind, name, 0), step, num_steps=100)
        times[loss] = float(1e3 * np.diff(result.seconds)[0] / 50)
    device = jax.devices()[0].device_kind
    return {"problem": name, "flow": kind, "milliseconds": times, "device": device}


MEASURES = {
    "mean_error": "largest mean error (sd)",
    "min_sd": "smallest sd ratio",
    "max_sd": "largest sd ratio",
    "kl": "KL (nats)",
    "efficiency": "IS efficiency",
    "k_hat": "k-hat",
    "sliced_w2": "sliced W2",
    "energy": "energy distance",
    "near_zero": "near zero",
}


def table(content: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds of both flows, and the exact run."""
    header = ["problem, flow, loss", *MEASURES.values(), "ms per step"]
    lines, times = [], step_times(content)
    for reference in content["references"]:
        name = reference["problem"]
        for kind, loss in product(KINDS, LOSSES):
            cell = [
                row
                for row in content["rows"]
                if (row["problem"], row["flow"], row["loss"]) == (name, kind, loss)
            ]
            if cell:
                line = [spread([row[measure] for row in cell]) for measure in MEASURES]
                speed = times.get((name, kind), {}).get(loss)
                in_words = "–" if speed is None else f"{speed:.0f}"
                lines.append([f"{name}, {kind}, {loss}", *line, in_words])
        lines.append([f"{name}, exact run", *_reference_cells(reference), "–"])
    return markdown_table(header, lines)


def step_times(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Milliseconds per step by loss, for each problem and flow that was timed."""
    return {(t["problem"], t["flow"]): t["milliseconds"] for t in content["times"]}


def _reference_cells(reference: dict[str, Any]) -> list[str]:
    """The exact run compared with NUTS, and a density fitted to its draws as a proposal."""
    known = reference["against_nuts"] | {
        "efficiency": reference["fitted_efficiency"],
        "k_hat": reference["fitted_k_hat"],
        "sliced_w2": reference["floor_w2"],
        "near_zero": reference["near_zero"],
    }
    return [f"{known[measure]:.3f}" if measure in known else "–" for measure in MEASURES]


def draw(content: dict[str, Any], path: Path) -> None:
    """Plot reverse KL against gradient steps and seconds, with one row per problem."""
    names = [reference["problem"] for reference in content["references"]]
    times, first = step_times(content), next(iter(LOSSES))
    figure = Figure(figsize=(8, 2.9 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for line, name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        for kind, color in zip(KINDS, COLORS[:2], strict=True):
            for row in content["rows"]:
                # The other loss has no known minimum.
                if (row["problem"], row["flow"], row["loss"]) == (name, kind, first):
                    steps = 50 * np.arange(1, len(row["monitored"]) + 1)
                    seconds = times.get((name, kind), {first: np.nan})[first] / 1e3
                    for axes, unit in zip(line, (1.0, seconds), strict=True):
                        axes.plot(
                            steps * unit, row["monitored"], color=color, alpha=0.5, linewidth=1
                        )
            line[0].plot([], [], color=color, label=kind)
        for axes, label in zip(line, ("gradient steps", "seconds, compilation aside"), strict=True):
            axes.set(yscale="log", title=name, xlabel=label)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].legend(frameon=False, fontsize="small")
    figure.supylabel("loss above minus the evidence (nats)", fontsize="medium")
    figure.savefig(path, dpi=110)


def report(folder: Path) -> None:
    """Write the table and the figure from the stored results."""
    content = json.loads((folder / "flow_inverse.json").read_text())
    (folder / "flow_inverse.md").write_text(table(content) + "\n")
    draw(content, folder / "flow_inverse.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--flows", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        path = options.out / "flow_inverse.json"
        measure(path, options.problems, options.flows, options.seeds)
    report(options.out)


def measure(path: Path, names: list[str], kinds: list[str], num_seeds: int) -> None:
    """Add the missing records of some problems, flows and seeds to a file."""
    content: dict[str, Any] = {"references": [], "rows": [], "times": [], "minutes": 0.0}
    if path.exists():
        content = json.loads(path.read_text())

    def write(start: float) -> None:
        content["minutes"] += (time.perf_counter() - start) / 60
        write_json(path, content | {"versions": versions()})

    for name in names:
        start = time.perf_counter()
        for kind in kinds:
            if (name, kind) not in step_times(content):
                content["times"].append(time_steps(name, kind))
                write(start)
        start = time.perf_counter()
        known = {reference["problem"]: reference for reference in content["references"]}
        if name not in known:
            known[name] = judge_reference(name)
            content["references"].append(known[name])
            print(json.dumps(known[name]), flush=True)
            write(start)
        done = {(row["problem"], row["flow"], row["seed"]) for row in content["rows"]}
        for seed, kind in product(range(num_seeds), kinds):
            if (name, kind, seed) not in done:
                start = time.perf_counter()
                content["rows"] += run(name, kind, seed, known[name]["log_evidence"])
                write(start)


if __name__ == "__main__":
    main()
