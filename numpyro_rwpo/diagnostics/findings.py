"""Reasons to doubt a run: figures in, sentences out.

Every finding is one sentence: what was seen; what it means; what to change. Thresholds have their
reason beside them; those on z-scores are such that a sound run is found fault with about once in a
thousand runs.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

from numpyro_rwpo.diagnostics.importance import MAX_RELIABLE, Coverage
from numpyro_rwpo.dynamics.hamiltonian import MAX_STEPS

MAX_R_HAT = 1.01  # Vehtari et al. (2021), sec. 4
MIN_ESS_PER_CHAIN = 100  # the same: below it R-hat and ESS are themselves unreliable
# Warm-up aims at a tenth between draws of a particle; a fifth makes ESS wrong by a half.
_MAX_STUCK = 0.0025  # share of the particles
MAX_CORRELATION = 0.2
_ERRORS = 5.0  # standard errors of a correlation, the largest of up to some thousand
_FALSE_ALARM = 1e-3  # of each family of z-scores
_MIN_ACCEPTANCE = 0.6  # of the target: farther below it, the step size was not adapted
_MAX_LOG_EVIDENCE_ERROR = 0.2  # nats: Bayes factors wrong by a quarter
_PRODUCED_BY_CHANCE = 0.002  # smallest p-values that a thousand bootstraps resolve


class Finding(NamedTuple):
    """One reason to doubt the draws.

    Attributes:
        about: what it is about, one or two words.
        sentence: what was seen; what it means; what to change.
    """

    about: str
    sentence: str


def max_z(number: int) -> float:
    """Largest |z| that ``number`` standard normal scores exceed once in a thousand times."""
    return NormalDist().inv_cdf(1 - _FALSE_ALARM / (2 * number))


def find(figures: dict[str, Any]) -> list[Finding]:
    """All findings of a run, the gravest kinds first; of the figures of ``diagnose``."""
    checks = _CORRECTED if figures["settings"]["is_corrected"] else _NOISE_FREE
    return [finding for check in checks for finding in check(figures)]


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _finite(figures: dict[str, Any]) -> list[Finding]:
    share = figures["settings"]["share_of_finite_draws"]
    if share == 1:
        return []
    return [
        Finding(
            "finite draws",
            f"{1 - share:.2%} of the draws are not finite in unconstrained space; a site sits on "
            "the border of its support or the model overflows, and these draws were left out here; "
            "run in double precision (numpyro.enable_x64()) or bound the scale of the parameters.",
        )
    ]


def _single_chain(figures: dict[str, Any]) -> list[Finding]:
    if figures["settings"]["num_chains"] > 1:
        return []
    return [
        Finding(
            "chains",
            "There is one chain; R-hat between chains does not exist, and an ensemble in the wrong "
            "place has nothing to disagree with; run with `num_chains=4`.",
        )
    ]


def _r_hat(figures: dict[str, Any]) -> list[Finding]:
    rows = [row for row in figures["coordinates"] if not row["r_hat"] <= MAX_R_HAT]
    constant = [row["name"] for row in figures["coordinates"] if not row["sd"] > 0]
    found = []
    if constant:
        found.append(
            Finding(
                "constant",
                f"{_listed(constant)} never changed; no proposal was accepted or the parameter has "
                "no room to move; look at the model there, and raise `num_warmup`.",
            )
        )
    if rows and figures["settings"]["num_chains"] > 1:
        rows.sort(key=lambda row: -row["r_hat"])
        found.append(
            Finding(
                "R-hat",
                f"R-hat is {rows[0]['r_hat']:.3f} for {rows[0]['name']} and above {MAX_R_HAT} for "
                f"{len(rows)} of {len(figures['coordinates'])} coordinates; the ensembles have not "
                "reached the same distribution; raise `num_warmup` (now "
                f"{figures['settings']['num_warmup']}), and if that does not help look for several "
                "modes or a funnel in these parameters.",
            )
        )
    return found


def _ess(figures: dict[str, Any]) -> list[Finding]:
    settings = figures["settings"]
    least = MIN_ESS_PER_CHAIN * settings["num_chains"]
    row = min(figures["coordinates"], key=lambda row: min(row["ess_bulk"], row["ess_tail"]))
    worst = min(row["ess_bulk"], row["ess_tail"])
    if worst >= least:
        return []
    return [
        Finding(
            "ESS",
            f"The effective sample size of {row['name']} is {worst:.0f}, below {least} "
            f"({MIN_ESS_PER_CHAIN} a chain); means, quantiles and R-hat itself are too noisy to "
            f"rely on; raise `num_samples` (now {settings['num_samples']}).",
        )
    ]


def _slow_particles(figures: dict[str, Any]) -> list[Finding]:
    passes, found = figures["passes"], []
    reparametrise = (
        "reparametrise (LocScaleReparam for a hierarchy), or raise `num_warmup` and "
        "`target_accept_prob` until the answer stays"
    )
    limited = [row for row in figures["chains"] if row["is_sweep_limit_reached"]]
    if limited:
        expected = max(row["expected_residual_correlation"] for row in limited)
        most = max(row["hamiltonian_sweeps"] for row in limited)
        found.append(
            Finding(
                "slow particles",
                f"In {len(limited)} of {len(figures['chains'])} chains a refresh takes the most "
                f"sweeps allowed ({most}), after which warm-up still expects a "
                f"correlation of {expected:.2f} between draws of a particle; particles stay near "
                "where warm-up left them and R-hat and ESS, which compare different particles, "
                f"do not show it; {reparametrise}.",
            )
        )
    if passes is None:
        return found
    limit = MAX_CORRELATION + _ERRORS * passes["correlation_error"]
    if passes["correlation"] > limit:
        found.append(
            Finding(
                "slow particles",
                f"Successive draws of the same particle have a correlation of "
                f"{passes['correlation']:.2f} in {passes['slowest']} (at most 0.1 is intended); "
                "particles forget slowly, so R-hat and ESS, which compare different particles, are "
                f"too good; {reparametrise}.",
            )
        )
    if abs(passes["drift_z"]) > max_z(passes["num_statistics"]):
        found.append(
            Finding(
                "drift",
                f"The mean of {passes['drifting']} differs by {abs(passes['drift_z']):.1f} "
                "standard errors between the first and the last pass over the particles; the "
                "ensembles were still on their way when the first draws were kept; raise "
                "`num_warmup` (now "
                f"{figures['settings']['num_warmup']}).",
            )
        )
    return found


def _stuck_particles(figures: dict[str, Any]) -> list[Finding]:
    shares = [row["share_stuck"] for row in figures["chains"]]
    share = sum(shares) / len(shares)
    limit = max(row["stuck_below"] for row in figures["chains"])
    if share <= _MAX_STUCK:
        return []
    return [
        Finding(
            "stuck particles",
            f"{share:.1%} of the particles accepted less than a tenth of the usual steps between "
            "two draws: they stay where warm-up left them, whatever the share of that region "
            "should be, and R-hat and ESS do not show it; standard deviations may be too large. "
            f"Compare with the draws whose extra field `accept_prob` is above {limit:.2f}; raise "
            "`num_warmup`, or reparametrise.",
        )
    ]


def _divergences(figures: dict[str, Any]) -> list[Finding]:
    settings = figures["settings"]
    number = sum(row["num_divergences"] for row in figures["chains"])
    total = settings["num_draws"] * settings["num_chains"]
    if not number:
        return []
    return [
        Finding(
            "divergences",
            f"{number} of {total} draws ({number / total:.1%}) diverged; the posterior curves more "
            "sharply somewhere than the step size can follow, and that region may be missing from "
            "the draws; reparametrise the model (LocScaleReparam for a hierarchy), or raise "
            f"`target_accept_prob` (now {settings['target_accept_prob']:g}) towards 0.99.",
        )
    ]


def _step_size(figures: dict[str, Any]) -> list[Finding]:
    found = []
    target = figures["settings"]["target_accept_prob"]
    lowest = min(row["accept_prob"] for row in figures["chains"])
    if lowest < _MIN_ACCEPTANCE * target:
        found.append(
            Finding(
                "acceptance",
                f"A chain accepts {lowest:.2f} of its proposals where {target:g} was the target; "
                "the step size had not settled when warm-up ended, and its particles hardly move; "
                f"raise `num_warmup` (now {figures['settings']['num_warmup']}).",
            )
        )
    cut = sum(row["is_trajectory_cut"] for row in figures["chains"])
    if cut:
        found.append(
            Finding(
                "step size",
                f"In {cut} of {len(figures['chains'])} chains the steps are so small that a "
                f"trajectory is cut off at {MAX_STEPS} of them; scales differ more within the "
                "posterior than one metric can even out; reparametrise the model.",
            )
        )
    return found


def _stein(figures: dict[str, Any]) -> list[Finding]:
    stein, found = figures["stein"], []
    limit = max_z(2 * figures["settings"]["dim"])
    if abs(stein["worst_virial_z"]) > limit:
        shape = "narrow" if stein["worst_virial"] < 1 else "wide"
        found.append(
            Finding(
                "Stein identity",
                f"The mean of (x - mean) dU/dx is {stein['worst_virial']:.2f} for "
                f"{stein['worst_virial_name']} where 1 is exact, "
                f"{abs(stein['worst_virial_z']):.1f} standard errors off; the draws are too "
                f"{shape} there; raise `num_warmup` and compare with a second sampler.",
            )
        )
    if abs(stein["worst_force_z"]) > limit:
        found.append(
            Finding(
                "Stein identity",
                f"The mean force dU/dx on {stein['worst_force_name']} is "
                f"{abs(stein['worst_force_z']):.1f} standard errors from 0; the draws are shifted, "
                "or cut off on one side; raise `num_warmup` and compare with a second sampler.",
            )
        )
    discrepancy = stein["discrepancy"]
    if discrepancy["p_value"] <= _PRODUCED_BY_CHANCE:
        found.append(
            Finding(
                "Stein discrepancy",
                f"The kernel Stein discrepancy of the draws is {discrepancy['squared']:.2g}, above "
                f"the {discrepancy['upper']:.2g} that 95 % of independent samples stay below "
                f"(p = {discrepancy['p_value']:.3f}); the draws do not fit the posterior density; "
                "raise `num_warmup` and compare with a second sampler.",
            )
        )
    return found


def _coverage(figures: dict[str, Any]) -> list[Finding]:
    coverage = Coverage(**figures["coverage"])
    if coverage.is_sufficient:
        return []
    consequence = (
        "the corrected draws do not depend on it, but noise-free particles and importance weights "
        "would be wrong; nothing needs to change unless you need those, then raise "
        "`num_particles`"
        if figures["settings"]["is_corrected"]
        else "the particles are not a substitute for draws and importance weights cannot mend "
        "them; use `correction='metropolis'`, or raise `num_particles`"
    )
    return [
        Finding(
            "k-hat",
            f"Pareto k-hat of the density fitted to an ensemble is {coverage.k_hat:.2f} (reliable "
            f"up to {MAX_RELIABLE}) and {coverage.efficiency:.1%} of its proposals are effective; "
            f"the density of {coverage.num_fitted} particles does not cover the posterior; "
            f"{consequence}.",
        )
    ]


def _evidence(figures: dict[str, Any]) -> list[Finding]:
    evidence = figures["evidence"]
    error, k_hat = evidence["standard_error"], evidence["k_hat"]
    is_corrected = figures["settings"]["is_corrected"]
    if error <= _MAX_LOG_EVIDENCE_ERROR:
        return []
    change = (
        "raise `num_samples`, or use nested sampling for the evidence"
        if is_corrected
        else "use `correction='metropolis'`, which allows bridge sampling"
    )
    seen = f"a standard error of {error:.2g} nats" if math.isfinite(error) else "no standard error"
    return [
        Finding(
            "evidence",
            f"The log evidence has {seen} (Pareto k-hat of the density behind it: {k_hat:.2f}); "
            "that density overlaps too little with the posterior for a comparison of models; "
            f"{change}.",
        )
    ]


def _at_rest(figures: dict[str, Any]) -> list[Finding]:
    moving = [row for row in figures["chains"] if not row["transport_at_rest"]]
    if not moving:
        return []
    residual = max(row["transport_residual"] for row in moving)
    return [
        Finding(
            "transport",
            f"In {len(moving)} of {len(figures['chains'])} ensembles the flow was still getting "
            f"slower when it was stopped (residual {residual:.2g} standard deviations a unit of "
            "time); the particles are not at its fixed point; raise `num_warmup` (now "
            f"{figures['settings']['num_warmup']}).",
        )
    ]


def _repeats(figures: dict[str, Any]) -> list[Finding]:
    settings = figures["settings"]
    if settings["num_samples"] <= settings["num_draws"]:
        return []
    return [
        Finding(
            "repeats",
            f"{settings['num_samples']} draws a chain were kept of {settings['num_draws']} "
            "distinct noise-free particles; later draws repeat earlier ones and add nothing (they "
            "are left out here); set `num_samples` to `num_particles` at most, or raise that.",
        )
    ]


def _noise_free_bias(figures: dict[str, Any]) -> list[Finding]:
    stein = figures["stein"]
    narrow = sum(value < 0.9 for value in stein["virial"])
    wide = sum(value > 1.1 for value in stein["virial"])
    if not narrow + wide:
        return []
    return [
        Finding(
            "spread",
            f"Stein's identity E[(x - mean) dU/dx] = 1 is off by more than a tenth in {narrow} "
            f"coordinates that are too narrow and {wide} that are too wide (worst: "
            f"{stein['worst_virial']:.2f} for {stein['worst_virial_name']}); this is the bias of "
            "the noise-free flow, which no number of draws removes; use "
            "`correction='metropolis'` for inference, or change `relative_prox_time`.",
        )
    ]


Check = Callable[[dict[str, Any]], list[Finding]]
_CORRECTED: tuple[Check, ...] = (
    _finite,
    _single_chain,
    _r_hat,
    _slow_particles,
    _stuck_particles,
    _divergences,
    _step_size,
    _ess,
    _stein,
    _coverage,
    _evidence,
)
_NOISE_FREE: tuple[Check, ...] = (
    _finite,
    _repeats,
    _at_rest,
    _noise_free_bias,
    _coverage,
    _evidence,
)
