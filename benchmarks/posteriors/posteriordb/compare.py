"""Compare MCMC draws with the reference draws of posteriordb.

    from compare import compare
    result = compare("arK-arK", mcmc.get_samples(group_by_chain=True))
    assert result["passed"], result["reason"]

The samples are the dictionary NumPyro returns with ``group_by_chain=True``: every
array starts with a chain axis and a draw axis.
"""

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.stats import norm, rankdata

if __package__:
    from .models import POSTERIORS, load_reference
else:
    from models import POSTERIORS, load_reference

MAX_MEAN_ERROR = 0.15  # in reference standard deviations
SD_RATIO_RANGE = (0.88, 1.14)
MAX_R_HAT = 1.03


def scalar_draws(name, samples):
    """One (chain, draw) array per scalar parameter, under its reference name."""
    samples = {k: np.asarray(v, dtype=np.float64) for k, v in samples.items()}
    scalars = {}
    for key, x in POSTERIORS[name].to_reference(samples).items():
        if x.ndim == 2:
            scalars[key] = x
            continue
        for index in np.ndindex(x.shape[2:]):
            label = ",".join(str(i + 1) for i in index)
            scalars[f"{key}[{label}]"] = x[(slice(None), slice(None), *index)]
    return scalars


def _normal_scores(x):
    ranks = rankdata(x, method="average").reshape(x.shape)
    return norm.ppf((ranks - 0.375) / (x.size + 0.25))


def r_hat(x):
    """Rank-normalized split R-hat: the larger of the bulk and folded ones."""
    if not np.all(np.isfinite(x)) or np.ptp(x) == 0:
        return np.nan
    folded = np.abs(x - np.median(x))
    with np.errstate(all="ignore"):
        both = [split_gelman_rubin(_normal_scores(v)) for v in (x, folded)]
    return float(np.max(both))


def bulk_ess(x):
    """Effective sample size of the rank-normalized split chains."""
    if not np.all(np.isfinite(x)) or np.ptp(x) == 0:
        return np.nan
    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    with np.errstate(all="ignore"):
        return float(effective_sample_size(_normal_scores(split)))


def compare(name, samples):
    """Errors of ``samples`` against the reference draws of posterior ``name``.

    Returns a dictionary with

    - ``max_mean_error``: largest |mean - reference mean| / reference sd,
    - ``min_sd_ratio``, ``max_sd_ratio``: extremes of sd / reference sd,
    - ``max_r_hat``, ``min_ess``: worst rank-normalized split R-hat and bulk ESS,
    - ``passed`` and, if not, the ``reason``,
    - ``parameters``: the same figures for every scalar parameter.

    Draws that are not finite give figures that are NaN, and fail.
    """
    reference = load_reference(name)
    draws = scalar_draws(name, samples)
    if set(draws) != set(reference):
        raise ValueError(
            f"{name}: parameters {sorted(set(draws) ^ set(reference))} are not in "
            "both the draws and the reference"
        )

    parameters = {}
    for key, ref in reference.items():
        x = draws[key]
        with np.errstate(all="ignore"):
            parameters[key] = {
                "mean": float(x.mean()),
                "sd": float(x.std(ddof=1)),
                "mean_error": float(abs(x.mean() - ref["mean"]) / ref["sd"]),
                "sd_ratio": float(x.std(ddof=1) / ref["sd"]),
                "r_hat": r_hat(x),
                "ess": bulk_ess(x),
            }

    def extreme(function, key):  # np.max and np.min propagate NaN
        return float(function([p[key] for p in parameters.values()]))

    result = {
        "max_mean_error": extreme(np.max, "mean_error"),
        "min_sd_ratio": extreme(np.min, "sd_ratio"),
        "max_sd_ratio": extreme(np.max, "sd_ratio"),
        "max_r_hat": extreme(np.max, "r_hat"),
        "min_ess": extreme(np.min, "ess"),
    }
    low, high = SD_RATIO_RANGE
    reasons = []
    if not result["max_mean_error"] < MAX_MEAN_ERROR:
        reasons.append(f"mean error {result['max_mean_error']:.3f}")
    if not (result["min_sd_ratio"] >= low and result["max_sd_ratio"] <= high):
        reasons.append(f"sd ratio {result['min_sd_ratio']:.3f} to {result['max_sd_ratio']:.3f}")
    if not result["max_r_hat"] < MAX_R_HAT:
        reasons.append(f"R-hat {result['max_r_hat']:.3f}")
    result["passed"] = not reasons
    result["reason"] = ", ".join(reasons)
    result["parameters"] = parameters
    return result
