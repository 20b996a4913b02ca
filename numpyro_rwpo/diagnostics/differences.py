"""Two samplers coordinate by coordinate: differences in Monte Carlo standard errors."""

from typing import NamedTuple

import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.draws import Draws, is_constant

# Probabilities of the tail quantiles that are compared. Farther out, the Monte Carlo error of a
# quantile from a thousand draws is larger than most differences.
QUANTILES = (0.05, 0.95)


class Row(NamedTuple):
    """One coordinate in two samplers, a and b.

    Attributes:
        name: name of the coordinate.
        mean_a: posterior mean in a.
        mean_b: posterior mean in b.
        sd_a: posterior standard deviation in a.
        sd_b: posterior standard deviation in b.
        mean_z: difference of the means (a - b) in Monte Carlo standard errors of the difference.
        mean_difference: difference of the means in posterior standard deviations, those of both
            samplers pooled.
        sd_z: difference of the standard deviations in Monte Carlo standard errors.
        sd_ratio: standard deviation in a over that in b.
        quantiles_a: 5% and 95% quantiles in a.
        quantiles_b: 5% and 95% quantiles in b.
        quantile_z: differences of the quantiles in Monte Carlo standard errors.
        ess_a: bulk effective sample size in a.
        ess_b: bulk effective sample size in b.
    """

    name: str
    mean_a: float
    mean_b: float
    sd_a: float
    sd_b: float
    mean_z: float
    mean_difference: float
    sd_z: float
    sd_ratio: float
    quantiles_a: tuple[float, float]
    quantiles_b: tuple[float, float]
    quantile_z: tuple[float, float]
    ess_a: float
    ess_b: float

    @property
    def z_scores(self) -> tuple[float, ...]:
        """The scores of mean, standard deviation and quantiles."""
        return (self.mean_z, self.sd_z, *self.quantile_z)

    @property
    def worst_z(self) -> float:
        """Largest ``|z|`` of mean, sd and quantiles; infinite where one is not a number."""
        z = np.abs(self.z_scores)
        return float(np.max(np.where(np.isnan(z), np.inf, z)))


class Summary(NamedTuple):
    """Estimates of one sampler with their Monte Carlo standard errors, each (num_coordinates,).

    Attributes:
        mean: posterior means.
        mean_error: standard errors of the means.
        sd: posterior standard deviations.
        sd_error: standard errors of the standard deviations.
        quantiles: tail quantiles, (2, num_coordinates).
        quantile_errors: standard errors of the quantiles, (2, num_coordinates).
        ess: bulk effective sample sizes.
    """

    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray
    quantiles: np.ndarray
    quantile_errors: np.ndarray
    ess: np.ndarray


def summarize(draws: Draws) -> Summary:
    """Estimates of one sampler."""
    values = draws.values
    constant = is_constant(values)  # whose means and standard deviations would differ by rounding
    return Summary(
        mean=np.where(constant, values[0, 0], values.mean((0, 1))),
        mean_error=convergence.mcse(values),
        sd=np.where(constant, 0.0, values.std((0, 1), ddof=1)),
        sd_error=convergence.mcse(values, "sd"),
        quantiles=np.quantile(values, QUANTILES, axis=(0, 1)),
        quantile_errors=np.stack([convergence.mcse(values, "quantile", prob=p) for p in QUANTILES]),
        ess=convergence.ess(values),
    )


def _z(difference: np.ndarray, *errors: np.ndarray) -> np.ndarray:
    error = np.sqrt(sum(e**2 for e in errors))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / error)


def difference_rows(a: Summary, b: Summary, names: list[str]) -> list[Row]:
    """One row for each coordinate of two samplers."""
    mean_z = _z(a.mean - b.mean, a.mean_error, b.mean_error)
    sd_z = _z(a.sd - b.sd, a.sd_error, b.sd_error)
    quantile_z = _z(a.quantiles - b.quantiles, a.quantile_errors, b.quantile_errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt((a.sd**2 + b.sd**2) / 2)
        mean_difference = np.where(a.mean == b.mean, 0.0, (a.mean - b.mean) / pooled)
        sd_ratio = np.where(a.sd == b.sd, 1.0, a.sd / b.sd)

    def pair(quantiles: np.ndarray, k: int) -> tuple[float, float]:
        return float(quantiles[0, k]), float(quantiles[1, k])

    return [
        Row(
            name=name,
            mean_a=float(a.mean[k]),
            mean_b=float(b.mean[k]),
            sd_a=float(a.sd[k]),
            sd_b=float(b.sd[k]),
            mean_z=float(mean_z[k]),
            mean_difference=float(mean_difference[k]),
            sd_z=float(sd_z[k]),
            sd_ratio=float(sd_ratio[k]),
            quantiles_a=pair(a.quantiles, k),
            quantiles_b=pair(b.quantiles, k),
            quantile_z=pair(quantile_z, k),
            ess_a=float(a.ess[k]),
            ess_b=float(b.ess[k]),
        )
        for k, name in enumerate(names)
    ]
