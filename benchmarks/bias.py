"""Measures the bias of noise-free particles, by dimension and number of particles.

From the repository root::

    python -m benchmarks.bias [--dims 2 10 30 100] [--particles 50 300 2000]
    python -m benchmarks.bias --render  # rewrite the page from stored figures

Four noise-free samplers run until they come to rest on two targets whose marginals are known
exactly:

- ``joint``, ``marginal``, ``copula``: the package's transport with each attention head, as
  ``RWPO(model, corrected=False)`` runs it after its start, with a relative prox time of 0.1;
- ``paper``: BRWP-splitting as published (``splitting_step``, one softmax over d-dimensional
  distances, prox time = step size = 0.1 posterior variances), for 200 steps.

The targets are ``normal``, a normal with unit variances and correlation 0.7^|i-j|, and ``lasso``,
the posterior of independent means under a Laplace(0, 1) prior, each observed once with noise 1.

For every setting the table gives the mean over coordinates of

- **sd**: the standard deviation of the particles over the true one;
- **W1**: the Wasserstein-1 distance of a marginal to the true one, in true standard deviations,
  together with that of the same number of independent exact draws, which is what Monte Carlo error
  alone would give;
- **corr** (normal only): the correlation of neighboring coordinates over the true 0.7.

The script writes ``bias.json`` and ``bias.md``, and puts the tables into
``docs/bias-of-the-flow.md``.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.stats import norm, wasserstein_distance

from benchmarks.devices import settings_of
from numpyro_rwpo import __version__, splitting_step
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.estimates import initial_adaptation, learn_moments
from numpyro_rwpo.dynamics.transport import initial_progress, is_at_rest, transport_step
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.priors.laplace import laplace_prior
from numpyro_rwpo.support.sharding import ONE_PLACE

SAMPLERS = ("paper", "joint", "marginal", "copula")
CORRELATION = 0.7
RELATIVE_TIME = 0.1
MAX_STEPS = 200
NUM_QUANTILES = 4000
BEGIN, END = "<!-- made by benchmarks/bias.py -->", "<!-- end of what benchmarks/bias.py made -->"


class Problem(NamedTuple):
    """A target with known marginals.

    Attributes:
        smooth: smooth part of the potential of one position (dim,).
        rate: rate of the Laplace prior around 0; 0 without a prior.
        quantiles: quantiles of every marginal at the midpoints of NUM_QUANTILES cells, (dim, q).
        correlation: correlation of neighboring coordinates.
    """

    smooth: Callable[[jax.Array], jax.Array]
    rate: float
    quantiles: np.ndarray
    correlation: float


def normal(dim: int) -> Problem:
    """Correlated normal with unit variances and exact quantiles."""
    index = np.arange(dim)
    covariance = CORRELATION ** np.abs(index[:, None] - index)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    levels = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    quantiles = np.broadcast_to(norm.ppf(levels), (dim, NUM_QUANTILES))
    return Problem(lambda x: 0.5 * x @ precision @ x, 0.0, quantiles, CORRELATION)


def lasso(dim: int) -> Problem:
    """Independent means, Laplace(0, 1) prior, unit noise; quantiles by quadrature."""
    observed = np.linspace(-2.0, 3.0, dim)
    grid = np.linspace(-12.0, 12.0, 200_001)
    levels = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    rows = []
    for y in observed:
        cdf = np.cumsum(np.exp(-np.abs(grid) - 0.5 * (y - grid) ** 2))
        rows.append(np.interp(levels, cdf / cdf[-1], grid))
    data = jnp.asarray(observed, jnp.float32)
    return Problem(lambda x: 0.5 * jnp.sum((x - data) ** 2), 1.0, np.stack(rows), 0.0)


PROBLEMS = {"normal": normal, "lasso": lasso}


@partial(jax.jit, static_argnames=("attention", "target"))
def transport(start: jax.Array, attention: str, target: Any) -> tuple[jax.Array, jax.Array]:
    """Run the package's transport until it is at rest: particles and number of steps."""
    bound: Target = target()
    settings = settings_of(*start.shape, attention, ONE_PLACE)

    def step(carry: Any) -> Any:
        ensemble, progress, adaptation = carry
        adaptation = learn_moments(adaptation, ensemble, bound)
        ensemble, progress = transport_step(
            ensemble,
            progress,
            adaptation.preconditioner,
            bound,
            attention=settings.attention,
            relative_time=RELATIVE_TIME,
        )
        return evaluate(ensemble.particles, bound), progress, adaptation

    ensemble, progress, _ = lax.while_loop(
        lambda carry: (carry[1].steps < MAX_STEPS) & ~is_at_rest(carry[1], corrected=False),
        step,
        (
            evaluate(start, bound),
            initial_progress(start.dtype),
            initial_adaptation(start.shape[1], start.dtype, settings),
        ),
    )
    return ensemble.particles, progress.steps


@partial(jax.jit, static_argnames=("smooth", "rate"))
def paper(start: jax.Array, smooth: Any, rate: float) -> tuple[jax.Array, jax.Array]:
    """Apply the published update a fixed number of times."""
    update = partial(
        splitting_step, grad_f=jax.vmap(jax.grad(smooth)), rate=rate, step_size=RELATIVE_TIME
    )
    particles = lax.fori_loop(0, MAX_STEPS, lambda _, x: update(x), start)
    return particles, jnp.asarray(MAX_STEPS)


def run(sampler: str, problem: Problem, num_particles: int, seed: int) -> tuple[np.ndarray, int]:
    """Particles at rest and number of steps taken, from NumPyro's uniform(-2, 2) start."""
    dim = len(problem.quantiles)
    start = jax.random.uniform(jax.random.key(seed), (num_particles, dim), minval=-2, maxval=2)
    if sampler == "paper":
        particles, steps = paper(start, problem.smooth, problem.rate)
    else:
        prior = laplace_prior(jnp.full(dim, problem.rate)) if problem.rate else None

        def target() -> Target:
            return Differentiation(1.0, False).target(lambda x, _: problem.smooth(x), prior)

        particles, steps = transport(start, sampler, target)
    return np.asarray(particles, np.float64), int(steps)


def distances(particles: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of every marginal to the exact one, in exact standard deviations."""
    return np.array(
        [
            wasserstein_distance(column, exact) / exact.std()
            for column, exact in zip(particles.T, quantiles, strict=True)
        ]
    )


def figures(particles: np.ndarray, problem: Problem) -> dict[str, float]:
    """Spread, distance and correlation, averaged over coordinates."""
    ratios = particles.std(0, ddof=1) / problem.quantiles.std(1)
    row = {
        "sd_ratio": float(ratios.mean()),
        "min_sd_ratio": float(ratios.min()),
        "max_sd_ratio": float(ratios.max()),
        "w1": float(distances(particles, problem.quantiles).mean()),
    }
    if problem.correlation:
        matrix = np.corrcoef(particles, rowvar=False)
        row["correlation_ratio"] = float(np.diagonal(matrix, 1).mean() / problem.correlation)
    return row


def independent_w1(problem: Problem, num_particles: int, seed: int, repeats: int = 5) -> float:
    """W1 of the same number of independent exact draws, averaged over coordinates and repeats."""
    rng = np.random.default_rng(seed)
    quantiles = problem.quantiles
    values = []
    for _ in range(repeats):
        index = rng.integers(0, NUM_QUANTILES, (num_particles, len(quantiles)))
        draws = np.take_along_axis(quantiles.T, index, axis=0)
        values.append(distances(draws, quantiles).mean())
    return float(np.mean(values))


def measure(dims: list[int], numbers: list[int], seed: int) -> list[dict[str, Any]]:
    """One row per target, dimension, number of particles and sampler."""
    rows = []
    for name, make in PROBLEMS.items():
        for dim in dims:
            problem = make(dim)
            for number in numbers:
                exact = independent_w1(problem, number, seed)
                for sampler in SAMPLERS:
                    begin = time.perf_counter()
                    particles, steps = run(sampler, problem, number, seed)
                    row = {"target": name, "dim": dim, "num_particles": number, "sampler": sampler}
                    row |= figures(particles, problem)
                    row |= {"independent_w1": exact, "steps": steps}
                    row["seconds"] = time.perf_counter() - begin
                    rows.append(row)
                    print(
                        {k: v if isinstance(v, (str, int)) else round(v, 3) for k, v in row.items()}
                    )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per target: rows by dimension and number of particles, columns by sampler."""
    lines = []
    for target in PROBLEMS:
        chosen = [row for row in rows if row["target"] == target]
        parts = ["sd", "W1"] + (["corr"] if "correlation_ratio" in chosen[0] else [])
        lines += [f"**{target}**: {', '.join(parts)} of each sampler", ""]
        lines.append("| d | particles | " + " | ".join(SAMPLERS) + " | exact draws |")
        lines.append("| --- " * (len(SAMPLERS) + 3) + "|")
        settings = dict.fromkeys((row["dim"], row["num_particles"]) for row in chosen)
        for dim, number in settings:
            cells = {
                row["sampler"]: row
                for row in chosen
                if (row["dim"], row["num_particles"]) == (dim, number)
            }
            texts = []
            for sampler in SAMPLERS:
                row = cells[sampler]
                text = f"{row['sd_ratio']:.2f}, {row['w1']:.2f}"
                if "correlation_ratio" in row:
                    text += f", {row['correlation_ratio']:.2f}"
                texts.append(text)
            exact = next(iter(cells.values()))["independent_w1"]
            lines.append(f"| {dim} | {number} | " + " | ".join(texts) + f" | W1 {exact:.2f} |")
        lines.append("")
    return "\n".join(lines)


def insert(page: Path, result: dict[str, Any]) -> None:
    """Replace the text between the markers of the page by the tables and their settings."""
    settings = result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    origin = (
        f"Seed {settings['seed']}, relative prox time {settings['relative_prox_time']}, at most "
        f"{settings['max_steps']} steps; {versions}, {settings['device']}, "
        f"{settings['seconds']:.0f} s."
    )
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(result['rows'])}\n{origin}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 30, 100])
    parser.add_argument("--particles", type=int, nargs="+", default=[50, 300, 2000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/bias-of-the-flow.md"))
    parser.add_argument("--render", action="store_true", help="measure nothing: stored figures")
    arguments = parser.parse_args()
    if arguments.render:
        stored = json.loads((arguments.output / "bias.json").read_text())
        (arguments.output / "bias.md").write_text(markdown(stored["rows"]))
        insert(arguments.page, stored)
        return
    begin = time.perf_counter()
    rows = measure(arguments.dims, arguments.particles, arguments.seed)
    settings = {
        "seed": arguments.seed,
        "relative_prox_time": RELATIVE_TIME,
        "max_steps": MAX_STEPS,
        "versions": {"numpyro_rwpo": __version__, "jax": jax.__version__},
        "device": jax.devices()[0].platform,
        "seconds": time.perf_counter() - begin,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    result = {"settings": settings, "rows": rows}
    (arguments.output / "bias.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "bias.md").write_text(markdown(rows))
    insert(arguments.page, result)
    print(markdown(rows))


if __name__ == "__main__":
    main()
