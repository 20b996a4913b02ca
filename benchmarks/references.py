"""Reference posteriors of the problems, and the errors of a set of draws relative to them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.posteriors.posteriordb import compare as posteriordb
from benchmarks.posteriors.posteriordb import models
from benchmarks.posteriors.posteriordb.compare import bulk_ess, r_hat
from benchmarks.problems import PROBLEMS

__all__ = [
    "Accuracy",
    "Scalars",
    "accuracy_of",
    "bulk_ess",
    "compare_with_reference",
    "load_reference",
    "r_hat",
    "scalars",
]

FOLDER = Path(__file__).parent / "posteriors" / "lasso"


class Accuracy(NamedTuple):
    """Worst figures over all scalar coordinates; NaN if a draw is not finite.

    Attributes:
        max_mean_error: Largest difference of means, in reference standard deviations.
        min_sd_ratio: Smallest standard deviation, in reference standard deviations.
        max_sd_ratio: Largest standard deviation, in reference standard deviations.
        max_r_hat: Largest rank-normalized split R-hat.
        min_ess: Smallest bulk effective sample size.
    """

    max_mean_error: float
    min_sd_ratio: float
    max_sd_ratio: float
    max_r_hat: float
    min_ess: float


def load_reference(name: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Posterior means and sds by site, with their Monte Carlo errors.

    Args:
        name: Key of ``benchmarks.problems.PROBLEMS``.

    Returns:
        For each site, the arrays ``mean``, ``sd``, ``ess``, ``mcse_mean`` and ``mcse_sd``, each of
        the shape of the site.
    """
    sites: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["sites"]
    return {
        site: {key: np.asarray(value) for key, value in columns.items()}
        for site, columns in sites.items()
    }


def compare_with_reference(name: str, samples: dict[str, Any]) -> Accuracy:
    """Errors of draws relative to a reference posterior.

    Args:
        name: Key of ``benchmarks.problems.PROBLEMS``.
        samples: Draws grouped by chain, arrays of shape (chains, draws, ...).

    Returns:
        The worst figures over all scalar coordinates of the reference's sites.

    Raises:
        ValueError: If a site is missing or has the wrong shape.
    """
    mean_errors, sd_ratios, r_hats, sizes = [], [], [], []
    for site, reference in load_reference(name).items():
        if site not in samples:
            raise ValueError(f"`samples` must hold site {site!r}; got {sorted(samples)}.")
        draws = np.asarray(samples[site], np.float64)
        expected = reference["mean"].shape
        if draws.ndim < 2 or draws.shape[2:] != expected:
            raise ValueError(
                f"`samples[{site!r}]` must have shape (chains, draws, *{expected}); "
                f"got {draws.shape}. Group the draws by chain."
            )
        mean_errors.append(np.ravel(abs(draws.mean((0, 1)) - reference["mean"]) / reference["sd"]))
        sd_ratios.append(np.ravel(draws.std((0, 1), ddof=1) / reference["sd"]))
        columns = np.moveaxis(draws.reshape(*draws.shape[:2], -1), 2, 0)
        r_hats.append([r_hat(x) for x in columns])
        sizes.append([bulk_ess(x) for x in columns])
    ratios = np.concatenate(sd_ratios)
    return Accuracy(  # np.max and np.min propagate NaN
        float(np.max(np.concatenate(mean_errors))),
        float(np.min(ratios)),
        float(np.max(ratios)),
        float(np.max(np.concatenate(r_hats))),
        float(np.min(np.concatenate(sizes))),
    )


def accuracy_of(name: str, samples: dict[str, Any]) -> Accuracy:
    """Errors of draws relative to the reference posterior, for either collection.

    Args:
        name: Key of ``PROBLEMS`` or of posteriordb's ``POSTERIORS``.
        samples: Draws grouped by chain, arrays of shape (chains, draws, ...).

    Returns:
        The worst figures over all scalar coordinates.
    """
    if name in PROBLEMS:
        return compare_with_reference(name, samples)
    result = posteriordb.compare(name, samples)
    return Accuracy(*(result[field] for field in Accuracy._fields))


class Scalars(NamedTuple):
    """Draws of every scalar coordinate together with the moments of its reference.

    Attributes:
        draws: Shape (coordinates, chains, draws).
        mean: Reference means, shape (coordinates,).
        sd: Reference standard deviations, shape (coordinates,).
        mcse: Monte Carlo standard errors of the reference means, shape (coordinates,).
    """

    draws: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    mcse: NDArray[np.float64]


def scalars(name: str, samples: dict[str, Any]) -> Scalars:
    """Split draws into scalar coordinates, in the order of the reference.

    Args:
        name: Key of ``PROBLEMS`` or of posteriordb's ``POSTERIORS``.
        samples: Draws grouped by chain, arrays of shape (chains, draws, ...).

    Returns:
        The draws and their reference.
    """
    if name not in PROBLEMS:
        columns = models.load_reference(name)
        draws = posteriordb.scalar_draws(name, samples)
        mean, sd, ess = (
            np.array([c[key] for c in columns.values()]) for key in ("mean", "sd", "ess_bulk")
        )
        return Scalars(np.stack([draws[key] for key in columns]), mean, sd, sd / np.sqrt(ess))
    reference = load_reference(name)
    draws = [np.asarray(samples[site], np.float64) for site in reference]
    flat = [np.moveaxis(x.reshape(*x.shape[:2], -1), 2, 0) for x in draws]
    moments = (
        np.concatenate([np.ravel(columns[key]) for columns in reference.values()])
        for key in ("mean", "sd", "mcse_mean")
    )
    return Scalars(np.concatenate(flat), *moments)
