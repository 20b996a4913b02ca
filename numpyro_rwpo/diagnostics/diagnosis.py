"""``diagnose``: measure a finished run, look for reasons to doubt it, report both.

R-hat and ESS are ArviZ's; what warm-up chose is read from the kernel's state; the other figures
come from the modules of this package that are named after them.
"""

from dataclasses import replace
from statistics import mode
from typing import Any

import jax
import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.evidence import Evidence, estimate_evidence
from numpyro_rwpo.diagnostics.findings import find, find_remarks
from numpyro_rwpo.diagnostics.importance import Coverage, ensemble_coverage
from numpyro_rwpo.diagnostics.jumps import find_jumps
from numpyro_rwpo.diagnostics.measurements import (
    Chain,
    Coordinate,
    CorrectedChain,
    CorrectedCoordinate,
    CorrectedMeasurements,
    Measurements,
    RunSettings,
    SlowestStatistics,
    SteinFigures,
)
from numpyro_rwpo.diagnostics.mixing import particle_mixing, statistics
from numpyro_rwpo.diagnostics.modes import measure_modes
from numpyro_rwpo.diagnostics.posterior import Posterior, posterior_of
from numpyro_rwpo.diagnostics.report import Report
from numpyro_rwpo.diagnostics.stein import MAX_DRAWS, stein_discrepancy, stein_identities
from numpyro_rwpo.diagnostics.thresholds import FALSE_ALARM_RATE, RELEVANT_ERROR, max_z
from numpyro_rwpo.dynamics.adaptation import STUCK
from numpyro_rwpo.dynamics.estimates import MAX_STEPS
from numpyro_rwpo.dynamics.flows import ExactFlow
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.dynamics.transport import is_at_rest
from numpyro_rwpo.dynamics.trees import TreeMove
from numpyro_rwpo.model.split_check import describe_laplace_sites
from numpyro_rwpo.runs.mcmc import Run, latest_draws, read_finished_run


def diagnose(mcmc: Any, *, seed: int = 0) -> Report:
    """Report on a finished run: did it converge, what did it do, and what casts doubt on its draws.

    Args:
        mcmc: a NumPyro ``MCMC`` with an ``RWPO`` kernel, after ``run``; it may have been pickled.
        seed: seed of the random numbers that evidence and discrepancy need.

    Returns:
        A report that prints in a terminal and in a notebook. Its ``findings`` are the sentences to
        act on, its ``measurements`` and ``to_dict()`` have every figure.

    Raises:
        TypeError: ``mcmc`` is not such an object.
        ValueError: it has not been run, holds warm-up draws, or lacks latent sites.

    Example:
        >>> print(diagnose(mcmc))  # doctest: +SKIP
    """
    measurements = measure(read_finished_run(mcmc), seed)
    return Report(measurements, find(measurements), find_remarks(measurements))


def measure(run: Run, seed: int) -> Measurements:
    """All figures of a run."""
    posterior = posterior_of(run, centering=mode(np.asarray(run.state.centering, int).tolist()))
    posterior = posterior._replace(draws=posterior.draws[:, run.distinct])
    draws, is_finite = _finite_draws(posterior.draws)
    flat = draws.reshape(-1, draws.shape[2])
    log_density, gradients = posterior.evaluate(flat)
    key_coverage, key_evidence, key_stein = jax.random.split(jax.random.key(seed), 3)
    is_corrected = run.settings.corrected
    corrected = _corrected_coordinates(draws, posterior.names) if is_corrected else []
    bulk = np.array([row.ess_bulk for row in corrected])
    stein = _stein(key_stein, draws, gradients, posterior.names, bulk)
    if _deviates(stein, is_corrected):
        key_jumps = jax.random.fold_in(key_stein, 1)
        jumps = find_jumps(key_jumps, flat, posterior.names, posterior.evaluate)
        stein = replace(stein, jumps=jumps)
    common: dict[str, Any] = {
        "settings": _settings(run, posterior, float(is_finite.mean())),
        "coverage": _coverage(key_coverage, draws, run, posterior),
        "evidence": _evidence(key_evidence, draws, run, posterior),
        "stein": stein,
        "laplace_sites": _laplace_sites(run),
    }
    if not is_corrected:
        return Measurements(
            coordinates=_coordinates(draws, posterior.names),
            chains=_chains(run),
            mixing=None,
            **common,
        )
    # R-hat and ESS of single chains are computed for the 50 coordinates with the fewest effective
    # draws over all chains. The report shows only the worst value per chain, and with four chains
    # it would take ArviZ five times as long to compute all of them.
    worst = np.argsort(bulk)[:50]
    return CorrectedMeasurements(
        coordinates=corrected,
        chains=_corrected_chains(run, draws[:, :, worst]),
        modes=measure_modes(run.state.move, draws, posterior.names),
        mixing=_mixing(draws, log_density, posterior.names, run.particles),
        **common,
    )


def _finite_draws(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace draws that are not finite by finite ones; and say which are, (chains, draws).

    Rounding can put a draw of a constrained site on the border of its support, which is infinitely
    far away in unconstrained space.
    """
    is_finite = np.isfinite(draws).all(2)
    if is_finite.all() or not is_finite.any():
        return draws, is_finite
    draws = draws.copy()
    good = draws[is_finite]
    draws[~is_finite] = good[np.arange((~is_finite).sum()) % len(good)]
    return draws, is_finite


def _settings(run: Run, posterior: Posterior, share_of_finite_draws: float) -> RunSettings:
    num_chains, num_draws, dim = posterior.draws.shape
    settings = run.settings
    return RunSettings(
        is_corrected=settings.corrected,
        attention=settings.attention.name,
        num_chains=num_chains,
        num_draws=num_draws,
        num_samples=run.num_draws,
        num_particles=run.num_particles,
        num_warmup=settings.num_warmup,
        dim=dim,
        target_accept_prob=run.target_accept_prob,
        inverse_temperature=settings.inverse_temperature,
        is_normalized=posterior.is_normalized,
        share_of_finite_draws=share_of_finite_draws,
    )


def _laplace_sites(run: Run) -> dict[str, str]:
    """How each Laplace site was treated, in words."""
    if run.model is not None:
        centering = np.asarray(run.state.centering)
        return describe_laplace_sites(
            run.model, run.model_args, run.model_kwargs, run.laplace_sites, centering, run.priors
        )
    if run.laplace_sites is None or isinstance(run.laplace_sites, str):
        return {}
    return {"potential_fn": "the Laplace distributions in `laplace_sites`: split off, closed forms"}


def _coordinates(draws: np.ndarray, names: list[str]) -> list[Coordinate]:
    means, sds = draws.mean((0, 1)), draws.std((0, 1), ddof=1)
    return [
        Coordinate(name=name, mean=float(mean), sd=float(sd))
        for name, mean, sd in zip(names, means, sds, strict=True)
    ]


def _corrected_coordinates(draws: np.ndarray, names: list[str]) -> list[CorrectedCoordinate]:
    r_hat = convergence.r_hat(draws)
    bulk, tail = convergence.ess(draws), convergence.ess(draws, "tail")
    return [
        CorrectedCoordinate(
            name=row.name,
            mean=row.mean,
            sd=row.sd,
            r_hat=float(r_hat[k]),
            ess_bulk=float(bulk[k]),
            ess_tail=float(tail[k]),
        )
        for k, row in enumerate(_coordinates(draws, names))
    ]


def _chains(run: Run) -> list[Chain]:
    state = run.state
    progress = state.warm_up.progress
    at_rest = is_at_rest(progress, run.settings.corrected)
    return [
        Chain(
            num_gradients=int(state.num_gradients[chain]),
            transport_residual=float(progress.residual[chain]),
            transport_steps=int(progress.steps[chain]),
            transport_at_rest=bool(at_rest[chain]),
        )
        for chain in range(len(state.step_size))
    ]


def _corrected_chains(run: Run, worst: np.ndarray) -> list[CorrectedChain]:
    """What happened in each chain, with R-hat and ESS of the worst coordinates.

    Args:
        run: the run.
        worst: draws of the coordinates to look at, (chains, draws, num_coordinates).
    """
    state, warm_up = run.state, run.state.warm_up
    in_buffer = state.buffer.accept_prob.reshape(len(state.step_size), -1)
    accept_prob = np.asarray(run.extra_fields.get("accept_prob", in_buffer))
    particles = run.particles
    if "accept_prob" not in run.extra_fields:
        particles = np.repeat(np.arange(run.num_particles), run.num_states)
    diverging = np.asarray(run.extra_fields["diverging"])
    metric, flow = _metric_and_flow(run)
    has_jumps = run.has_proposal or isinstance(state.move, ModeMove)
    rows = []
    for chain, row in enumerate(_chains(run)):
        num_steps, num_sweeps, num_jumps = _way_between_draws(state, chain)
        rows.append(
            CorrectedChain(
                num_gradients=row.num_gradients,
                transport_residual=row.transport_residual,
                transport_steps=row.transport_steps,
                transport_at_rest=row.transport_at_rest,
                r_hat=float(np.max(convergence.within_r_hat(worst[chain]))),
                ess_bulk=float(np.min(convergence.ess(worst[chain : chain + 1]))),
                ess_tail=float(np.min(convergence.ess(worst[chain : chain + 1], "tail"))),
                accept_prob=float(accept_prob[chain].mean()),
                num_divergences=int(diverging[chain].sum()),
                placement="descent" if warm_up.is_descent[chain] else "plain",
                warmup_gradients=int(warm_up.num_gradients[chain]),
                warmup_gradients_in_a_row=int(warm_up.num_rows[chain]),
                warmup_updates=int(warm_up.num_updates[chain]),
                is_settled=bool(warm_up.is_settled[chain]),
                metric=metric,
                flow=flow,
                step_size=float(state.step_size[chain]),
                steps_per_trajectory=num_steps,
                is_trajectory_cut=num_steps >= MAX_STEPS,
                trajectories_per_draw=num_sweeps,
                jumps_per_draw=num_jumps if has_jumps else 0,
                gradients_per_draw=int(state.num_steps[chain]),
                share_stuck=stuck_share(accept_prob[chain], particles, num_sweeps),
            )
        )
    return rows


def _way_between_draws(state: RWPOState, chain: int) -> tuple[int, int, int]:
    """Steps of a trajectory, trajectories, and jumps between two draws of a particle."""
    move = state.move
    if isinstance(move, (HamiltonianMove, ModeMove)):
        numbers = move.num_steps[chain], move.num_sweeps[chain], move.num_jumps[chain]
        return int(numbers[0]), int(numbers[1]), int(numbers[2])
    return round(float(state.buffer.num_steps[chain].mean())), 1, 0


def _metric_and_flow(run: Run) -> tuple[str, str]:
    """The metric and the flow that warm-up chose, in words."""
    move = run.state.move
    if isinstance(move, TreeMove):
        return "diagonal", "no U-turn"
    assert isinstance(move, (HamiltonianMove, ModeMove))
    if isinstance(move.flow, ExactFlow):
        return "diagonal", "exact"
    settings = run.settings
    return "dense" if settings.dense else "low-rank" if settings.rank else "diagonal", "harmonic"


def stuck_share(accept_prob: np.ndarray, particles: np.ndarray, num_sweeps: int) -> float:
    """Share of the particles that accept next to nothing.

    Args:
        accept_prob: mean acceptance probability of the trajectories before each draw, (num_draws,).
        particles: index of the particle of which each draw is a state, (num_draws,).
        num_sweeps: trajectories before each draw. Particles with fewer than eight in all may have
            rejected them by chance, and do not count as stuck.
    """
    number = np.bincount(particles)
    mean = np.bincount(particles, accept_prob) / np.maximum(number, 1)
    # At the default target, a particle that moves well rejects one trajectory with a probability of
    # about 0.2, and eight in a row with a probability of 3e-6. That is far below the share of stuck
    # particles that is reported, which leaves room for the correlation of energy errors in
    # successive trajectories.
    is_stuck = (mean < STUCK) & (number * num_sweeps >= 8)
    return float(is_stuck.sum() / (number > 0).sum())


def _mixing(
    draws: np.ndarray, log_density: np.ndarray, names: list[str], particles: np.ndarray
) -> SlowestStatistics | None:
    """How particles decorrelate; ``None`` where each has been drawn only once."""
    values = statistics(draws, log_density.reshape(draws.shape[:2]))
    mixing = particle_mixing(values, particles)
    if mixing is None:
        return None
    labels = [*names, "log density", *(f"{name} squared" for name in names)]
    slowest = int(np.argmax(mixing.correlation))
    moving = int(np.argmax(np.abs(mixing.drift_z)))
    return SlowestStatistics(
        draws_per_particle=mixing.draws_per_particle,
        correlation=float(mixing.correlation[slowest]),
        correlation_error=mixing.correlation_error,
        slowest=labels[slowest],
        drift_z=float(mixing.drift_z[moving]),
        drifting=labels[moving],
        num_statistics=len(labels),
    )


def _coverage(rng_key: jax.Array, draws: np.ndarray, run: Run, posterior: Posterior) -> Coverage:
    latest = latest_draws(run.particles[run.distinct], run.num_particles)
    return ensemble_coverage(
        rng_key,
        draws[:, latest],
        lambda x: posterior.evaluate(x)[0],
        posterior.prior,
        attention=run.settings.attention,
        relative_time=run.relative_prox_time,
    )


def _evidence(rng_key: jax.Array, draws: np.ndarray, run: Run, posterior: Posterior) -> Evidence:
    return estimate_evidence(
        rng_key,
        draws,
        lambda x: posterior.evaluate(x)[0],
        posterior.prior,
        attention=run.settings.attention,
        relative_time=run.relative_prox_time,
        is_exact=run.settings.corrected,
    )


def _stein(
    rng_key: jax.Array,
    draws: np.ndarray,
    gradients: np.ndarray,
    names: list[str],
    bulk: np.ndarray,
) -> SteinFigures:
    """Kernel Stein discrepancy, and the coordinates that violate Stein's identities most.

    Args:
        rng_key: random key.
        draws: draws or particles, (chains, draws, dim).
        gradients: scores at them, (chains * draws, dim).
        names: names of the coordinates.
        bulk: bulk effective sample sizes, (dim,); empty for noise-free particles.
    """
    flat = draws.reshape(-1, draws.shape[2])
    num_effective, number = None, len(flat)
    if bulk.size:
        virial = (draws - draws.mean((0, 1))) * gradients.reshape(draws.shape)
        found = np.nan_to_num(convergence.ess_of_mean(virial), nan=1.0)
        num_effective = np.clip(found, 1.0, len(flat))
        # As many draws, evenly spaced, as there are effective ones: the test takes them to be
        # independent. With fewer than 20, it says nothing.
        number = max(int(min(num_effective.min(), bulk.min())), 20)
    number = min(MAX_DRAWS, number, len(flat))
    chosen = np.linspace(0, len(flat) - 1, number).astype(int)
    discrepancy = stein_discrepancy(rng_key, flat[chosen], gradients[chosen])
    identities = stein_identities(flat, -gradients, num_effective)
    worst_virial = int(np.argmax(np.abs(identities.virial_z)))
    worst_force = int(np.argmax(np.abs(identities.force_z)))
    return SteinFigures(
        discrepancy=discrepancy,
        virial=tuple(identities.virial.tolist()),
        force=tuple(identities.force.tolist()),
        worst_virial=float(identities.virial[worst_virial]),
        worst_virial_z=float(identities.virial_z[worst_virial]),
        worst_virial_name=names[worst_virial],
        worst_force=float(identities.force[worst_force]),
        worst_force_z=float(identities.force_z[worst_force]),
        worst_force_name=names[worst_force],
    )


def _deviates(stein: SteinFigures, is_corrected: bool) -> bool:
    """Whether the draws violate Stein's identities by more than chance or bias explains."""
    if not is_corrected:
        return any(abs(value - 1) > RELEVANT_ERROR for value in stein.virial)
    limit = max_z(2 * len(stein.virial))
    is_off = abs(stein.worst_virial_z) > limit or abs(stein.worst_force_z) > limit
    return is_off or stein.discrepancy.p_value <= FALSE_ALARM_RATE
