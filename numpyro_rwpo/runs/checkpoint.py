"""Save the state of a run to a file, and resume from it in another process or on another day.

A file holds the state: particles, frozen adaptation, counters and random keys. A run that resumes
from it gives the draws that it would have given without the interruption. The draws themselves are
not in it; keep them with ArviZ, or let :func:`numpyro_rwpo.run_in_pieces` keep both.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from numpyro.infer import MCMC

from numpyro_rwpo._version import __version__
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.runs.encoding import arrays_to_state, state_to_arrays
from numpyro_rwpo.runs.mcmc import arguments_of, rwpo_kernel
from numpyro_rwpo.support.archive import read_archive, write_archive

_KIND = "state"


def save_state(run: Any, path: str | os.PathLike[str]) -> None:
    """Save the state of a run, so that :func:`load_state` can resume it.

    An existing file is replaced only when the new one is complete and on disk. The format is
    NumPy's ``.npz``, without pickled objects.

    Args:
        run: an ``MCMC`` with an ``RWPO`` kernel, after ``warmup`` or ``run``; or one of its states.
        path: name of the file, by convention ending in ``.npz``.

    Raises:
        TypeError: ``run`` is neither of these.
        ValueError: the ``MCMC`` has not been run.
        OSError: the file cannot be written; an existing one is unchanged.

    Example:
        >>> mcmc.run(rng_key, X, y)  # doctest: +SKIP
        >>> numpyro_rwpo.save_state(mcmc, "lasso.npz")  # doctest: +SKIP
    """
    if isinstance(run, RWPOState):
        state, settings = run, None
    else:
        kernel = rwpo_kernel(run, argument="run", hint="One of its states can be passed, too.")
        settings = _settings(run, kernel)
        state = run.last_state
        if state is None:
            raise ValueError("`run` has no state yet; call `run.run(...)` or `run.warmup(...)`.")
    header, arrays = state_to_arrays(state)
    write_archive(Path(path), {"kind": _KIND, "arguments": settings, **header}, arrays)


def load_state(
    path: str | os.PathLike[str], mcmc: MCMC | None = None, *, init_params: Any = None
) -> RWPOState:
    """Load a state from which a run resumes, by way of NumPyro's own ``post_warmup_state``.

    Args:
        path: file that :func:`save_state` wrote.
        mcmc: the ``MCMC`` that is to resume; it must have the settings of the saved run. ``None``
            skips this check.
        init_params: needed only for a ``potential_fn`` whose argument is not made of dictionaries,
            lists and tuples: values like those given to ``run``, for their structure.

    Returns:
        The state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, does not hold a state, holds one with the fields of another
            version or in double precision that is not enabled, or was written by a run with other
            settings. A model with other sites is refused by ``mcmc.run``.

    Warns:
        UserWarning: another version of the package wrote the file, so that draws may differ.

    Example:
        >>> mcmc = MCMC(RWPO(model), num_warmup=200, num_samples=1000)  # doctest: +SKIP
        >>> mcmc.post_warmup_state = numpyro_rwpo.load_state("lasso.npz", mcmc)  # doctest: +SKIP
        >>> mcmc.run(mcmc.post_warmup_state.rng_key, X, y)  # doctest: +SKIP
    """
    header, arrays = read_archive(Path(path))
    if header.get("kind") != _KIND:
        raise ValueError(f"'{path}' must hold a state; it holds {header.get('kind')!r}.")
    state = arrays_to_state(header, arrays, str(path), init_params)
    if mcmc is not None:
        _check_settings(header["arguments"], mcmc, state, str(path))
    if header["version"] != __version__:
        warnings.warn(
            f"'{path}' was written by numpyro-rwpo {header['version']}, and this is {__version__}: "
            "the draws may differ from those of an uninterrupted run.",
            stacklevel=2,
        )
    return state


def _settings(mcmc: Any, kernel: Any) -> dict[str, Any]:
    """What determines how a run goes on: arguments of the kernel and of ``MCMC``."""
    return {
        **arguments_of(kernel).record(),
        "num_warmup": mcmc.num_warmup,
        "num_chains": mcmc.num_chains,
        "chain_method": mcmc.chain_method if isinstance(mcmc.chain_method, str) else "callable",
    }


def _check_settings(saved: dict[str, Any] | None, mcmc: MCMC, state: RWPOState, path: str) -> None:
    """Refuse to resume in an ``MCMC`` with other settings than those of the saved run.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: settings, or the number of chains, differ.
    """
    here = _settings(mcmc, rwpo_kernel(mcmc))
    if saved is None:  # a state was saved without its run
        chains = state.step_size.shape[0] if state.step_size.ndim else 1
        saved = {**here, "num_chains": chains}
    different = [
        f"{name} was {saved.get(name)!r} and is {here.get(name)!r}"
        for name in sorted({*saved, *here})
        if saved.get(name) != here.get(name)
    ]
    if different:
        raise ValueError(
            f"A run resumes with the settings it was saved with; in '{path}' "
            f"{'; '.join(different)}. Use the same settings, or start a new run with another file."
        )
