"""Everyday models: RWPO in NUTS's place, as a user runs it.

From the repository root::

    python -m benchmarks.everyday [--models NAME ...] [--samplers NAME ...] [--seeds N] [--out FILE]
    python -m benchmarks.everyday --make-references [--models NAME ...]

Every cell is a process of its own: ``MCMC`` with 4 vectorized chains of 1000 draws, no progress
bar, single precision and the sampler's defaults. It is run twice, and both times are wall seconds
of everything but imports and data: *first* with compilation, *again* on the same ``MCMC`` object
(on a new one for NUTS, whose second vectorized run on one object fails in NumPyro 0.22). NumPyro
compiles its loop on either. CPU seconds are of both runs, and less sensitive to other programs.

Gradients are those of all chains of the first run: in *warm-up*, *before* the first draw (RWPO then
has refreshed its ensemble once, NUTS has spent nothing more), and in all. NUTS's warm-up is counted
in a run of its own that is not timed.

Draws are compared with stored references (:mod:`benchmarks.posteriors.everyday.reference`). A run
is *right* where the largest score stays within its limit and the smallest bulk effective sample
size is at least 400.

Cells that are complete in FILE are not run again.
"""

import argparse
import json
import resource
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from benchmarks.cell import CompileClock, write_json
from benchmarks.everyday_tables import SAMPLERS, Record, cells, page, summarize
from benchmarks.machine import describe_machine, versions
from benchmarks.posteriors.everyday import MODELS, Everyday
from benchmarks.posteriors.everyday.making import make_reference
from benchmarks.posteriors.everyday.reference import (
    compare,
    kept_indices,
    load,
    mixing,
    scalar_draws,
)
from benchmarks.runner import parse_cells, run_process
from numpyro_rwpo import RWPO, diagnose

KERNELS: dict[str, tuple[Any, dict[str, Any], int]] = {  # with options and default warm-up
    "rwpo": (RWPO, {}, 200),
    "nuts": (NUTS, {}, 1000),
    "nuts_dense": (NUTS, {"dense_mass": True}, 1000),
}
DEFAULT_SAMPLERS = ("rwpo", "nuts")
NUM_CHAINS, NUM_SAMPLES = 4, 1000
LIMIT_SECONDS = 1200.0  # of a cell


def make_mcmc(
    everyday: Everyday,
    sampler: str,
    num_warmup: int | None = None,
    num_samples: int | None = None,
) -> MCMC:
    """``MCMC`` as a user writes it."""
    kernel, options, default = KERNELS[sampler]
    return MCMC(
        kernel(everyday.model, **options),
        num_warmup=default if num_warmup is None else num_warmup,
        num_samples=NUM_SAMPLES if num_samples is None else num_samples,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )


def gradients_of(mcmc: MCMC, everyday: Everyday, sampler: str, seed: int) -> dict[str, int]:
    """Gradients of a finished run: in warm-up, before the first draw, and in all."""
    fields = mcmc.get_extra_fields(group_by_chain=True)
    if sampler == "rwpo":
        warmup = np.asarray(mcmc.last_state.warm_up.num_gradients, np.int64).sum()
        counts = np.asarray(fields["num_gradients"], np.int64)  # since the start, by draw
        before, total = counts[:, 0].sum(), counts[:, -1].sum()
    else:
        again = make_mcmc(everyday, sampler, mcmc.num_warmup)
        again.warmup(
            jax.random.key(seed),
            *everyday.args,
            extra_fields=("num_steps",),
            collect_warmup=True,
            **everyday.kwargs,
        )
        warmup = before = np.asarray(again.get_extra_fields()["num_steps"], np.int64).sum()
        total = warmup + np.asarray(fields["num_steps"], np.int64).sum()
    counts = {"gradients_warmup": warmup, "gradients_before": before, "gradients": total}
    return {key: int(value) for key, value in counts.items()}


def measure(
    name: str,
    sampler: str,
    seed: int,
    *,
    num_warmup: int | None = None,
    num_samples: int | None = None,
) -> Record:
    """Run a sampler on a model twice in this process.

    Args:
        name: Key of ``MODELS``.
        sampler: Key of :data:`KERNELS`.
        seed: Seed of the first run; the second uses the next thousand's.
        num_warmup: Warm-up iterations; ``None`` for the sampler's default.
        num_samples: Draws of each chain; ``None`` for 1000.

    Returns:
        The cell's record.
    """
    everyday = MODELS[name]()
    clock = CompileClock()
    jax.block_until_ready(jax.numpy.zeros(()) + 1)  # the backend is up before the clock starts
    counter = "num_gradients" if sampler == "rwpo" else "num_steps"
    record: Record = {"model": name, "sampler": sampler, "seed": seed, "status": "complete"}

    def timed(mcmc: MCMC, label: str, seed: int) -> dict[str, Any]:
        begin, cpu, compiled = time.perf_counter(), time.process_time(), clock.seconds
        key = jax.random.key(seed)
        mcmc.run(key, *everyday.args, extra_fields=("diverging", counter), **everyday.kwargs)
        samples = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        record[f"{label}_seconds"] = time.perf_counter() - begin
        record[f"{label}_cpu_seconds"] = time.process_time() - cpu
        record[f"{label}_compile_seconds"] = clock.seconds - compiled
        return samples

    mcmc = make_mcmc(everyday, sampler, num_warmup, num_samples)
    samples = timed(mcmc, "first", seed)
    record["num_warmup"], record["num_samples"] = mcmc.num_warmup, mcmc.num_samples
    record["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record["num_divergences"] = int(np.sum(mcmc.get_extra_fields()["diverging"]))
    record |= gradients_of(mcmc, everyday, sampler, seed)
    reference = load(name)
    if everyday.sites is not None:
        samples = {site: samples[site] for site in everyday.sites}
    indices = kept_indices(samples) if reference is None else reference.indices
    draws = scalar_draws(samples, indices)
    record |= mixing(draws)
    if reference is not None:
        record["accuracy"] = compare(draws, reference)._asdict()
    if sampler == "rwpo":
        record["findings"] = sorted({finding.about for finding in diagnose(mcmc).findings})
    second = mcmc if sampler == "rwpo" else make_mcmc(everyday, sampler, num_warmup, num_samples)
    timed(second, "again", 1000 + seed)
    return record | {"versions": versions()}


def run_cell(name: str, sampler: str, seed: int, options: list[str]) -> Record:
    """Run one cell in a process of its own."""
    record = {"model": name, "sampler": sampler, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.json"
        arguments = ["benchmarks.everyday", "--models", name, "--samplers", sampler]
        arguments += ["--worker", str(seed), str(path), *options]
        run_process(arguments, path, limit=LIMIT_SECONDS, record=record)
        return json.loads(path.read_text())


def work(args: argparse.Namespace) -> None:
    """Measure one cell in this process and write its record, also where it fails."""
    (name,), (sampler,), (seed, file) = args.models, args.samplers, args.worker
    lengths = {"num_warmup": args.num_warmup, "num_samples": args.num_samples}
    try:
        record = measure(name, sampler, int(seed), **lengths)
    except Exception as error:  # a sampler that fails is a result
        record = {"model": name, "sampler": sampler, "seed": int(seed), "status": "failed"}
        record["reason"] = f"{type(error).__name__}: {error}"[:500]
        record["traceback"] = traceback.format_exc()[-4000:]
    write_json(Path(file), record)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument(
        "--samplers", nargs="+", default=list(DEFAULT_SAMPLERS), choices=SAMPLERS, metavar="NAME"
    )
    parser.add_argument("--num-warmup", type=int, help="default: 200 for RWPO, 1000 for NUTS")
    parser.add_argument("--num-samples", type=int, help="default: 1000; references: 5000")
    parser.add_argument("--make-references", action="store_true", help="those that are missing")
    return parse_cells(parser, arguments, seeds=3, out="benchmarks/results/everyday.json")


def main() -> None:
    """Run what is missing and print the table."""
    args = parse()
    if args.worker:
        work(args)
        return
    if args.make_references:
        for name in args.models:
            if load(name) is None:
                make_reference(name, args.num_samples)
        return
    options = []
    for option, value in (("--num-warmup", args.num_warmup), ("--num-samples", args.num_samples)):
        options += [] if value is None else [option, str(value)]
    stored = json.loads(args.out.read_text())["records"] if args.out.exists() else []
    records = {(r["model"], r["sampler"], r["seed"]): r for r in stored}
    machine = describe_machine()
    for seed in range(args.seeds):
        for name in args.models:
            for sampler in args.samplers:
                cell = (name, sampler, seed)
                if records.get(cell, {}).get("status") == "complete":
                    continue
                records[cell] = run_cell(*cell, options)
                write_json(args.out, {"machine": machine, "records": list(records.values())})
                print(" | ".join(cells(summarize([records[cell]]))), flush=True)
    args.out.with_suffix(".md").write_text(page(records.values()))
    print(page(records.values()))


if __name__ == "__main__":
    main()
