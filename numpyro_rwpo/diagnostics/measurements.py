"""The figures of a run that ``diagnose`` reports, as typed records.

Noise-free particles are not a Markov chain, so their records lack what only a chain has: R-hat,
effective sample sizes, acceptance. The records of a corrected run extend those of a noise-free one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from numpyro_rwpo.diagnostics.evidence import Evidence
from numpyro_rwpo.diagnostics.importance import Coverage
from numpyro_rwpo.diagnostics.jumps import Jumps
from numpyro_rwpo.diagnostics.modes import Mode
from numpyro_rwpo.diagnostics.stein import SteinDiscrepancy


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run was asked to do, and how much it holds.

    Attributes:
        is_corrected: whether the draws are those of Metropolis-adjusted moves.
        attention: name of the attention head.
        num_chains: number of chains.
        num_draws: draws of a chain that were looked at; of noise-free particles each once.
        num_samples: kept draws of a chain, repetitions included.
        num_particles: particles in an ensemble.
        num_warmup: warm-up iterations.
        dim: number of unconstrained coordinates.
        target_accept_prob: acceptance probability that the step size was adapted to.
        inverse_temperature: power of the posterior that was sampled.
        is_normalized: whether the log density has all its constants.
        share_of_finite_draws: share of the draws that are finite in unconstrained space.
    """

    is_corrected: bool
    attention: str
    num_chains: int
    num_draws: int
    num_samples: int
    num_particles: int
    num_warmup: int
    dim: int
    target_accept_prob: float
    inverse_temperature: float
    is_normalized: bool
    share_of_finite_draws: float


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One unconstrained coordinate over all chains.

    Attributes:
        name: for example ``"beta[3]"``.
        mean: mean of the draws.
        sd: standard deviation of the draws.
    """

    name: str
    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class CorrectedCoordinate(Coordinate):
    """One unconstrained coordinate of a corrected run.

    Attributes:
        r_hat: rank-normalized split R-hat; not a number with a single chain.
        ess_bulk: bulk effective sample size.
        ess_tail: tail effective sample size.
    """

    r_hat: float
    ess_bulk: float
    ess_tail: float


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What happened to one ensemble during warm-up.

    Attributes:
        num_gradients: gradient evaluations of all particles, warm-up included.
        transport_residual: speed of the median particle when transport ended, in standard
            deviations per unit of time; infinite where there was no transport.
        transport_steps: steps that transport took.
        transport_at_rest: whether the flow had stopped getting slower.
    """

    num_gradients: int
    transport_residual: float
    transport_steps: int
    transport_at_rest: bool


@dataclass(frozen=True, kw_only=True)
class CorrectedChain(Chain):
    """What happened in one corrected chain.

    Attributes:
        r_hat: R-hat between the halves of the chain, of its worst coordinate.
        ess_bulk: bulk effective sample size of its worst coordinate.
        ess_tail: tail effective sample size of its worst coordinate.
        accept_prob: mean acceptance probability.
        num_divergences: draws that are marked as divergent.
        placement: ``"descent"`` or ``"plain"``: where the ensemble came from.
        warmup_gradients: gradient evaluations of all particles in warm-up.
        warmup_gradients_in_a_row: of these, how many one after another.
        warmup_updates: trajectories of each particle during adaptation.
        is_settled: whether adaptation ended because its estimates were steady.
        metric: ``"dense"``, ``"low-rank"`` or ``"diagonal"``.
        flow: ``"harmonic"``, ``"exact"`` or ``"no U-turn"``.
        step_size: leapfrog step size, in whitened units.
        steps_per_trajectory: leapfrog steps in a trajectory.
        is_trajectory_cut: whether that is the most that is allowed.
        trajectories_per_draw: trajectories between two draws of a particle.
        jumps_per_draw: jumps to draws of the user's proposal, or to other modes, between two draws
            of a particle.
        gradients_per_draw: gradient evaluations of a particle between two of its draws.
        share_stuck: share of the particles that have hardly moved in all their draws.
    """

    r_hat: float
    ess_bulk: float
    ess_tail: float
    accept_prob: float
    num_divergences: int
    placement: str
    warmup_gradients: int
    warmup_gradients_in_a_row: int
    warmup_updates: int
    is_settled: bool
    metric: str
    flow: str
    step_size: float
    steps_per_trajectory: int
    is_trajectory_cut: bool
    trajectories_per_draw: int
    jumps_per_draw: int
    gradients_per_draw: int
    share_stuck: float


@dataclass(frozen=True, kw_only=True)
class SlowestStatistics:
    """The statistics that decorrelate and settle least, see :mod:`numpyro_rwpo.diagnostics.mixing`.

    Attributes:
        draws_per_particle: draws of a chain for each particle, on average and rounded down.
        correlation: largest correlation between successive draws of the same particle.
        correlation_error: standard error that it has if draws are independent.
        slowest: name of the statistic with that correlation.
        drift_z: largest change from a particle's first draw to its last, in standard errors.
        drifting: name of the statistic with that change.
        num_statistics: number of statistics that were compared.
    """

    draws_per_particle: int
    correlation: float
    correlation_error: float
    slowest: str
    drift_z: float
    drifting: str
    num_statistics: int


@dataclass(frozen=True, kw_only=True)
class SteinFigures:
    """How the draws fit the gradient of the log density, see :mod:`numpyro_rwpo.diagnostics.stein`.

    Attributes:
        discrepancy: kernel Stein discrepancy.
        virial: mean of (x - mean) dU/dx of each coordinate; 1 is exact.
        force: mean of dU/dx of each coordinate, in units of one over its standard deviation; 0 is
            exact.
        worst_virial: the virial that is most standard errors from 1.
        worst_virial_z: its distance from 1 in standard errors.
        worst_virial_name: its coordinate.
        worst_force: the force that is most standard errors from 0.
        worst_force_z: its distance from 0 in standard errors.
        worst_force_name: its coordinate.
        jumps: jumps of the density; ``None`` where the draws fit it, and there was no need to look.
    """

    discrepancy: SteinDiscrepancy
    virial: tuple[float, ...]
    force: tuple[float, ...]
    worst_virial: float
    worst_virial_z: float
    worst_virial_name: str
    worst_force: float
    worst_force_z: float
    worst_force_name: str
    jumps: Jumps | None = None


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """All figures of a run.

    Attributes:
        settings: what the run was asked to do, and how much it holds.
        coordinates: one record for each unconstrained coordinate.
        chains: one record for each chain.
        mixing: how particles decorrelate; ``None`` where that cannot be measured.
        coverage: how well the density of an ensemble covers the posterior.
        evidence: the model evidence.
        stein: how the draws fit the gradient of the log density.
        laplace_sites: how each Laplace site was treated, by its name.
    """

    settings: RunSettings
    coordinates: Sequence[Coordinate]
    chains: Sequence[Chain]
    mixing: SlowestStatistics | None
    coverage: Coverage
    evidence: Evidence
    stein: SteinFigures
    laplace_sites: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CorrectedMeasurements(Measurements):
    """All figures of a corrected run.

    Attributes:
        coordinates: one record for each unconstrained coordinate.
        chains: one record for each chain.
        modes: one record for each of several modes between which particles jumped, the largest
            first; empty if there was no jump.
    """

    coordinates: Sequence[CorrectedCoordinate]
    chains: Sequence[CorrectedChain]
    modes: Sequence[Mode] = ()


def plain(record: Any) -> Any:
    """Records as dictionaries and sequences as lists, all the way down, so that JSON takes them."""
    if is_dataclass(record):
        return {field.name: plain(getattr(record, field.name)) for field in fields(record)}
    if hasattr(record, "_asdict"):
        return plain(record._asdict())
    if isinstance(record, Mapping):
        return {key: plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [plain(value) for value in record]
    return record.tolist() if isinstance(record, np.ndarray) else record
