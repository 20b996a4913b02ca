"""One large ensemble: gradients one after another until each of its particles is a draw.

From the repository root::

    python -m benchmarks.gradients_in_a_row [--problems NAME ...] [--seeds N] [--out FILE]

Runs that are in FILE are not made again.

On an accelerator, the gradients of 1,024 particles take hardly longer than that of one. What counts
are gradients one after another: those of warm-up, and those of the refresh after it.

- RWPO: one chain of 1,024 particles, and the states that its first refresh gives each particle.
- LAPS: BlackJAX's late-adjusted parallel sampler (Robnik, Bayer, Charisi, Haiman, Lin and Seljak
  2025), 1,024 chains. At most so many gradients of the unadjusted phase, which ends by itself, and
  of the adjusted one, as LAPS_STEPS says; its draws are the chains at the end.

``error`` is the largest error of a posterior mean, in reference standard deviations. Of 1,024
independent draws, that of a single mean has a standard deviation of 0.031. All columns are medians
over seeds.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpyro.infer import MCMC

from benchmarks.cell import write_json
from benchmarks.machine import versions
from benchmarks.problems import Problem, load_problem
from benchmarks.references import accuracy_of
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import flat_target, wanted
from numpyro_rwpo import RWPO

NUM_PARTICLES = 1024
PROBLEMS = ("diabetes_lasso", "diabetes_lasso_latent_scale", "l1_logistic_d50",
            "breast_cancer_logistic")  # fmt: skip
# Gradients of the two phases of LAPS; the first is the shortest that gives useful errors.
LAPS_STEPS = {"laps_200": (100, 100), "laps_600": (300, 300)}


def run_rwpo(problem: Problem, seed: int) -> tuple[dict[str, np.ndarray], int]:
    """Draws of one chain by site, (1, draws, ...), and gradients one after another."""
    mcmc = MCMC(
        RWPO(problem.model, num_particles=NUM_PARTICLES),
        num_warmup=200,
        num_samples=4 * NUM_PARTICLES,  # the states of one refresh
        progress_bar=False,
    )
    fields = ("num_steps",)
    mcmc.run(jax.random.key(seed), extra_fields=fields, **problem.kwargs)
    samples = wanted(problem, mcmc.get_samples(group_by_chain=True))
    # Gradients of one particle from draw to draw; all particles move at the same time.
    steps = np.asarray(mcmc.get_extra_fields()["num_steps"]).reshape(NUM_PARTICLES, -1)
    rows = int(mcmc.last_state.warm_up.num_rows) + int(steps.sum(1).max())
    return {site: np.asarray(x) for site, x in samples.items()}, rows


def run_laps(problem: Problem, seed: int, lengths: tuple[int, int]) -> Any:
    """The same for LAPS, whose chains are the draws."""
    from blackjax.adaptation.laps import laps  # not among what the tests need

    target = flat_target(problem)
    first, second = lengths
    info, per_step, _, state = laps(
        lambda x: -target.potential(x),
        lambda key: target.start(key, 1)[0],
        target.dim,
        first,
        second,
        NUM_PARTICLES,
        Mesh(np.array(jax.devices()[:1]), ("chains",)),
        jax.random.key(seed),
    )
    used, samples = (len(jax.tree.leaves(info[f"phase_{k}"])[0]) for k in (1, 2))
    draws = jax.jit(jax.vmap(target.constrain))(jnp.asarray(state.position))
    rows = used + samples * per_step * 15  # steps of a sample, LAPS's default
    return {site: np.asarray(x)[None] for site, x in draws.items()}, rows


SAMPLERS: dict[str, Callable[[Problem, int], Any]] = {
    "rwpo": run_rwpo,
    **{
        name: lambda problem, seed, lengths=lengths: run_laps(problem, seed, lengths)
        for name, lengths in LAPS_STEPS.items()
    },
}


def measure(name: str, sampler: str, seed: int) -> dict[str, Any]:
    """One run's record."""
    samples, rows = SAMPLERS[sampler](load_problem(name), seed)
    found = accuracy_of(name, samples)
    return {
        "problem": name,
        "sampler": sampler,
        "seed": seed,
        "rows": rows,
        "error": found.max_mean_error,
        "min_sd_ratio": found.min_sd_ratio,
        "max_sd_ratio": found.max_sd_ratio,
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table: medians over seeds."""
    rows = []
    for pair in dict.fromkeys((r["problem"], r["sampler"]) for r in records):
        runs = [r for r in records if (r["problem"], r["sampler"]) == pair]
        numbers = [
            float(np.median([r[key] for r in runs]))
            for key in ("rows", "error", "min_sd_ratio", "max_sd_ratio")
        ]
        rows.append([", ".join(pair), str(len(runs)), *map(three_digits, numbers)])
    header = ["problem, sampler", "seeds", "gradients in a row", "error", "smallest sd", "largest"]
    return markdown_table(header, rows)


def main() -> None:
    """Make the runs, write them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    out = Path("benchmarks/results/gradients_in_a_row.json")
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    records = json.loads(args.out.read_text())["records"] if args.out.exists() else []
    done = {(r["problem"], r["sampler"], r["seed"]) for r in records}
    for cell in itertools.product(args.problems, SAMPLERS, range(args.seeds)):
        if cell not in done:
            records.append(measure(*cell) | {"versions": versions()})
            write_json(args.out, {"records": records})
            print(json.dumps(records[-1]), flush=True)
    args.out.with_suffix(".md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
