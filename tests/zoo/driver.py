"""Runs a sampler on a target of the zoo and compares its draws with the truth.

A run is *right* when the mean and variance of every site with known moments lie within Monte Carlo
error of the truth, at a limit that correct draws exceed once in a thousand runs, and when there are
enough effective draws for this to be meaningful. It is *flagged* when R-hat, ESS, divergences or
a finding of ``diagnose`` indicate a problem. A run that is neither is a silent failure.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.thresholds import MAX_R_HAT, max_z
from tests.zoo.targets import TARGETS, ZooTarget

FOLDER = Path(__file__).parent  # where `python -m tests.zoo --record` stores the rows
NUM_CHAINS, NUM_DRAWS = 4, 1000
MIN_ESS = 100 * NUM_CHAINS  # with fewer effective draws, standard errors are unreliable
# Findings about the auxiliary calculations of `diagnose`, which do not concern the draws.
BESIDE_THE_POINT = {"k-hat", "evidence"}


class Row(NamedTuple):
    """The results of one run.

    Attributes:
        max_z: largest error of a mean or variance, in Monte Carlo standard errors.
        limit_z: the value that correct draws exceed once in a thousand runs.
        mean_error: largest error of a mean, in the target's standard deviations.
        sd_ratios: smallest and largest standard deviation, over the target's.
        r_hat: largest.
        ess: smallest, bulk, of the sites with known moments.
        divergences: share of draws.
        findings: topics of the findings of ``diagnose``; R-hat, ESS and divergences for NUTS.
        error: message of the exception that the run raised, if any.
        seconds: wall time of the run alone, including compilation.
    """

    max_z: float
    limit_z: float
    mean_error: float
    sd_ratios: tuple[float, float]
    r_hat: float
    ess: float
    divergences: float
    findings: list[str]
    error: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the draws are within Monte Carlo error of the truth; False if it is unknown."""
        return self.max_z <= self.limit_z and self.ess >= MIN_ESS

    @property
    def is_flagged(self) -> bool:
        """Whether anything that a user looks at indicates a problem with the draws."""
        return bool(self.error or set(self.findings) - BESIDE_THE_POINT)

    @property
    def verdict(self) -> str:
        """One of "right", "right, flagged", "flagged" (wrong but flagged) and "SILENT"."""
        if self.is_right:
            return "right, flagged" if self.is_flagged else "right"
        return "flagged" if self.is_flagged else "SILENT"


def compare_with_truth(samples: dict[str, Any], zoo: ZooTarget) -> dict[str, Any]:
    """Errors of draws, grouped by chain, relative to the known moments of a target."""
    z, errors, ratios, r_hats, sizes = [], [], [], [], []
    for name, truth in zoo.truth.items():
        draws = np.asarray(samples[name], np.float64)
        sd = np.sqrt(truth.variance)
        square = (draws - truth.mean) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            z.append((draws.mean((0, 1)) - truth.mean) / convergence.mcse(draws))
            z.append((square.mean((0, 1)) - truth.variance) / convergence.mcse(square))
        errors.append(np.abs(draws.mean((0, 1)) - truth.mean) / sd)
        ratios.append(draws.std((0, 1)) / sd)
        r_hats.append(convergence.r_hat(draws))
        sizes.append(convergence.ess(draws))

    def flat(parts: list[Any]) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in parts]) if parts else np.array([np.nan])

    def largest(parts: list[Any]) -> float:
        return float(np.max(np.abs(flat(parts))))

    return {
        "max_z": largest(z),
        "limit_z": max_z(flat(z).size),
        "mean_error": largest(errors),
        "sd_ratios": (float(flat(ratios).min()), float(flat(ratios).max())),
        "r_hat": largest(r_hats),
        "ess": float(flat(sizes).min()),
    }


def plain_findings(figures: dict[str, Any], divergences: float) -> list[str]:
    """Findings from R-hat, ESS and divergences, for a sampler without ``diagnose``."""
    found = {
        "R-hat": not figures["r_hat"] <= MAX_R_HAT,
        "ESS": not figures["ess"] >= MIN_ESS,
        "divergences": divergences > 0,
    }
    return [name for name, is_found in found.items() if is_found]


def run(name: str, sampler: str = "rwpo", seed: int = 0) -> tuple[Row, Any]:
    """Run a sampler on a target: the row and, for RWPO, the report of ``diagnose``."""
    zoo = TARGETS[name]()
    kernel, num_warmup = (RWPO, 200) if sampler == "rwpo" else (NUTS, 1000)
    mcmc = MCMC(
        kernel(zoo.model),
        num_warmup=num_warmup,
        num_samples=NUM_DRAWS,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    begin = time.perf_counter()
    try:
        mcmc.run(jax.random.key(seed), *zoo.args)
    except (ValueError, RuntimeError) as error:
        nothing = compare_with_truth({}, zoo._replace(truth={}))
        return Row(**nothing, divergences=0.0, findings=[], error=str(error), seconds=0.0), None
    samples = mcmc.get_samples(group_by_chain=True)
    seconds = time.perf_counter() - begin
    assert all(np.isfinite(value).all() for value in samples.values()), "NaN among the draws"
    figures = compare_with_truth(samples, zoo)
    divergences = float(np.mean(mcmc.get_extra_fields()["diverging"]))
    report = diagnose(mcmc) if sampler == "rwpo" else None
    if report is None:
        findings = plain_findings(figures, divergences)
    else:
        findings = sorted({finding.about for finding in report.findings + report.remarks})
    row = Row(**figures, divergences=divergences, findings=findings, error="", seconds=seconds)
    return row, report


def recorded(sampler: str) -> dict[str, Row]:
    """The stored rows of a sampler."""
    path = FOLDER / f"{sampler}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    return {name: Row(**row) for name, row in rows.items()}


def record(sampler: str, name: str, row: Row) -> None:
    """Store one row."""
    rows = {**recorded(sampler), name: row}
    text = json.dumps({n: r._asdict() for n, r in rows.items()}, indent=1)
    (FOLDER / f"{sampler}.json").write_text(f"{text}\n")


def table_row(name: str, row: Row) -> str:
    """A row of the Markdown table."""
    low, high = row.sd_ratios
    said = row.error.split(".")[0] or ", ".join(row.findings) or "nothing"
    cells = [
        name,
        row.verdict,
        f"{row.max_z:.1f} ({row.limit_z:.1f})",
        f"{row.mean_error:.3f}",
        f"{low:.2f}-{high:.2f}",
        f"{row.r_hat:.3f}",
        f"{row.ess:.0f}",
        f"{row.divergences:.1%}",
        said,
        f"{row.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| target | verdict | worst z (limit) | worst mean, sd | sd ratios | R-hat | ESS | divergent | "
    "said | s |\n|---|---|---|---|---|---|---|---|---|---|"
)
