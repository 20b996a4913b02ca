"""A long run in pieces: after each, its draws and the state are on the disk.

NumPyro's own way to draw in pieces is to set ``mcmc.post_warmup_state = mcmc.last_state`` and to
call ``mcmc.run`` again; this does that, and keeps both draws and state, so that a killed run
loses the piece it was in and nothing else.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC

from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.runs.checkpoint import (
    check_precision,
    decode_values,
    encode_values,
    load,
    save,
)
from numpyro_rwpo.support.archive import read_archive, write_archive

_STATE = "state.npz"
_KIND = "draws"


def run_in_pieces(
    mcmc: MCMC,
    folder: str | os.PathLike[str],
    rng_key: jax.Array,
    /,
    *args: Any,
    draws_per_piece: int,
    extra_fields: tuple[str, ...] | list[str] = (),
    init_params: Any = None,
    **kwargs: Any,
) -> None:
    """Do what ``mcmc.run(rng_key, *args, **kwargs)`` does, piece by piece, and go on if killed.

    After warm-up and after each piece the state is saved to ``state.npz`` in ``folder``, the draws
    of a piece to ``draws_000.npz`` and so on. Call it again with the same arguments, in a new
    process, and it goes on after the last piece. At the end ``mcmc`` holds all draws, as after
    ``mcmc.run``. Warm-up is one piece.

    The draws are those of one uninterrupted ``run_in_pieces``, bit by bit on the same machine.

    Args:
        mcmc: an ``MCMC`` with an ``RWPO`` kernel; its ``num_samples`` counts all draws.
        folder: belongs to this run alone; made if it is not there.
        rng_key: as for ``run``; not used where the run goes on.
        args: arguments of the model.
        draws_per_piece: draws of a chain in a piece, a multiple of ``mcmc.thinning``, before
            thinning; the last piece may be shorter.
        extra_fields: as for ``run``; arrays only.
        init_params: as for ``run``.
        kwargs: keyword arguments of the model.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: ``draws_per_piece`` does not fit, or the folder holds a run with other settings,
            or is damaged.
        OSError: a file cannot be written; what was saved before is unchanged.

    Example:
        >>> mcmc = MCMC(RWPO(model), num_warmup=200, num_samples=100_000)  # doctest: +SKIP
        >>> run_in_pieces(mcmc, "lasso", rng_key, X, y, draws_per_piece=10_000)  # doctest: +SKIP
        >>> mcmc.print_summary()  # doctest: +SKIP
    """
    sizes = _sizes(mcmc, draws_per_piece)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / _STATE
    num_samples = mcmc.num_samples
    options = {"extra_fields": tuple(extra_fields), "init_params": init_params, **kwargs}
    try:
        if state_path.exists():
            state = load(state_path, mcmc, init_params=init_params)
            done = int(np.max(state.iteration))
        else:
            mcmc.num_samples = sizes[0]
            mcmc.warmup(rng_key, *args, **options)
            save(mcmc, state_path)
            state, done = mcmc.last_state, 0
        first = _first_piece(sizes, done, folder)
        for piece in range(first, len(sizes)):
            mcmc.num_samples = sizes[piece]
            mcmc.post_warmup_state = state
            mcmc.run(state.rng_key, *args, **options)
            state = mcmc.last_state
            # The draws first: a state without them would lose them, they without it come again.
            _save_draws(mcmc, _draws_path(folder, piece))
            save(mcmc, state_path)
        if mcmc.last_state is not state:  # nothing was left to draw
            _pretend_run(mcmc, state, args, kwargs, init_params)
    finally:
        mcmc.num_samples = num_samples
        mcmc.post_warmup_state = None
    pieces = [_load_draws(_draws_path(folder, piece), init_params) for piece in range(len(sizes))]
    # Now `mcmc` is what it would be after one long run.
    mcmc._states = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *pieces)
    mcmc._states_flat = None


def _pretend_run(
    mcmc: MCMC, state: RWPOState, args: tuple[Any, ...], kwargs: dict[str, Any], init_params: Any
) -> None:
    """Leave ``mcmc`` as a run that ended in ``state`` would, but for its draws."""
    key = state.rng_key
    if mcmc.num_chains > 1 and mcmc.chain_method != "vectorized":  # then init sees one chain
        key = key[0]
        init_params = jax.tree.map(lambda x: x[0], init_params)
    mcmc.sampler.init(key, mcmc.num_warmup, init_params, args, kwargs)
    mcmc._args, mcmc._kwargs = args, kwargs
    mcmc._last_state = state


def _sizes(mcmc: MCMC, draws_per_piece: int) -> list[int]:
    """Draws of each piece, before thinning."""
    thinning, total = mcmc.thinning, mcmc.num_samples
    is_whole = isinstance(draws_per_piece, int) and draws_per_piece >= 1
    if not is_whole or draws_per_piece % thinning or total % thinning:
        raise ValueError(
            "`draws_per_piece` and `mcmc.num_samples` must be positive multiples of "
            f"`mcmc.thinning`, {thinning}; got {draws_per_piece!r} and {total}."
        )
    whole, rest = divmod(total, draws_per_piece)
    return [draws_per_piece] * whole + [rest] * (rest > 0)


def _first_piece(sizes: list[int], done: int, folder: Path) -> int:
    """Number of pieces that are complete."""
    first = int(np.searchsorted(np.cumsum([0, *sizes]), done))
    missing = [piece for piece in range(first) if not _draws_path(folder, piece).exists()]
    if first > len(sizes) or sum(sizes[:first]) != done or missing:
        raise ValueError(
            f"'{folder}' must hold a run in pieces of the same `draws_per_piece` and no more draws "
            f"than asked for; it holds {done} draws a chain, now pieces of {sizes[0]} out of "
            f"{sum(sizes)} are wanted, and the files of pieces {missing} are missing. Use the "
            "saved run's numbers, or another folder."
        )
    return first


def _draws_path(folder: Path, piece: int) -> Path:
    return folder / f"draws_{piece:03d}.npz"


def _save_draws(mcmc: MCMC, path: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    draws = encode_values(mcmc.get_samples(group_by_chain=True), "draws", arrays)
    fields = encode_values(mcmc.get_extra_fields(group_by_chain=True), "fields", arrays)
    if fields["structure"] is None:
        raise ValueError(
            "`extra_fields` of a run in pieces must be arrays; got "
            f"{sorted(mcmc.get_extra_fields())}. Name the arrays, as in 'ensemble.particles'."
        )
    write_archive(path, {"kind": _KIND, "draws": draws, "fields": fields}, arrays)


def _load_draws(path: Path, init_params: Any) -> dict[str, Any]:
    """Draws and extra fields of one piece, by field."""
    header, arrays = read_archive(path)
    if header.get("kind") != _KIND:
        raise ValueError(f"'{path}' must hold draws; it holds {header.get('kind')!r}.")
    check_precision(arrays, str(path))
    draws = decode_values(header["draws"], arrays, init_params)
    return {"z": draws, **decode_values(header["fields"], arrays, None)}
