r"""Reference posteriors of the everyday models, and how far a run is from them.

Many everyday posteriors have no moments: a local scale of a horseshoe is as heavy-tailed as its
half-Cauchy prior. Each scalar is therefore compared on a scale of its own on which it has light
tails and no units,

.. math:: t(x) = \operatorname{asinh} \frac{x - q_{50}}{(q_{95} - q_5) / 3.29},

with the quantiles of the reference; on it a normal posterior has standard deviation .88, and its
middle is close to a standardized normal. A *score* is the difference of two means or variances of
:math:`t` in units of the joint Monte Carlo standard error of the run and the reference.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.findings import max_z

FOLDER = Path(__file__).parent / "references"
MAX_SCALARS = 200  # of a model; the file of 200 scalars has 25 kB
_NORMAL_WIDTH = 3.29  # standard deviations between the 5 % and 95 % quantiles of a normal
COLUMNS = ("mean", "sd", "mcse_mean", "mcse_sd", "q5", "q50", "q95", "ess")
SCALED_COLUMNS = ("scaled_mean", "scaled_variance", "mcse_scaled_mean", "mcse_scaled_variance")


class Reference(NamedTuple):
    """Summaries of a posterior.

    Attributes:
        indices: For each site the flat indices of the scalars that are kept.
        columns: Arrays of one number for each kept scalar, by :data:`COLUMNS` and
            :data:`SCALED_COLUMNS`.
        about: How the reference was made.
    """

    indices: dict[str, list[int]]
    columns: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Site and flat index of each kept scalar."""
        return [f"{site}[{k}]" for site, kept in self.indices.items() for k in kept]

    def scale(self, draws: np.ndarray) -> np.ndarray:
        """Draws (..., scalars) on the scales on which they are compared."""
        width = (self.columns["q95"] - self.columns["q5"]) / _NORMAL_WIDTH
        return np.arcsinh((draws - self.columns["q50"]) / width)


class Accuracy(NamedTuple):
    """How far a run is from its reference, worst over scalars.

    Attributes:
        max_score: Largest score of a mean or a variance.
        max_score_of: The scalar that has it.
        limit: What the largest score of right draws exceeds once in a thousand runs.
        mean_error: Largest error of a scaled mean, in standard deviations of the reference.
        min_sd_ratio: Smallest scaled standard deviation, over the reference's.
        max_sd_ratio: Largest one.
    """

    max_score: float
    max_score_of: str
    limit: float
    mean_error: float
    min_sd_ratio: float
    max_sd_ratio: float


def kept_indices(samples: dict[str, Any]) -> dict[str, list[int]]:
    """Flat indices of at most :data:`MAX_SCALARS` scalars that vary, spread over all sites.

    Args:
        samples: Draws by site, arrays of shape (chains, draws, ...).
    """
    varying = {}
    for site, x in samples.items():
        flat = np.asarray(x).reshape(-1, int(np.prod(x.shape[2:], dtype=int)))
        # Rounding makes the constants of a Cholesky factor vary in the last digits.
        spread = np.ptp(flat, axis=0) > 1e-5 * np.abs(flat).max(0)
        varying[site] = np.flatnonzero(spread)
    share = min(1.0, MAX_SCALARS / sum(map(len, varying.values())))
    indices = {}
    for site, places in varying.items():
        number = max(int(share * len(places)), min(1, len(places)))
        if number:
            chosen = np.linspace(0, len(places) - 1, number).round().astype(int)
            indices[site] = places[chosen].tolist()
    return indices


def scalar_draws(samples: dict[str, Any], indices: dict[str, list[int]]) -> np.ndarray:
    """Kept scalars of draws by site (chains, draws, ...), shape (chains, draws, scalars).

    Raises:
        KeyError: If a site of the reference is missing.
    """
    columns = []
    for site, kept in indices.items():
        x = np.asarray(samples[site], np.float64)
        columns.append(x.reshape(*x.shape[:2], -1)[..., kept])
    return np.concatenate(columns, -1)


def mixing(draws: np.ndarray) -> dict[str, float]:
    """Smallest bulk effective sample size and largest R-hat of draws (chains, draws, scalars)."""
    return {
        "min_bulk_ess": float(convergence.ess(draws).min()),
        "max_r_hat": float(convergence.r_hat(draws).max()),
    }


def moments(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means and variances of draws (chains, draws, scalars), and the standard errors of both."""
    mean = draws.mean((0, 1))
    square = (draws - mean) ** 2
    return mean, square.mean((0, 1)), convergence.mcse(draws), convergence.mcse(square)


def summarize(samples: dict[str, Any], about: dict[str, Any]) -> Reference:
    """Make a reference of long runs.

    Args:
        samples: Draws by site, arrays of shape (chains, draws, ...).
        about: How they were made; R-hat and effective size of the worst scalar are added.
    """
    indices = kept_indices(samples)
    draws = scalar_draws(samples, indices)
    mean, variance, mcse_mean, mcse_variance = moments(draws)
    q5, q50, q95 = np.quantile(draws, [0.05, 0.5, 0.95], axis=(0, 1))
    ess = convergence.ess(draws)
    sd = np.sqrt(variance)
    values = (mean, sd, mcse_mean, mcse_variance / (2 * sd), q5, q50, q95, ess)
    reference = Reference(indices, dict(zip(COLUMNS, values, strict=True)), {})
    scaled = dict(zip(SCALED_COLUMNS, moments(reference.scale(draws)), strict=True))
    return Reference(indices, reference.columns | scaled, about | mixing(draws))


def compare(draws: np.ndarray, reference: Reference) -> Accuracy:
    """Compare the kept scalars of a run (chains, draws, scalars) with their reference."""
    mean, variance, mcse_mean, mcse_variance = moments(reference.scale(draws))
    columns = reference.columns
    mean_error = mean - columns["scaled_mean"]
    variance_error = variance - columns["scaled_variance"]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.abs(
            [
                mean_error / np.hypot(mcse_mean, columns["mcse_scaled_mean"]),
                variance_error / np.hypot(mcse_variance, columns["mcse_scaled_variance"]),
            ]
        ).max(0)
    worst = int(np.argmax(np.nan_to_num(scores, nan=np.inf)))
    ratios = np.sqrt(variance / columns["scaled_variance"])
    return Accuracy(
        max_score=float(scores[worst]),
        max_score_of=reference.names[worst],
        limit=max_z(2 * scores.size),
        mean_error=float(np.max(np.abs(mean_error) / np.sqrt(columns["scaled_variance"]))),
        min_sd_ratio=float(ratios.min()),
        max_sd_ratio=float(ratios.max()),
    )


def save(name: str, reference: Reference) -> None:
    """Write the reference of a model, with five significant digits."""
    columns = {
        key: [float(f"{x:.5g}") for x in values] for key, values in reference.columns.items()
    }
    record = {"about": reference.about, "indices": reference.indices, **columns}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def load(name: str) -> Reference | None:
    """The reference of a model, ``None`` where none has been made."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    columns = {key: np.array(record[key]) for key in (*COLUMNS, *SCALED_COLUMNS)}
    return Reference(record["indices"], columns, record["about"])
