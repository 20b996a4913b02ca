"""Measures the gradient evaluations that transport needs from NumPyro's default start.

From the repository root::

    python -m benchmarks.transport [--particles N] [--ensembles N] [--out FOLDER]

Ensembles start uniformly on (-2, 2) in unconstrained space, like NumPyro's ``init_to_uniform``, and
move by the quasi-Newton start and noise-free transport alone, without correction. An ensemble has
arrived when the mean of every coordinate is within 0.25 posterior standard deviations of the
reference and its standard deviation is within 25%. Evaluations are those of the start and the
transport, divided by the number of particles.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cell import write_json
from benchmarks.machine import versions
from benchmarks.problems import Problem, load_problem
from benchmarks.references import load_reference
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import device_kwargs
from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate
from numpyro_rwpo.dynamics.estimates import Adaptation, initial_adaptation, learn_moments
from numpyro_rwpo.dynamics.pathfinder import quasi_newton_start
from numpyro_rwpo.dynamics.placement import spread
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.transport import Progress, initial_progress, transport_step
from numpyro_rwpo.model.target import Target

CLASSIC = ("diabetes_lasso", "breast_cancer_logistic", "l1_logistic_d50")
MAX_MEAN_ERROR = 0.25  # in posterior standard deviations
MAX_SD_ERROR = 0.25  # relative to the posterior standard deviation
NUM_ITERATIONS = 40


class Flow(NamedTuple):
    """An ensemble on its way.

    Attributes:
        ensemble: Evaluated particles.
        progress: Of the transport.
        adaptation: Holds the moments.
        centering: Parameterization of Laplace sites with latent scales.
    """

    ensemble: Ensemble
    progress: Progress
    adaptation: Adaptation
    centering: jax.Array


class Transport(NamedTuple):
    """The noise-free part of warm-up, step by step: NumPyro's iterations do not show it.

    Attributes:
        target: The posterior.
        settings: Those that the kernel resolves without correction.
        dim: Number of unconstrained parameters.
        to_sites: A flat position and a centering to the sites of the model.
    """

    target: Target
    settings: Settings
    dim: int
    to_sites: Callable[[jax.Array, jax.Array], Any]

    def start(self, rng_key: jax.Array) -> tuple[Flow, jax.Array]:
        """An ensemble after the quasi-Newton start, and the gradient evaluations that it took."""
        key_spread, key_start = jax.random.split(rng_key)
        plain = spread(key_spread, jnp.zeros(self.dim, jnp.float32), self.settings)
        ensemble, _, centering, cost = quasi_newton_start(key_start, plain, self.target)
        adaptation = initial_adaptation(self.dim, plain.dtype, self.settings)
        flow = Flow(ensemble, initial_progress(plain.dtype), adaptation, centering)
        return flow, cost.num_gradients

    def step(self, flow: Flow) -> Flow:
        """Moments, a step of transport, gradients."""
        target = self.target._replace(centering=flow.centering)
        learned = learn_moments(flow.adaptation, flow.ensemble, target)
        moved, progress = transport_step(
            flow.ensemble,
            flow.progress,
            learned.preconditioner,
            target,
            attention=self.settings.attention,
            relative_time=0.1,
        )
        return Flow(evaluate(moved.particles, target), progress, learned, flow.centering)


def transport_of(problem: Problem, num_particles: int) -> Transport:
    """Bind the steps to a problem."""
    kwargs = device_kwargs(problem)
    kernel = RWPO(problem.model, num_particles=num_particles, corrected=False)
    state = kernel.init(jax.random.key(0), 0, None, (), kwargs)
    source, settings = kernel._programs.source, kernel._settings
    assert source is not None and settings is not None
    bound = source.bind((), kwargs)

    def to_sites(position: jax.Array, centering: jax.Array) -> Any:
        return bound.constrain(bound.emit(position, centering)[0])

    dim = state.ensemble.particles.shape[1]
    return Transport(bound.target(), settings, dim, to_sites)


def measure(name: str, num_particles: int, num_ensembles: int) -> dict[str, Any]:
    """Errors of independent ensembles during transport.

    Args:
        name: Key of ``PROBLEMS``.
        num_particles: Number of particles per ensemble.
        num_ensembles: Number of ensembles.

    Returns:
        ``evaluations`` per particle (iterations,), ``mean_error`` and ``sd_error`` of the worst
        coordinate (iterations, ensembles), and ``arrival`` in evaluations per particle
        (ensembles,), infinite where an ensemble did not arrive.
    """
    problem, reference = load_problem(name), load_reference(name)
    transport = transport_of(problem, num_particles)
    keys = jax.random.split(jax.random.key(0), num_ensembles)
    flow, at_start = jax.jit(jax.vmap(transport.start))(keys)
    step = jax.jit(jax.vmap(transport.step))
    to_sites = jax.jit(jax.vmap(jax.vmap(transport.to_sites, in_axes=(0, None))))
    rows = []
    for _ in range(NUM_ITERATIONS):
        sites = to_sites(flow.ensemble.particles, flow.centering)
        mean_error, sd_error = np.zeros(num_ensembles), np.zeros(num_ensembles)
        for site, moments in reference.items():
            x = np.asarray(sites[site], np.float64).reshape(num_ensembles, num_particles, -1)
            mean, sd = np.ravel(moments["mean"]), np.ravel(moments["sd"])
            mean_error = np.maximum(mean_error, np.abs((x.mean(1) - mean) / sd).max(1))
            sd_error = np.maximum(sd_error, np.abs(x.std(1) / sd - 1).max(1))
        spent = np.asarray(at_start) / num_particles + np.asarray(flow.progress.steps)
        rows.append((spent, mean_error, sd_error))
        flow = step(flow)
    spent, mean_error, sd_error = (np.stack(column) for column in zip(*rows, strict=True))
    is_there = (mean_error <= MAX_MEAN_ERROR) & (sd_error <= MAX_SD_ERROR)
    arrival = np.where(is_there, spent, np.inf).min(0)
    return {
        "problem": name,
        "num_particles": num_particles,
        "evaluations": spent.tolist(),
        "mean_error": mean_error.tolist(),
        "sd_error": sd_error.tolist(),
        "arrival": arrival.tolist(),
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each problem."""
    rows = []
    for record in records:
        arrival = np.array([np.inf if x is None else x for x in record["arrival"]])
        figures = (np.median(arrival), arrival.min(), arrival.max())
        rows.append(
            [
                record["problem"],
                str(record["num_particles"]),
                str(len(arrival)),
                *(three_digits(x) for x in figures),
            ]
        )
    header = ["problem", "particles", "ensembles", "median evaluations", "fewest", "most"]
    return markdown_table(header, rows)


def main() -> None:
    """Run the measurements, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=(256, 512), metavar="N")
    parser.add_argument("--ensembles", type=int, default=8, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if min(args.particles) < 4 or args.ensembles < 1:
        parser.error("--particles: at least 4 each; --ensembles: at least 1")
    records = [measure(name, n, args.ensembles) for name in CLASSIC for n in args.particles]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "transport.json", {"records": records})
    (args.out / "transport.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
