"""A long run in pieces: after each, its draws and the state are on disk.

NumPyro's own way to draw in pieces is to set ``mcmc.post_warmup_state = mcmc.last_state`` and to
call ``mcmc.run`` again. This module does that and saves draws and state every time, so that a run
that is killed loses no more than its current piece.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import MCMC

from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.runs.checkpoint import load_state, save_state
from numpyro_rwpo.runs.encoding import check_precision, decode_values, encode_values
from numpyro_rwpo.runs.mcmc import set_fields, set_last_state
from numpyro_rwpo.support.archive import read_archive, write_archive

_STATE = "state.npz"
_KIND = "draws"


class _Call(NamedTuple):
    """The arguments of ``mcmc.run`` other than the random key."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    extra_fields: tuple[str, ...]
    init_params: Any

    def __call__(self, method: Callable[..., None], rng_key: jax.Array) -> None:
        """Call ``mcmc.run`` or ``mcmc.warmup`` with these arguments."""
        options = {"extra_fields": self.extra_fields, "init_params": self.init_params}
        method(rng_key, *self.args, **options, **self.kwargs)


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
    """Do what ``mcmc.run(rng_key, *args, **kwargs)`` does, in pieces, and resume after a kill.

    The state is saved to ``state.npz`` in ``folder`` after warm-up and after each piece, the draws
    of the pieces to ``draws_000.npz`` and so on. Called again with the same arguments, in a new
    process, it resumes after the last piece. At the end ``mcmc`` holds all draws, as after
    ``mcmc.run``: those of one uninterrupted run, bit by bit on the same machine. Warm-up is one
    piece.

    Args:
        mcmc: an ``MCMC`` with an ``RWPO`` kernel; its ``num_samples`` counts all draws.
        folder: folder for this run alone; it is made if it does not exist.
        rng_key: as for ``run``; not used where the run resumes.
        args: arguments of the model.
        draws_per_piece: draws per chain and piece before thinning, a multiple of
            ``mcmc.thinning``; the last piece may be shorter.
        extra_fields: as for ``run``; arrays only.
        init_params: as for ``run``.
        kwargs: keyword arguments of the model.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: ``draws_per_piece`` is not such a multiple, or the folder holds a run with other
            settings, or is damaged.
        OSError: a file cannot be written; what was saved before is unchanged.

    Example:
        >>> mcmc = MCMC(RWPO(model), num_warmup=200, num_samples=100_000)  # doctest: +SKIP
        >>> run_in_pieces(mcmc, "lasso", rng_key, X, y, draws_per_piece=10_000)  # doctest: +SKIP
    """
    sizes = _sizes(mcmc, draws_per_piece)
    call = _Call(args, kwargs, tuple(extra_fields), init_params)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    num_samples = mcmc.num_samples
    try:
        _draw_missing(mcmc, folder, rng_key, sizes, call)
    finally:
        mcmc.num_samples = num_samples
        mcmc.post_warmup_state = None
    pieces = [_load_draws(_draws_path(folder, piece), init_params) for piece in range(len(sizes))]
    set_fields(mcmc, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *pieces))


def _draw_missing(
    mcmc: MCMC, folder: Path, rng_key: jax.Array, sizes: list[int], call: _Call
) -> None:
    """Draw and save what the folder lacks, and leave ``mcmc`` with the last state."""
    path = folder / _STATE
    if path.exists():
        state = load_state(path, mcmc, init_params=call.init_params)
        num_done = int(np.max(state.iteration))
    else:
        mcmc.num_samples = sizes[0]
        call(mcmc.warmup, rng_key)
        save_state(mcmc, path)
        state, num_done = mcmc.last_state, 0
    for piece in range(_first_missing(sizes, num_done, folder), len(sizes)):
        mcmc.num_samples = sizes[piece]
        mcmc.post_warmup_state = state
        call(mcmc.run, state.rng_key)
        state = mcmc.last_state
        # The draws are saved first: were the state saved without them, they would be lost, whereas
        # draws without the state are drawn again.
        _save_draws(mcmc, _draws_path(folder, piece))
        save_state(mcmc, path)
    if mcmc.last_state is not state:  # nothing was left to draw
        _pretend_run(mcmc, state, call)


def _pretend_run(mcmc: MCMC, state: RWPOState, call: _Call) -> None:
    """Leave ``mcmc`` as after a run that ended in ``state``, except for the draws."""
    key, init_params = state.rng_key, call.init_params
    if mcmc.num_chains > 1 and mcmc.chain_method != "vectorized":  # then `init` sees one chain
        key = key[0]
        init_params = jax.tree.map(lambda x: x[0], init_params)
    mcmc.sampler.init(key, mcmc.num_warmup, init_params, call.args, call.kwargs)
    set_last_state(mcmc, state, call.args, call.kwargs)


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


def _first_missing(sizes: list[int], num_done: int, folder: Path) -> int:
    """Index of the first piece that has not been drawn, after ``num_done`` draws per chain."""
    first = int(np.searchsorted(np.cumsum([0, *sizes]), num_done))
    missing = [piece for piece in range(first) if not _draws_path(folder, piece).exists()]
    if first > len(sizes) or sum(sizes[:first]) != num_done or missing:
        raise ValueError(
            f"'{folder}' must hold a run in pieces of the same `draws_per_piece` and no more draws "
            f"than asked for; it holds {num_done} draws per chain, pieces of {sizes[0]} out of "
            f"{sum(sizes)} are asked for, and the files of pieces {missing} are missing. Use the "
            "numbers of the saved run, or another folder."
        )
    return first


def _draws_path(folder: Path, piece: int) -> Path:
    return folder / f"draws_{piece:03d}.npz"


def _save_draws(mcmc: MCMC, path: Path) -> None:
    """Save the draws and extra fields of one piece."""
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
