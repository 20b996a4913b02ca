"""Findings that compare draws with the posterior density: Stein's identities, fitted densities.

Their form is that of :mod:`numpyro_rwpo.diagnostics.findings`.
"""

import math
from typing import NamedTuple

from numpyro_rwpo.diagnostics.importance import MAX_RELIABLE
from numpyro_rwpo.diagnostics.measurements import Measurements
from numpyro_rwpo.diagnostics.tables import fixed
from numpyro_rwpo.diagnostics.thresholds import FALSE_ALARM_RATE, RELEVANT_ERROR, max_z


class Finding(NamedTuple):
    """One reason to doubt the draws, or a remark on what does not concern them.

    Attributes:
        about: what the finding is about, in one or two words.
        sentence: what was seen; what it means; what to change.
    """

    about: str
    sentence: str


def stein_findings(measurements: Measurements) -> list[Finding]:
    """Where draws violate Stein's identities.

    Of a density that jumps, only that it does: Stein's identities do not hold for it.
    """
    jumps = _jumps(measurements)
    if jumps is not None:
        return [jumps]
    is_corrected = measurements.settings.is_corrected
    checks = (_spread, _shift, _discrepancy) if is_corrected else (_noise_free_bias,)
    found = [check(measurements) for check in checks]
    return [finding for finding in found if finding is not None]


def fit_findings(measurements: Measurements) -> list[Finding]:
    """Where densities fitted to the draws do not cover the posterior."""
    found = [_coverage(measurements), _evidence(measurements)]
    return [finding for finding in found if finding is not None]


def _jumps(measurements: Measurements) -> Finding | None:
    """A density that jumps, which was looked for only where draws violate the identities."""
    jumps = measurements.stein.jumps
    if jumps is None or not jumps.share:
        return None
    size = f"by {jumps.largest:.2g} nats" if math.isfinite(jumps.largest) else "to zero"
    return Finding(
        "jumps",
        f"The density jumps, {size} in {jumps.name} and in {jumps.share:.1%} of short segments "
        "that start at draws; Stein's identities, which the draws do not fulfill, hold for "
        "continuous densities only and say nothing about these draws, and gradients do not show "
        "the sampler where the jumps are; compare with a second sampler, or make the density "
        "continuous (sum over the discrete quantity that jumps, or give the parameter the support "
        "that the data leave it).",
    )


def _spread(measurements: Measurements) -> Finding | None:
    stein = measurements.stein
    if not abs(stein.worst_virial_z) > max_z(2 * measurements.settings.dim):
        return None
    shape = "narrow" if stein.worst_virial < 1 else "wide"
    return Finding(
        "Stein identity",
        f"The mean of (x - mean) dU/dx is {fixed(stein.worst_virial, 2)} for "
        f"{stein.worst_virial_name} where 1 is exact, {fixed(abs(stein.worst_virial_z), 1)} "
        f"standard errors off; the draws are too {shape} there; raise `num_warmup` and compare "
        "with a second sampler.",
    )


def _shift(measurements: Measurements) -> Finding | None:
    stein = measurements.stein
    if not abs(stein.worst_force_z) > max_z(2 * measurements.settings.dim):
        return None
    return Finding(
        "Stein identity",
        f"The mean force dU/dx on {stein.worst_force_name} is "
        f"{fixed(abs(stein.worst_force_z), 1)} standard errors from 0; the draws are shifted, or "
        "cut off on one side; raise `num_warmup` and compare with a second sampler.",
    )


def _discrepancy(measurements: Measurements) -> Finding | None:
    discrepancy = measurements.stein.discrepancy
    if not discrepancy.p_value <= FALSE_ALARM_RATE:
        return None
    return Finding(
        "Stein discrepancy",
        f"The kernel Stein discrepancy of the draws is {discrepancy.squared:.2g}, and 95% of "
        f"independent samples stay below {discrepancy.upper:.2g} (p = {discrepancy.p_value:.3f}); "
        "the draws do not fit the posterior density; raise `num_warmup` and compare with a second "
        "sampler.",
    )


def _noise_free_bias(measurements: Measurements) -> Finding | None:
    stein = measurements.stein
    narrow = sum(value < 1 - RELEVANT_ERROR for value in stein.virial)
    wide = sum(value > 1 + RELEVANT_ERROR for value in stein.virial)
    if not narrow + wide:
        return None
    return Finding(
        "spread",
        f"Stein's identity E[(x - mean) dU/dx] = 1 is off by more than a tenth in {narrow} "
        f"coordinates that are too narrow and {wide} that are too wide (worst: "
        f"{fixed(stein.worst_virial, 2)} for {stein.worst_virial_name}); this is the bias of the "
        "noise-free flow, which no number of draws removes; use `corrected=True` for "
        "inference, or change `relative_prox_time`.",
    )


def _coverage(measurements: Measurements) -> Finding | None:
    coverage = measurements.coverage
    if coverage.is_sufficient:
        return None
    consequence = (
        "the corrected draws do not depend on it, but noise-free particles and importance weights "
        "would be wrong; nothing needs to change unless you need those, in which case raise "
        "`num_particles`"
        if measurements.settings.is_corrected
        else "the particles cannot replace draws, and importance weights cannot correct them; use "
        "`corrected=True`, or raise `num_particles`"
    )
    return Finding(
        "k-hat",
        f"Pareto k-hat of the density fitted to an ensemble is {coverage.k_hat:.2f} (reliable "
        f"up to {MAX_RELIABLE}) and {coverage.efficiency:.1%} of its proposals are effective; "
        f"the density of {coverage.num_fitted} particles does not cover the posterior; "
        f"{consequence}.",
    )


def _evidence(measurements: Measurements) -> Finding | None:
    error = measurements.evidence.standard_error
    # Beyond a standard error of 0.2 nats, Bayes factors are off by more than a fifth.
    if error <= 0.2:
        return None
    change = (
        "raise `num_samples`, or use nested sampling for the evidence"
        if measurements.settings.is_corrected
        else "use `corrected=True`, which allows bridge sampling"
    )
    seen = f"a standard error of {error:.2g} nats" if math.isfinite(error) else "no standard error"
    return Finding(
        "evidence",
        f"The log evidence has {seen} (Pareto k-hat of the density behind it: "
        f"{measurements.evidence.k_hat:.2f}); that density overlaps too little with the "
        f"posterior for a comparison of models; {change}.",
    )
