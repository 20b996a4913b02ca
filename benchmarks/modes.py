"""Posteriors with several modes: are the shares right, and what do they cost?

From the repository root::

    python -m benchmarks.modes [--targets NAME ...] [--samplers NAME ...] [--seeds N] [--out FILE]

Every sampler is run with its defaults for 4 vectorized chains of 1000 draws, in one process for
each call. For every target of :mod:`benchmarks.mode_targets` the share of each mode is known. The
table has, over all seeds, the mean of the squared scores of the shares (deviation over the Monte
Carlo error that the effective sample size of the mode's indicator gives; 1 is right, and a mode
that is never visited counts as infinite), the
largest R-hat, the number of seeds in which a mode was missed, gradients of all chains, wall seconds
with compilation, and the findings of ``diagnose`` with the number of seeds that have them.
"""

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_uniform

from benchmarks.mode_targets import TARGETS, ModeTarget, as_model
from numpyro_rwpo import RWPO, diagnose

# The wide start covers the square in which the modes of ``many`` are.
WIDE = init_to_uniform(radius=200.0)
# Kernels with the length of their warm-up; BlackJAX's samplers are not kernels of NumPyro.
KERNELS: dict[str, tuple[Any, int]] = {
    "rwpo": (RWPO, 200),
    "nuts": (NUTS, 1000),
    "rwpo_wide": (partial(RWPO, init_strategy=WIDE), 200),
    "blackjax_smc": (None, 0),
    "blackjax_nested": (None, 0),
}


def compare(target: ModeTarget, draws: np.ndarray) -> dict[str, Any]:
    """Shares of the modes and their scores, from draws (chains, draws, dim)."""
    indicator = (target.mode_of(draws)[..., None] == np.arange(len(target.shares))).astype(float)
    share, number = indicator.mean((0, 1)), draws[..., 0].size
    effective = np.array(
        [
            effective_sample_size(x) if 0 < x.mean() < 1 else 0.0
            for x in np.moveaxis(indicator, 2, 0)
        ]
    )
    # Of a mode whose share is less than a draw, there may be none.
    is_tiny = target.shares * number < 1
    effective = np.where(is_tiny & (share == 0), number, effective)
    variance = np.maximum(target.shares * (1 - target.shares), 1 / number)
    error = np.sqrt(variance / np.clip(effective, 1e-9, number) + np.square(target.errors))
    is_missed = (share == 0) & ~is_tiny
    scores = np.where(is_missed, np.inf, (share - target.shares) / error)
    return {
        "shares": share.tolist(),
        "missed": int(is_missed.sum()),
        "score": float(np.mean(scores**2)),
        "r_hat": float(np.max(split_gelman_rubin(draws))),
    }


def measure(target: ModeTarget, kernel: Any, num_warmup: int, seed: int) -> dict[str, Any]:
    """One run."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    mcmc.run(jax.random.key(seed), extra_fields=("num_steps",))
    draws = target.position(jax.device_get(mcmc.get_samples(group_by_chain=True)))
    draws = np.asarray(draws, np.float64)
    seconds = time.perf_counter() - start
    found = compare(target, draws)
    if isinstance(kernel, RWPO):
        gradients = int(mcmc.last_state.num_gradients.sum())
        findings = sorted({finding.about for finding in diagnose(mcmc).findings})
    else:  # Those of warm-up, which NumPyro does not keep, are counted like those of sampling.
        steps = np.asarray(mcmc.get_extra_fields()["num_steps"])
        gradients = int(steps.sum() * (1 + num_warmup / 1000))
        findings = []
    return found | {"gradients": gradients, "seconds": seconds, "findings": findings}


def measure_baseline(target: ModeTarget, sampler: str, seed: int) -> dict[str, Any]:
    """One run of a sampler whose particles count as independent draws."""
    # BlackJAX is not among what the tests need, which import this module.
    from benchmarks import mode_baselines

    draw = {
        "blackjax_smc": mode_baselines.draw_tempered,
        "blackjax_nested": mode_baselines.draw_nested,
    }[sampler]
    start = time.perf_counter()
    draws, gradients = draw(jax.random.key(seed), target)
    seconds = time.perf_counter() - start
    return compare(target, draws) | {"gradients": gradients, "seconds": seconds, "findings": []}


def row(name: str, sampler: str, runs: list[dict[str, Any]]) -> str:
    """A row of the table."""
    scores = np.array([run["score"] for run in runs])
    worst = max(run["r_hat"] for run in runs)
    gradients, seconds = (np.median([run[key] for run in runs]) for key in ("gradients", "seconds"))
    missed = sum(run["missed"] > 0 for run in runs)
    number = sum(run["missed"] for run in runs) / (len(runs) * len(runs[0]["shares"]))
    findings = Counter(about for run in runs for about in run.get("findings", []))
    found = ", ".join(f"{about} ({times})" for about, times in findings.most_common())
    score = f"{scores.mean():.2f}" if np.isfinite(scores).all() else "infinite"
    return (
        f"| {name} | {sampler} | {len(runs)} | {score} | {worst:.3f} | {missed} | {number:.1%} | "
        f"{gradients:,.0f} | {seconds:.1f} | {found} |"
    )


HEADER = (
    "| target | sampler | seeds | squared scores, mean | R-hat, worst | seeds with a missed mode | "
    "modes missed | gradients, median | seconds, median | findings |\n"
    + "| --- | --- |"
    + " ---: |" * 7
    + " --- |"
)


def main() -> None:
    """Run the cells that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--samplers", nargs="*", default=["rwpo", "nuts"], choices=list(KERNELS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/modes.json"))
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    print(HEADER, flush=True)
    for name in args.targets:
        target = TARGETS[name]()
        for sampler in args.samplers:
            make, num_warmup = KERNELS[sampler]
            if make is None and target.log_density is None:
                continue
            runs = found.setdefault(f"{name}: {sampler}", [])
            kernel = make and make(as_model(target))
            while len(runs) < args.seeds:
                seed = len(runs)
                if sampler == "nuts":  # NumPyro's vectorized NUTS cannot be run twice.
                    kernel = make(as_model(target))
                if kernel is None:
                    runs.append(measure_baseline(target, sampler, seed))
                else:
                    runs.append(measure(target, kernel, num_warmup, seed))
                args.out.write_text(json.dumps(found, indent=1) + "\n")
                if len(runs) % 10 == 0:  # NumPyro's loops fill the process's memory maps.
                    jax.clear_caches()
            print(row(name, sampler, runs), flush=True)


if __name__ == "__main__":
    main()
