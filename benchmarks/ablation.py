"""What each part of the sampler is worth: runs without it, beside the whole sampler.

From the repository root::

    python -m benchmarks.ablation [--parts PART ...] [--problems NAME ...] [--seeds N] [--out FILE]

Every cell is a process of its own: ``MCMC`` with 4 vectorized chains of 1000 draws and a warm-up of
at most 200 updates, single precision, on lassos of the benchmark (:mod:`benchmarks.problems`) and
on everyday models (:mod:`benchmarks.posteriors.everyday`). A part is taken out by replacing a
function or a constant of the package in that process, see :data:`PARTS`; the sampler itself has no
such switches.

What a part is worth is the number of gradients that an effective draw costs without it, warm-up
included, over what it costs with it; *effective* is ArviZ's smallest bulk effective sample size.
*Kernels* are the operations of all compiled programs of a first run, fused ones counted as one. A
run is *wrong* where R-hat is above 1.02 or a posterior mean misses its reference by more than five
standard errors of as many independent draws. Cells that are complete in FILE are not run again.
"""

import argparse
import json
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC

from benchmarks.cell import write_json
from benchmarks.machine import describe_machine, versions
from benchmarks.posteriors.everyday import MODELS
from benchmarks.posteriors.everyday.reference import compare, load, mixing, scalar_draws
from benchmarks.problems import PROBLEMS, load_problem
from benchmarks.references import accuracy_of
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import parse_cells, run_process
from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics import adaptation, choice, placement, programs, settings

WHOLE = "whole"
NAMES = (
    "diabetes_lasso",
    "diabetes_lasso_latent_scale",
    "breast_cancer_logistic",
    "l1_logistic_d50",
    "p_much_larger_n",
    "poisson_lasso",
    "hierarchical_lasso",
    "crossed_effects",
    "varying_slopes",
    "eight_schools_centered",
    "funnel_centered",
    "gaussian_process",
    "hilbert_space_process",
    "ucb_admissions",
    "bananas_thin",
)
LIMIT_SECONDS = 600.0  # of a cell
MAX_R_HAT, MAX_ERRORS = 1.02, 5.0
# What a compiled program lists without computing anything.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
FREE |= {"conditional", "opt-barrier", "after-all", "copy", "copy-start", "copy-done"}

Record = dict[str, Any]


def _one_placement(is_descent: bool) -> None:
    """Transport one of the two starts only."""

    def place(first: Any, target: Any, settings: Any, numbers: Any) -> placement.Placement:
        most = min(max(settings.num_warmup - 1, 0), placement.MAX_TRANSPORT_STEPS)
        position = first.first if is_descent else first.plain
        centering = first.placed.centering if is_descent else target.centering
        placed = placement._transport(position, centering, target, settings, numbers, most)
        rows = placed.progress.steps + 1
        return first._replace(
            placed=placed,
            evidence=jnp.full(2, jnp.nan, position.dtype),
            is_descent=jnp.asarray(is_descent),
            num_gradients=first.num_gradients + settings.num_particles * rows,
            num_rows=first.num_rows + rows,
        )

    programs.place_by_transport = place


def _transport_first() -> None:
    """Transport every ensemble, also where moves from the descents would come to rest."""

    def warm_up(self: Any, constants: Any, inputs: Any, args: Any, kwargs: Any) -> Any:
        first = self._place(constants, inputs, args, kwargs)
        return self.transport(constants, inputs, first, args, kwargs)

    programs.Programs.warm_up = warm_up


def _one_flow(name: str) -> None:
    """Try that flow only, where it is among those on trial."""
    on_trial = settings.flows_on_trial

    def flows(*args: Any) -> tuple[str, ...]:
        found = on_trial(*args)
        return (name,) if name in found else found

    settings.flows_on_trial = flows


def _one_centering() -> None:
    """Sample all sites in the parameterization in which they are found."""
    bind = programs.Programs.bind

    def bound(self: Any, *args: Any) -> Any:
        target, rest = bind(self, *args)
        return target._replace(recenter=None), rest

    programs.Programs.bind = bound


def _set(module: Any, name: str, value: Any) -> Callable[[], None]:
    """A function that replaces what a module has under a name."""
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name} to take out.")
    return lambda: setattr(module, name, value)


# How each part is taken out, in the order of the table.
PARTS: dict[str, Callable[[], None]] = {
    WHOLE: lambda: None,
    "descents": lambda: _one_placement(is_descent=False),
    "plain start": lambda: _one_placement(is_descent=True),
    "transport": _set(placement, "MAX_TRANSPORT_STEPS", 0),
    "moves before transport": _transport_first,
    "exact flow": lambda: _one_flow("harmonic"),
    "harmonic flow": lambda: _one_flow("exact"),
    "choice of centering": _one_centering,
    "waiting for rest": _set(adaptation, "largest_allowed_drift", lambda number: jnp.inf),
    "moving lost particles": _set(adaptation, "replace", lambda ensemble, lost, target: ensemble),
    "jumps between modes": _set(choice, "share_modes", lambda warm, ready, call: (ready, False)),
    "NUTS transitions": _set(choice, "MIN_WARMUP", 10**9),
    "correlations in the metric": lambda: None,  # an argument of RWPO
}


class Posterior(NamedTuple):
    """A model with its arguments, and how far draws are from its reference.

    Attributes:
        model: NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        judge: Maps draws grouped by chain to the largest error of a mean, in reference standard
            deviations, the smallest bulk effective sample size, and the largest R-hat.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    judge: Callable[[dict[str, Any]], tuple[float, float, float]]


def load_posterior(name: str) -> Posterior:
    """A problem of the benchmark or an everyday model."""
    if name in PROBLEMS:
        problem = load_problem(name)

        def judge_problem(samples: dict[str, Any]) -> tuple[float, float, float]:
            found = accuracy_of(name, samples)
            return found.max_mean_error, found.min_ess, found.max_r_hat

        return Posterior(problem.model, (), problem.kwargs, judge_problem)
    everyday, reference = MODELS[name](), load(name)
    assert reference is not None

    def judge(samples: dict[str, Any]) -> tuple[float, float, float]:
        if everyday.sites is not None:
            samples = {site: samples[site] for site in everyday.sites}
        draws = scalar_draws(samples, reference.indices)
        mixed = mixing(draws)
        return compare(draws, reference).mean_error, mixed["min_bulk_ess"], mixed["max_r_hat"]

    return Posterior(everyday.model, everyday.args, everyday.kwargs, judge)


def num_kernels() -> int:
    """The operations of all programs that are loaded in this process."""
    count = 0
    for executable in jax.local_devices()[0].client.live_executables():
        text = executable.hlo_modules()[0].to_string()
        lines = [line for line in text.splitlines() if " call(" not in line]
        # Computations that are the inside of one operation, such as a fusion or a reduction.
        inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", "\n".join(lines)))
        for block in text.split("\n\n"):
            name = re.match(r"\s*(?:ENTRY )?%?([\w.-]+) \(", block)
            if name is not None and name[1] not in inner:
                kinds = re.findall(r" = .*? ([a-z][\w-]*)\(", block)
                count += sum(kind not in FREE for kind in kinds)
    return count


def measure(name: str, part: str, seed: int) -> Record:
    """Run the sampler without a part on a problem."""
    PARTS[part]()
    options = {"dense_mass": False} if part == "correlations in the metric" else {}
    posterior = load_posterior(name)
    jax.block_until_ready(jnp.zeros(()) + 1)
    mcmc = MCMC(
        RWPO(posterior.model, **options),
        num_warmup=200,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    begin = time.perf_counter()
    fields = ("num_gradients", "diverging")
    mcmc.run(jax.random.key(seed), *posterior.args, extra_fields=fields, **posterior.kwargs)
    samples = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - begin
    error, ess, r_hat = posterior.judge(samples)
    report = mcmc.last_state.warm_up
    total = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_gradients"])[:, -1].sum()
    return {
        "problem": name,
        "part": part,
        "seed": seed,
        "status": "complete",
        "gradients_warmup": int(np.asarray(report.num_gradients).sum()),
        "gradients_in_a_row": int(np.asarray(report.num_rows).max()),
        "gradients": int(total),
        "seconds": seconds,
        "kernels": num_kernels(),
        "mean_error": float(error),
        "ess": float(ess),
        "r_hat": float(r_hat),
        "num_divergences": int(np.sum(mcmc.get_extra_fields()["diverging"])),
        "versions": versions(),
    }


def is_wrong(record: Record) -> bool:
    """Whether a run failed, its chains disagree, or a mean is further off than chance allows."""
    if record["status"] != "complete" or not np.isfinite(record["mean_error"]):
        return True
    allowed = MAX_ERRORS / np.sqrt(max(record["ess"], 1.0))
    return not (record["r_hat"] <= MAX_R_HAT and record["mean_error"] <= allowed)


def price(record: Record) -> float:
    """Gradients for an effective draw, warm-up included."""
    if record["status"] != "complete":
        return float("inf")
    return record["gradients"] / max(record["ess"], 1.0)


def _medians(records: Iterable[Record]) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Median price and kernels, and the number of wrong seeds, by part and problem."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["part"], record["problem"]), []).append(record)
    return {
        key: (
            float(np.median([price(r) for r in group])),
            float(np.median([r.get("kernels", np.nan) for r in group])),
            sum(map(is_wrong, group)),
        )
        for key, group in groups.items()
    }


def page(records: Iterable[Record]) -> str:
    """The tables, as Markdown: what each part is worth on each problem, and how large it is."""
    found = _medians(records)
    parts = [part for part in PARTS if any(key[0] == part for key in found)]
    problems = [name for name in NAMES if (WHOLE, name) in found]
    rows = []
    for name in problems:
        whole, _, wrong = found[WHOLE, name]
        row = [name.replace("_", " "), three_digits(whole) + (" wrong" if wrong else "")]
        for part in parts[1:]:
            value, _, wrong = found.get((part, name), (np.nan, np.nan, 0))
            ratio = "–" if not np.isfinite(value) else f"{value / whole:.2f}"
            row.append(ratio + (" wrong" if wrong else ""))
        rows.append(row)
    header = ["problem", "whole sampler", *parts[1:]]
    sizes = []
    for part in parts:
        shared = [n for n in problems if (part, n) in found]
        fewer = np.median([found[WHOLE, n][1] - found[part, n][1] for n in shared])
        ratios = np.array([found[part, n][0] / found[WHOLE, n][0] for n in shared])
        needed = sum(found[part, n][2] > found[WHOLE, n][2] for n in shared)
        counts = (ratios > 1.1).sum(), (ratios < 0.9).sum(), needed
        sizes.append([part, f"{fewer:,.0f}", *map(str, counts)])
    kernels = np.median([found[WHOLE, n][1] for n in problems])
    return (
        "Gradients for an effective draw, warm-up included: of the whole sampler, and without each "
        "part as a multiple of it.\n\n"
        + markdown_table(header, rows)
        + f"\n\nHow many of the {kernels:,.0f} kernels of a first run (median) belong to a part, "
        "and the number of problems on which a run without it costs over 10 % more, over 10 % "
        "less, and is wrong where the whole sampler is right.\n\n"
        + markdown_table(["part", "kernels", "more", "less", "wrong"], sizes[1:])
        + "\n"
    )


def run_cell(name: str, part: str, seed: int) -> Record:
    """Run one cell in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.json"
        arguments = ["benchmarks.ablation", "--problems", name, "--parts", part]
        arguments += ["--worker", str(seed), str(path)]
        record = {"problem": name, "part": part, "seed": seed}
        run_process(arguments, path, limit=LIMIT_SECONDS, record=record)
        return json.loads(path.read_text())


def work(args: argparse.Namespace) -> None:
    """Measure one cell in this process and write its record, also where it fails."""
    (name,), (part,), (seed, file) = args.problems, args.parts, args.worker
    try:
        record = measure(name, part, int(seed))
    except Exception as error:  # a sampler that fails is a result
        record = {"problem": name, "part": part, "seed": int(seed), "status": "failed"}
        record["reason"] = f"{type(error).__name__}: {error}"[:500]
        record["traceback"] = traceback.format_exc()[-4000:]
    write_json(Path(file), record)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=NAMES, metavar="NAME")
    return parse_cells(parser, arguments, seeds=1, out="benchmarks/results/ablation.json")


def main() -> None:
    """Run what is missing and print the tables."""
    args = parse()
    if args.worker:
        work(args)
        return
    stored = json.loads(args.out.read_text())["records"] if args.out.exists() else []
    records = {(r["problem"], r["part"], r["seed"]): r for r in stored}
    machine = describe_machine()
    for seed in range(args.seeds):
        for name in args.problems:
            for part in args.parts:
                cell = (name, part, seed)
                if records.get(cell, {}).get("status") == "complete":
                    continue
                records[cell] = run_cell(*cell)
                write_json(args.out, {"machine": machine, "records": list(records.values())})
                wrong = "wrong" if is_wrong(records[cell]) else ""
                print(name, part, seed, three_digits(price(records[cell])), wrong, flush=True)
    args.out.with_suffix(".md").write_text(page(records.values()))
    print(page(records.values()))


if __name__ == "__main__":
    main()
