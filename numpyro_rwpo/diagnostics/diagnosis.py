"""``diagnose``: what a run did, and every reason to doubt it, in sentences.

Measurements come from ArviZ (R-hat, ESS), from the kernel's state (what warm-up chose) and from
:mod:`numpyro_rwpo.diagnostics.mixing`, :mod:`numpyro_rwpo.diagnostics.importance`,
:mod:`numpyro_rwpo.diagnostics.evidence` and :mod:`numpyro_rwpo.diagnostics.stein`; the findings
from :mod:`numpyro_rwpo.diagnostics.findings`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.evidence import estimate_evidence
from numpyro_rwpo.diagnostics.findings import find
from numpyro_rwpo.diagnostics.importance import ensemble_coverage
from numpyro_rwpo.diagnostics.mixing import compare_passes, statistics
from numpyro_rwpo.diagnostics.posterior import Posterior, posterior_of
from numpyro_rwpo.diagnostics.report import Report
from numpyro_rwpo.diagnostics.stein import MAX_DRAWS, stein_discrepancy, stein_identities
from numpyro_rwpo.dynamics.adaptation import max_hamiltonian
from numpyro_rwpo.dynamics.hamiltonian import MAX_STEPS, STUCK, trajectory_steps
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.dynamics.transport import is_at_rest
from numpyro_rwpo.model.split_check import describe_laplace_sites
from numpyro_rwpo.runs.mcmc import checked_state, draws_per_pass, num_distinct_draws

_ENOUGH_SWEEPS = 8  # for a mean that low to be no chance
_MAX_CHAIN_COORDINATES = 50  # for figures of single chains: those with the fewest effective draws


def diagnose(mcmc: Any, *, seed: int = 0) -> Report:
    """Report on a finished run: did it converge, what did it do, what speaks against its draws.

    Args:
        mcmc: a NumPyro ``MCMC`` with an ``RWPO`` kernel, after ``run``; also one that was pickled.
        seed: of the random numbers that evidence and discrepancy need.

    Returns:
        A report that prints in a terminal and in a notebook; ``findings`` are the sentences to act
        on, ``to_dict()`` has every figure.

    Raises:
        TypeError: ``mcmc`` is not such an object.
        ValueError: it has not been run, holds warm-up draws, or lacks latent sites.

    Example:
        >>> print(diagnose(mcmc))  # doctest: +SKIP
    """
    state, settings = checked_state(mcmc)
    centring = round(float(np.mean(state.centring)))
    posterior = posterior_of(mcmc, centring=centring)
    if settings.corrected:
        lag = draws_per_pass(mcmc, state)
    else:
        lag = None
        posterior = posterior._replace(draws=posterior.draws[:, : num_distinct_draws(mcmc)])
    draws, is_finite = _finite_draws(posterior.draws)
    flat = draws.reshape(-1, draws.shape[2])
    log_density, gradients = posterior.evaluate(flat)
    key_coverage, key_evidence, key_stein = jax.random.split(jax.random.key(seed), 3)
    num_particles = state.ensemble.particles.shape[1]

    figures: dict[str, Any] = {
        "settings": _settings_figures(mcmc, state, settings, posterior),
        "coordinates": _coordinates(draws, posterior.names, settings.corrected),
        "chains": _chains(mcmc, state, settings),
        "passes": _passes(draws, log_density, posterior.names, lag),
        "coverage": _coverage(key_coverage, draws, num_particles, posterior, settings),
        "evidence": _evidence(key_evidence, draws, posterior, settings),
        "stein": _stein(key_stein, draws, gradients, posterior.names, settings.corrected),
        "laplace_sites": _laplace_sites(mcmc, np.asarray(state.centring)),
    }
    figures["settings"]["share_of_finite_draws"] = float(is_finite.mean())
    if settings.corrected:
        _add_chain_convergence(figures, draws)
    return Report(figures, find(figures))


def _finite_draws(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws with rows that are not finite replaced by finite ones, and which are, (chains, draws).

    Rounding can put a draw of a constrained site on the border of its support.
    """
    is_finite = np.isfinite(draws).all(2)
    if is_finite.all() or not is_finite.any():
        return draws, is_finite
    draws = draws.copy()
    good = draws[is_finite]
    draws[~is_finite] = good[np.arange((~is_finite).sum()) % len(good)]
    return draws, is_finite


def _laplace_sites(mcmc: Any, centring: np.ndarray) -> dict[str, str]:
    kernel = mcmc.sampler
    if kernel.model is not None:
        return describe_laplace_sites(
            kernel.model, mcmc._args, mcmc._kwargs, kernel.nonsmooth, centring, kernel.priors
        )
    if kernel.nonsmooth is None or isinstance(kernel.nonsmooth, str):
        return {}
    return {"potential_fn": "the Laplace distributions in `nonsmooth`: split off, closed forms"}


def _settings_figures(
    mcmc: Any, state: RWPOState, settings: Settings, posterior: Posterior
) -> dict[str, Any]:
    return {
        "is_corrected": settings.corrected,
        "attention": settings.attention.name,
        "num_chains": posterior.draws.shape[0],
        "num_draws": posterior.draws.shape[1],
        "num_samples": mcmc.num_samples // mcmc.thinning,
        "num_particles": state.ensemble.particles.shape[1],
        "num_warmup": settings.num_warmup,
        "num_transport": settings.num_transport,
        "dim": posterior.draws.shape[2],
        "target_accept_prob": settings.target_accept_prob,
        "inverse_temperature": settings.inverse_temperature,
        "is_normalised": posterior.is_normalised,
    }


def _coordinates(draws: np.ndarray, names: list[str], is_corrected: bool) -> list[dict[str, Any]]:
    """Mean, sd and, for draws of a Markov chain, R-hat and ESS of every coordinate."""
    columns = {"mean": draws.mean((0, 1)), "sd": draws.std((0, 1), ddof=1)}
    if is_corrected:
        columns["r_hat"] = convergence.r_hat(draws)
        columns["ess_bulk"] = convergence.ess(draws)
        columns["ess_tail"] = convergence.ess(draws, "tail")
    return [
        {"name": name} | {key: float(values[k]) for key, values in columns.items()}
        for k, name in enumerate(names)
    ]


def _metric_and_flow(state: RWPOState, settings: Settings, chain: int) -> dict[str, str]:
    candidates = settings.candidates
    flow = candidates.flows[int(state.adaptation.chosen[chain])]
    metric = "diagonal"
    if flow != "exact":
        metric = "dense" if candidates.dense else "low-rank" if candidates.rank else "diagonal"
    return {"metric": metric, "flow": flow}


def _stuck(accept_prob: np.ndarray, num_sweeps: int, num_short: int) -> tuple[float, float]:
    """Share of draws whose particle accepted next to nothing since its last draw.

    Args:
        accept_prob: mean over the Hamiltonian sweeps since then, (num_draws,).
        num_sweeps: how many these were; after only a few, which particles that move well may
            reject by chance, the share counts as 0.
        num_short: how many of them took short steps, which stuck particles accept too.

    Returns:
        The share, and the mean acceptance below which a particle counts.
    """
    share_short = num_short / max(num_sweeps, 1)
    limit = share_short + STUCK * (1 - share_short)
    share = float(np.mean(accept_prob < limit)) if num_sweeps >= _ENOUGH_SWEEPS else 0.0
    return share, limit


def _chains(mcmc: Any, state: RWPOState, settings: Settings) -> list[dict[str, Any]]:
    """What happened in each chain, from the kernel's state."""
    fields = mcmc.get_extra_fields(group_by_chain=True)
    accept_prob = np.asarray(fields.get("accept_prob", state.refresh.accept_prob))
    sweeps = state.adaptation.sweeps
    at_rest = is_at_rest(state.flow, settings.corrected)
    has_proposal = mcmc.sampler.arguments["proposal"] is not None
    most_sweeps = max_hamiltonian(has_proposal=has_proposal)
    chains = []
    for chain in range(len(state.step_size)):
        row: dict[str, Any] = {
            "num_gradients": int(state.num_gradients[chain]),
            "transport_residual": float(state.flow.residual[chain]),
            "transport_steps": int(state.flow.steps[chain]),
            "transport_at_rest": bool(at_rest[chain]),
        }
        if settings.corrected:
            step_size = float(state.step_size[chain])
            steps = int(trajectory_steps(jnp.asarray(step_size)))
            num_sweeps, num_short = int(sweeps.num_hamiltonian[chain]), int(sweeps.num_short[chain])
            share_stuck, stuck_below = _stuck(accept_prob[chain], num_sweeps, num_short)
            row |= {
                "accept_prob": float(accept_prob[chain].mean()),
                "num_divergences": int(np.asarray(fields["diverging"])[chain].sum()),
                **_metric_and_flow(state, settings, chain),
                "step_size": step_size,
                "steps_per_sweep": steps,
                "is_trajectory_cut": steps >= MAX_STEPS,
                "independent_sweeps": int(sweeps.num_independent[chain]),
                "hamiltonian_sweeps": num_sweeps,
                "short_sweeps": num_short,
                "is_sweep_limit_reached": num_sweeps >= most_sweeps,
                "gradients_per_draw": int(state.refresh.num_steps[chain]),
                "share_stuck": share_stuck,
                "stuck_below": stuck_below,
                "expected_residual_correlation": float(sweeps.residual_correlation[chain]),
            }
        chains.append(row)
    return chains


def _add_chain_convergence(figures: dict[str, Any], draws: np.ndarray) -> None:
    """R-hat between a chain's halves, and its own smallest ESS, over the worst coordinates."""
    order = np.argsort([row["ess_bulk"] for row in figures["coordinates"]])
    worst = draws[:, :, order[:_MAX_CHAIN_COORDINATES]]
    for row, chain in zip(figures["chains"], worst, strict=True):
        row["r_hat"] = float(np.max(convergence.within_r_hat(chain)))
        row["ess_bulk"] = float(np.min(convergence.ess(chain[None])))
        row["ess_tail"] = float(np.min(convergence.ess(chain[None], "tail")))


def _passes(
    draws: np.ndarray, log_density: np.ndarray, names: list[str], lag: int | None
) -> dict[str, Any] | None:
    """Whether particles forget between passes; ``None`` where that cannot be measured."""
    if lag is None:
        return None
    passes = compare_passes(statistics(draws, log_density.reshape(draws.shape[:2])), lag)
    if passes is None:
        return None
    labels = [*names, "log density", *(f"{name} squared" for name in names)]
    slowest = int(np.argmax(passes.correlation))
    moving = int(np.argmax(np.abs(passes.drift_z)))
    return {
        "num_passes": passes.num_passes,
        "correlation": float(passes.correlation[slowest]),
        "correlation_error": passes.correlation_error,
        "slowest": labels[slowest],
        "drift_z": float(passes.drift_z[moving]),
        "drifting": labels[moving],
        "num_statistics": len(labels),
    }


def _coverage(
    rng_key: jax.Array,
    draws: np.ndarray,
    num_particles: int,
    posterior: Posterior,
    settings: Settings,
) -> dict[str, Any]:
    return ensemble_coverage(
        rng_key,
        draws,
        num_particles,
        lambda x: posterior.evaluate(x)[0],
        posterior.prior,
        attention=settings.attention,
        relative_time=settings.relative_prox_time,
    )._asdict()


def _evidence(
    rng_key: jax.Array, draws: np.ndarray, posterior: Posterior, settings: Settings
) -> dict[str, Any]:
    return estimate_evidence(
        rng_key,
        draws,
        lambda x: posterior.evaluate(x)[0],
        posterior.prior,
        attention=settings.attention,
        relative_time=settings.relative_prox_time,
        is_exact=settings.corrected,
    )._asdict()


def _stein(
    rng_key: jax.Array,
    draws: np.ndarray,
    gradients: np.ndarray,
    names: list[str],
    is_corrected: bool,
) -> dict[str, Any]:
    """Kernel Stein discrepancy, and the coordinates that violate Stein's identities most."""
    flat = draws.reshape(-1, draws.shape[2])
    chosen = np.linspace(0, len(flat) - 1, min(MAX_DRAWS, len(flat))).astype(int)
    discrepancy = stein_discrepancy(rng_key, flat[chosen], gradients[chosen])
    effective = None
    if is_corrected:
        virial = (draws - draws.mean((0, 1))) * gradients.reshape(draws.shape)
        effective = np.clip(np.nan_to_num(convergence.ess(virial), nan=1.0), 1.0, len(flat))
    identities = stein_identities(flat, -gradients, effective)
    virial_at, force_at = (
        int(np.argmax(np.abs(z))) for z in (identities.virial_z, identities.force_z)
    )
    return {
        "discrepancy": discrepancy._asdict(),
        "virial": identities.virial.tolist(),
        "force": identities.force.tolist(),
        "worst_virial": float(identities.virial[virial_at]),
        "worst_virial_z": float(identities.virial_z[virial_at]),
        "worst_virial_name": names[virial_at],
        "worst_force": float(identities.force[force_at]),
        "worst_force_z": float(identities.force_z[force_at]),
        "worst_force_name": names[force_at],
    }
