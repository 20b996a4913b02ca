"""The modes between which particles jumped: where they are, their shares, how jumps went."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.diagnostics.convergence import ess
from numpyro_rwpo.diagnostics.tables import Table, number
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.modes import Modes, mode_of

# Coordinates that say where a mode is, those that differ most between modes.
_NUM_COORDINATES = 3
# Modes that the report prints, the largest ones; `to_dict` has all.
_MAX_MODES = 12


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One of several modes.

    Attributes:
        center: mean of its draws in the coordinates in which modes differ most, by name; empty if
            there are no draws.
        share: share of the draws that belong to it.
        share_error: Monte Carlo standard error of the share.
        share_of_chain: share of the draws of each chain.
        largest_z: largest deviation of a chain's share from that of all chains, in its standard
            errors.
        jump_rate: acceptance of jumps from this mode to others, as warm-up measured it.
        found_by: numbers of the chains that found the mode by themselves.
    """

    center: dict[str, float]
    share: float
    share_error: float
    share_of_chain: tuple[float, ...]
    largest_z: float
    jump_rate: float
    found_by: tuple[int, ...]


def measure_modes(move: object, draws: np.ndarray, names: Sequence[str]) -> tuple[Mode, ...]:
    """The modes of a run, the largest first; none if its particles did not jump between modes.

    Args:
        move: the move of the last state, with a leading chain axis.
        draws: draws in the coordinates in which the ensembles moved, (chains, draws, dim).
        names: names of the coordinates.
    """
    if not isinstance(move, ModeMove):
        return ()
    label = _labels(move, draws)
    number_of_modes = move.jump_rate.shape[1]
    indicator = (label[:, :, None] == np.arange(number_of_modes)).astype(float)
    share, of_chain = indicator.mean((0, 1)), indicator.mean(1)
    error, chain_error = _errors(indicator, share)
    present = [k for k in range(number_of_modes) if share[k] > 0]
    centers = np.stack([draws[label == k].mean(0) for k in present])
    scale = np.maximum(draws.std((0, 1)), np.finfo(np.float32).tiny)
    spread = (centers / scale).std(0)
    coordinates = np.sort(np.argsort(-spread, kind="stable")[:_NUM_COORDINATES])
    modes = []
    for k in np.argsort(-share, kind="stable"):
        center = draws[label == k].mean(0) if share[k] > 0 else None
        deviation = np.abs(of_chain[:, k] - share[k]) / chain_error[:, k]
        modes.append(
            Mode(
                center={} if center is None else {names[i]: float(center[i]) for i in coordinates},
                share=float(share[k]),
                share_error=float(error[k]),
                share_of_chain=tuple(of_chain[:, k].tolist()),
                largest_z=float(deviation.max()),
                jump_rate=float(move.jump_rate[:, k].mean()),
                found_by=tuple(np.flatnonzero(move.is_found[:, k]).tolist()),
            )
        )
    return tuple(modes)


def _labels(move: ModeMove, draws: np.ndarray) -> np.ndarray:
    """Number of the mode of each draw, (chains, draws). The list is the same for all chains."""
    arrays: Modes = jax.tree.map(lambda x: jnp.asarray(x[0]), move.modes)
    flat = jnp.asarray(draws.reshape(-1, draws.shape[2]), arrays.mean.dtype)
    return np.asarray(mode_of(arrays, flat)).reshape(draws.shape[:2])


def _errors(indicator: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of the shares, (modes,), and of those of single chains, (chains, modes).

    The correlation of draws is measured over all chains, because a chain that never enters a mode
    says nothing about it.
    """
    num_chains, num_draws, _ = indicator.shape
    effective = np.nan_to_num(ess(indicator), nan=1.0)
    within = np.stack([np.nan_to_num(ess(row[None]), nan=num_draws) for row in indicator]).mean(0)
    # A share of zero or one has the error of one draw more.
    variance = np.maximum(share * (1 - share), 1.0 / (num_chains * num_draws))
    error = np.sqrt(variance / np.clip(effective, 1.0, num_chains * num_draws))
    of_chain = np.sqrt(variance / np.clip(within, 1.0, num_draws))
    return error, np.broadcast_to(of_chain, (num_chains, len(share)))


def modes_table(modes: Sequence[Mode], num_chains: int) -> Table:
    """Where the modes are, their shares, and how jumps went."""
    rows = []
    for mode in modes[:_MAX_MODES]:
        where = ", ".join(f"{name} {value:.3g}" for name, value in mode.center.items())
        found = [str(k) for k in mode.found_by]
        everywhere = len(found) == num_chains
        rows.append(
            [
                where or "no draws",
                number(mode.share),
                number(mode.share_error),
                f"{mode.jump_rate:.2f}",
                "all" if everywhere else ", ".join(found) or "none",
            ]
        )
    title = "Modes"
    if len(modes) > _MAX_MODES:
        title += f" (the largest {_MAX_MODES} of {len(modes)})"
    return Table(title, ["center", "share", "+-", "jumps accepted", "found by chains"], rows)
