"""Reference posteriors of the problems, and how far a set of draws is from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.data.posteriordb.compare import bulk_ess, r_hat

__all__ = ["Accuracy", "bulk_ess", "compare_with_reference", "load_reference", "r_hat"]

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "lasso"


class Accuracy(NamedTuple):
    """Worst figures over all scalar coordinates; not a number where a draw is not finite.

    Attributes:
        max_mean_error: Largest difference of means, in reference standard deviations.
        min_sd_ratio: Smallest standard deviation, in reference standard deviations.
        max_sd_ratio: Largest standard deviation, in reference standard deviations.
        max_r_hat: Largest rank-normalised split R-hat.
        min_ess: Smallest bulk effective sample size.
    """

    max_mean_error: float
    min_sd_ratio: float
    max_sd_ratio: float
    max_r_hat: float
    min_ess: float


def load_reference(name: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Posterior means and sds by site, with their Monte-Carlo errors.

    Args:
        name: Key of ``benchmarks.problems.PROBLEMS``.

    Returns:
        For each site arrays ``mean``, ``sd``, ``ess``, ``mcse_mean`` and ``mcse_sd``, each of the
        site's shape.
    """
    sites: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["sites"]
    return {
        site: {key: np.asarray(value) for key, value in columns.items()}
        for site, columns in sites.items()
    }


def compare_with_reference(name: str, samples: dict[str, Any]) -> Accuracy:
    """Errors of draws against a reference posterior.

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
    return Accuracy(  # np.max and np.min let a nan through
        float(np.max(np.concatenate(mean_errors))),
        float(np.min(ratios)),
        float(np.max(ratios)),
        float(np.max(np.concatenate(r_hats))),
        float(np.min(np.concatenate(sizes))),
    )
