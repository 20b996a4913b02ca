"""Reasons to doubt a run: figures in, sentences out.

Every finding is one sentence in three parts: what was seen; what it means; what to change. A limit
that several modules share is in :mod:`numpyro_rwpo.diagnostics.thresholds`. Findings that compare
the draws with the posterior density are in :mod:`numpyro_rwpo.diagnostics.density_findings`.
"""

import math
from collections.abc import Callable

from numpyro_rwpo.diagnostics.density_findings import Finding, fit_findings, stein_findings
from numpyro_rwpo.diagnostics.measurements import CorrectedMeasurements, Measurements
from numpyro_rwpo.diagnostics.modes import Mode
from numpyro_rwpo.diagnostics.tables import fixed
from numpyro_rwpo.diagnostics.thresholds import MAX_R_HAT, MIN_ESS_PER_CHAIN, max_z
from numpyro_rwpo.dynamics.estimates import MAX_STEPS

# Share of the particles that are stuck. In a horseshoe regression with one stuck particle in a
# hundred, standard deviations were 9 to 16% too large; half of that share makes them wrong by about
# as much as the Monte Carlo error of a few hundred effective draws.
_MAX_STUCK = 0.005

# Correlation between successive draws of a particle, which stand next to each other in a chain.
# Effective sample sizes account for the correlation within a refresh, but not for what is left
# between two refreshes: at 0.9 that is 0.9^16 = 0.19 of the correlation, and the true variance of a
# mean is up to half as large again as they say.
_MAX_CORRELATION = 0.9

# Acceptance probability as a share of the target. In many dimensions it is 2 Phi(-c step_size^2)
# (Beskos et al. 2013), so that at this share of a target of 0.8 the step size is 1.7 times the one
# aimed at: adaptation has not settled.
_MIN_ACCEPTANCE = 0.6

# Share of the jumps out of a mode that are accepted. With at most 64 jumps between two draws, a
# particle then leaves its mode less than once in three draws.
_MIN_JUMP_RATE = 0.005


def find(measurements: Measurements) -> list[Finding]:
    """All findings of a run, the gravest kinds first."""
    if isinstance(measurements, CorrectedMeasurements):
        found = [check(measurements) for check in _OF_CHAINS]
        about_density = stein_findings(measurements)
    else:
        found = [check(measurements) for check in _OF_PARTICLES]
        about_density = stein_findings(measurements) + fit_findings(measurements)
    return [finding for finding in found if finding is not None] + about_density


def find_remarks(measurements: Measurements) -> list[Finding]:
    """What concerns the evidence and the densities fitted to ensembles, but not the draws.

    Noise-free particles have no remarks: they are no better than the densities fitted to them,
    which are among their findings.
    """
    return fit_findings(measurements) if measurements.settings.is_corrected else []


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _finite(measurements: Measurements) -> Finding | None:
    share = measurements.settings.share_of_finite_draws
    if share == 1:
        return None
    return Finding(
        "finite draws",
        f"{1 - share:.2%} of the draws are not finite in unconstrained space; a site sits on "
        "the border of its support or the model overflows, and these draws were left out here; "
        "run in double precision (numpyro.enable_x64()) or bound the scale of the parameters.",
    )


def _single_chain(measurements: CorrectedMeasurements) -> Finding | None:
    if measurements.settings.num_chains > 1:
        return None
    return Finding(
        "chains",
        "There is only one chain; R-hat between chains is not defined, and an ensemble in the "
        "wrong place goes unnoticed because no other disagrees with it; run with "
        "`num_chains=4`.",
    )


def _constant(measurements: CorrectedMeasurements) -> Finding | None:
    constant = [row.name for row in measurements.coordinates if not row.sd > 0]
    if not constant:
        return None
    return Finding(
        "constant",
        f"{_listed(constant)} never changed; either no proposal was accepted or the model "
        "determines the parameter; check the model there, and raise `num_warmup`.",
    )


def _r_hat(measurements: CorrectedMeasurements) -> Finding | None:
    settings = measurements.settings
    rows = [row for row in measurements.coordinates if not row.r_hat <= MAX_R_HAT]
    if not rows or settings.num_chains == 1:
        return None
    rows.sort(key=lambda row: -row.r_hat)
    return Finding(
        "R-hat",
        f"R-hat is {fixed(rows[0].r_hat, 3)} for {rows[0].name} and above {MAX_R_HAT} for "
        f"{len(rows)} of {len(measurements.coordinates)} coordinates; the ensembles have not "
        f"converged to the same distribution; raise `num_warmup` (now {settings.num_warmup}), "
        "and if that does not help, look for several modes or a funnel in these parameters.",
    )


def _ess(measurements: CorrectedMeasurements) -> Finding | None:
    settings = measurements.settings
    least = MIN_ESS_PER_CHAIN * settings.num_chains
    row = min(measurements.coordinates, key=lambda row: min(row.ess_bulk, row.ess_tail))
    worst = min(row.ess_bulk, row.ess_tail)
    if worst >= least:
        return None
    return Finding(
        "ESS",
        f"The effective sample size of {row.name} is {worst:.0f}, below {least} "
        f"({MIN_ESS_PER_CHAIN} per chain); means, quantiles and R-hat itself are too noisy to "
        f"rely on; raise `num_samples` (now {settings.num_samples}).",
    )


_REPARAMETERIZE = (
    "reparameterize (LocScaleReparam for a hierarchy), or raise `num_warmup` and "
    "`target_accept_prob` until the results no longer change"
)


def _unsettled(measurements: CorrectedMeasurements) -> Finding | None:
    chains = measurements.chains
    number = sum(not row.is_settled for row in chains)
    if not number:
        return None
    return Finding(
        "warm-up",
        f"In {number} of {len(chains)} chains the step size or the mean potential was still "
        "changing when warm-up had spent its budget of gradients; the first draws may not be from "
        f"the posterior; {_REPARAMETERIZE}.",
    )


def _correlation(measurements: CorrectedMeasurements) -> Finding | None:
    mixing = measurements.mixing
    if mixing is None:
        return None
    chance = max_z(mixing.num_statistics) * mixing.correlation_error
    if not mixing.correlation > _MAX_CORRELATION + chance:
        return None
    return Finding(
        "slow particles",
        f"Successive draws of the same particle have a correlation of "
        f"{mixing.correlation:.2f} in {mixing.slowest}; particles hardly move, and effective "
        "sample sizes, which see them for a few successive draws at a time, are still too "
        f"optimistic; {_REPARAMETERIZE}.",
    )


def _drift(measurements: CorrectedMeasurements) -> Finding | None:
    mixing = measurements.mixing
    if mixing is None or not abs(mixing.drift_z) > max_z(mixing.num_statistics):
        return None
    return Finding(
        "drift",
        f"The mean of {mixing.drifting} differs by {fixed(abs(mixing.drift_z), 1)} standard "
        "errors between the first and the last draws of the particles; the ensembles had not "
        "converged when the first draws were kept; raise `num_warmup` (now "
        f"{measurements.settings.num_warmup}).",
    )


def _stuck_particles(measurements: CorrectedMeasurements) -> Finding | None:
    chains = measurements.chains
    share = sum(row.share_stuck for row in chains) / len(chains)
    if share <= _MAX_STUCK:
        return None
    return Finding(
        "stuck particles",
        f"{share:.1%} of the particles accepted less than a tenth of their trajectories; they stay "
        "where warm-up left them, whatever the probability of that region, so that standard "
        f"deviations may be wrong; {_REPARAMETERIZE}.",
    )


def _divergences(measurements: CorrectedMeasurements) -> Finding | None:
    settings = measurements.settings
    number = sum(row.num_divergences for row in measurements.chains)
    total = settings.num_draws * settings.num_chains
    if not number:
        return None
    seen = f"{number} of {total} draws ({number / total:.1%}) diverged"
    jumps = measurements.stein.jumps
    if jumps is not None and math.isinf(jumps.largest):
        return Finding(
            "divergences",
            f"{seen}; trajectories across a border of the support count as such, and the density "
            f"falls to zero in {jumps.name}; give it the support that the data leave it.",
        )
    return Finding(
        "divergences",
        f"{seen}; the posterior curves more sharply somewhere than the step size can follow, and "
        "that region may be missing from the draws; reparameterize the model (LocScaleReparam for "
        f"a hierarchy), or raise `target_accept_prob` (now {settings.target_accept_prob:g}) toward "
        "0.99.",
    )


def _acceptance(measurements: CorrectedMeasurements) -> Finding | None:
    settings = measurements.settings
    lowest = min(row.accept_prob for row in measurements.chains)
    if not lowest < _MIN_ACCEPTANCE * settings.target_accept_prob:
        return None
    return Finding(
        "acceptance",
        f"A chain accepts {lowest:.2f} of its proposals where {settings.target_accept_prob:g} "
        "was the target; the step size had not settled when warm-up ended, and the particles "
        f"hardly move; raise `num_warmup` (now {settings.num_warmup}).",
    )


def _step_size(measurements: CorrectedMeasurements) -> Finding | None:
    cut = sum(row.is_trajectory_cut for row in measurements.chains)
    if not cut:
        return None
    return Finding(
        "step size",
        f"In {cut} of {len(measurements.chains)} chains the steps are so small that "
        f"trajectories are cut off after {MAX_STEPS} of them; scales differ more across the "
        "posterior than a single metric can even out; reparameterize the model.",
    )


def _place(mode: Mode) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in mode.center.items())


def _lonely_modes(measurements: CorrectedMeasurements) -> Finding | None:
    # Those that no chain found by itself come from the wider search, which all chains share and
    # which goes on as long as it finds any.
    found = [mode for mode in measurements.modes if mode.center and len(mode.found_by) == 1]
    if not found or measurements.settings.num_chains == 1:
        return None
    return Finding(
        "modes",
        f"{len(found)} of {len(measurements.modes)} modes, such as that at {_place(found[0])}, "
        "were found by one chain only; a mode that is so rarely found may have company that no "
        "chain found; run with more chains, or raise `num_particles`.",
    )


def _rare_jumps(measurements: CorrectedMeasurements) -> Finding | None:
    # A mode without draws has too small a share for its jumps to matter.
    stuck = [m for m in measurements.modes if m.center and m.jump_rate < _MIN_JUMP_RATE]
    if not stuck:
        return None
    worst = min(stuck, key=lambda mode: mode.jump_rate)
    return Finding(
        "jumps",
        f"Only {worst.jump_rate:.1%} of the jumps from the mode at {_place(worst)} to others are "
        "accepted; shares of modes may still be those with which the chains began; compare the "
        "chains, raise `num_samples`, or give a density that fits the modes (`proposal=`).",
    )


def _unequal_shares(measurements: CorrectedMeasurements) -> Finding | None:
    modes, num_chains = measurements.modes, measurements.settings.num_chains
    if not modes or num_chains == 1:
        return None
    worst = max(modes, key=lambda mode: mode.largest_z)
    if not worst.largest_z > max_z(len(modes) * num_chains):
        return None
    shares = ", ".join(f"{share:.2g}" for share in worst.share_of_chain)
    return Finding(
        "shares of modes",
        f"The chains have the shares {shares} of the mode at {_place(worst)}, which differ by "
        f"{fixed(worst.largest_z, 1)} standard errors; jumps are too rare to even them out; raise "
        "`num_samples`, or give a density that fits the modes (`proposal=`).",
    )


def _at_rest(measurements: Measurements) -> Finding | None:
    moving = [row for row in measurements.chains if not row.transport_at_rest]
    if not moving:
        return None
    residual = max(row.transport_residual for row in moving)
    return Finding(
        "transport",
        f"In {len(moving)} of {len(measurements.chains)} ensembles the flow was still slowing "
        f"down when it was stopped (residual {residual:.2g} standard deviations per unit of "
        "time); the particles are not at its fixed point; raise `num_warmup` (now "
        f"{measurements.settings.num_warmup}).",
    )


def _repeats(measurements: Measurements) -> Finding | None:
    settings = measurements.settings
    if settings.num_samples <= settings.num_draws:
        return None
    return Finding(
        "repeats",
        f"{settings.num_samples} draws per chain were kept of {settings.num_draws} distinct "
        "noise-free particles; later draws repeat earlier ones and add nothing (they are left "
        "out here); set `num_samples` to `num_particles` at most, or raise `num_particles`.",
    )


_OF_CHAINS: tuple[Callable[[CorrectedMeasurements], Finding | None], ...] = (
    _finite,
    _single_chain,
    _constant,
    _r_hat,
    _unsettled,
    _correlation,
    _drift,
    _stuck_particles,
    _divergences,
    _acceptance,
    _step_size,
    _lonely_modes,
    _rare_jumps,
    _unequal_shares,
    _ess,
)
_OF_PARTICLES: tuple[Callable[[Measurements], Finding | None], ...] = (
    _finite,
    _repeats,
    _at_rest,
)
