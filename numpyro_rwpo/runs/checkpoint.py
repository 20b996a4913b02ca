"""Save a run's state to a file and go on from it, in another process or on another day.

What is saved is the state: particles, frozen adaptation, counters, random keys. From it the run
goes on with the draws that it would have given without the interruption. Draws are not in it; keep
them with ArviZ, or let :func:`numpyro_rwpo.run_in_pieces` keep both.
"""

import os
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.infer import MCMC

from numpyro_rwpo._version import __version__
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.support.archive import read_archive, write_archive

_KIND = "state"


def save(run: Any, path: str | os.PathLike[str]) -> None:
    """Save where a run is, so that it can go on from there.

    The file is replaced only when the new one is whole and on the disk. It is NumPy's ``.npz``,
    without pickled objects.

    Args:
        run: an ``MCMC`` with an ``RWPO`` kernel, after ``warmup`` or ``run``; or one of its states.
        path: file name, by convention ending in ``.npz``.

    Raises:
        TypeError: neither of these.
        ValueError: the ``MCMC`` has not been run.
        OSError: the file cannot be written; an old one is still there, unchanged.

    Example:
        >>> mcmc.run(rng_key, X, y)  # doctest: +SKIP
        >>> numpyro_rwpo.save(mcmc, "lasso.npz")  # doctest: +SKIP
    """
    if isinstance(run, RWPOState):
        state, about = run, None
    else:
        about = _arguments(run)
        state = run.last_state
        if state is None:
            raise ValueError("`run` has no state yet; call `run.run(...)` or `run.warmup(...)`.")
    header, arrays = state_to_arrays(state)
    write_archive(Path(path), {"kind": _KIND, "arguments": about, **header}, arrays)


def load(
    path: str | os.PathLike[str], mcmc: MCMC | None = None, *, init_params: Any = None
) -> RWPOState:
    """Load a state from which to go on, with NumPyro's own ``post_warmup_state``.

    Args:
        path: file that :func:`save` wrote.
        mcmc: the ``MCMC`` that is to go on; its settings must be those of the saved run. ``None``
            skips these checks.
        init_params: only for a ``potential_fn`` whose argument is not made of dictionaries, lists
            and tuples: values like those given to ``run``, for their structure.

    Returns:
        The state.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, is no state or one of another version's structure, holds
            double precision that is not enabled, or was written by a run with other settings. A
            model with other sites is found by ``mcmc.run``.

    Warns:
        UserWarning: another version of the package wrote the file: draws may differ.

    Example:
        >>> mcmc = MCMC(RWPO(model), num_warmup=200, num_samples=1000)  # doctest: +SKIP
        >>> mcmc.post_warmup_state = numpyro_rwpo.load("lasso.npz", mcmc)  # doctest: +SKIP
        >>> mcmc.run(mcmc.post_warmup_state.rng_key, X, y)  # doctest: +SKIP
    """
    header, arrays = read_archive(Path(path))
    if header.get("kind") != _KIND:
        raise ValueError(f"'{path}' must hold a state; it holds {header.get('kind')!r}.")
    state = arrays_to_state(header, arrays, str(path), init_params)
    if mcmc is not None:
        check_arguments(header["arguments"], mcmc, state, str(path))
    if header["version"] != __version__:
        warnings.warn(
            f"'{path}' was written by numpyro-rwpo {header['version']}, this is {__version__}: the "
            "draws may differ from those of an uninterrupted run.",
            stacklevel=2,
        )
    return state


def state_to_arrays(state: RWPOState) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A state as a JSON header and named arrays."""
    arrays: dict[str, np.ndarray] = {}
    values = encode_values(state.z, "z", arrays)
    key = state.rng_key
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if is_typed:
        state = state._replace(rng_key=random.key_data(key))
    arrays.update(_flatten(state._replace(z=()), ""))
    return {"z": values, "key": str(random.key_impl(key)) if is_typed else None}, arrays


def arrays_to_state(
    header: dict[str, Any], arrays: dict[str, np.ndarray], path: str, init_params: Any
) -> RWPOState:
    """The state that :func:`state_to_arrays` took apart.

    Raises:
        ValueError: fields are missing or left over, or need double precision.
    """
    check_precision(arrays, path)
    arrays = dict(arrays)
    z = decode_values(header["z"], arrays, init_params)
    try:
        state = _build(RWPOState, "", arrays)._replace(z=z)
    except KeyError as error:
        raise _other_structure(path, header, f"the field {error} is missing") from None
    if arrays:
        raise _other_structure(path, header, f"the fields {sorted(arrays)} are unknown")
    if header["key"] is not None:
        state = state._replace(rng_key=random.wrap_key_data(state.rng_key, impl=header["key"]))
    return state


def _other_structure(path: str, header: dict[str, Any], what: str) -> ValueError:
    return ValueError(
        f"The state in '{path}' must have the fields of numpyro-rwpo {__version__}: {what}. It was "
        f"written by numpyro-rwpo {header['version']}; go on with that version, or start anew."
    )


def check_precision(arrays: dict[str, np.ndarray], path: str) -> None:
    """Refuse arrays in double precision where JAX would silently round them to single."""
    is_double = any(x.dtype == np.float64 for x in arrays.values())
    if is_double and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(
            f"'{path}' holds a run in double precision, which is not enabled here; call "
            "numpyro.enable_x64() before anything else, as the saved run did."
        )


def _flatten(node: Any, prefix: str) -> dict[str, np.ndarray]:
    """Arrays of nested named tuples, by their dotted names."""
    if not isinstance(node, tuple):
        return {prefix: np.asarray(node)}
    fields = node._asdict().items() if hasattr(node, "_asdict") else ()
    arrays: dict[str, np.ndarray] = {}
    for name, value in fields:
        arrays.update(_flatten(value, f"{prefix}.{name}" if prefix else name))
    return arrays


def _build(cls: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """Named tuples of class ``cls`` from the arrays of :func:`_flatten`, which are taken out."""
    fields = {}
    for name, kind in get_type_hints(cls).items():
        dotted = f"{prefix}.{name}" if prefix else name
        if get_args(kind) and dotted not in arrays:  # an array or a named tuple, such as a factor
            kind = next(option for option in get_args(kind) if hasattr(option, "_fields"))
        if hasattr(kind, "_fields"):
            fields[name] = _build(kind, dotted, arrays)
        elif dotted != "z":
            fields[name] = jnp.asarray(arrays.pop(dotted))
        else:
            fields[name] = None
    return cls(**fields)


def encode_values(values: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """Put the arrays of a pytree into ``arrays``; its structure, for JSON.

    Dictionaries with words as keys, lists and tuples are written out; a pytree with any other node
    as a whole by its leaves.
    """
    structure = _structure(values)
    leaves = jax.tree.leaves(values)
    arrays.update({f"{prefix}/{k}": np.asarray(leaf) for k, leaf in enumerate(leaves)})
    return {
        "prefix": prefix,
        "num_leaves": len(leaves),
        "structure": structure,
        "description": str(jax.tree.structure(values)),
    }


def _structure(node: Any) -> Any:
    """The structure of a pytree for JSON; ``None`` if it has nodes other than containers."""
    if node is None:
        return "none"
    if jax.tree_util.all_leaves([node]):
        return "leaf"
    if type(node) is dict and all(isinstance(key, str) for key in node):
        # A flattened dictionary is sorted by its keys.
        inner = {key: _structure(node[key]) for key in sorted(node)}
        return None if None in inner.values() else {"dict": inner}
    if type(node) in (list, tuple):
        items = [_structure(item) for item in node]
        return None if None in items else {type(node).__name__: items}
    return None


def _prototype(structure: Any) -> Any:
    """A pytree of zeros with the structure that :func:`_structure` describes."""
    if isinstance(structure, str):
        return None if structure == "none" else 0
    (kind, inner), *_ = structure.items()
    if kind == "dict":
        return {key: _prototype(value) for key, value in inner.items()}
    items = [_prototype(item) for item in inner]
    return items if kind == "list" else tuple(items)


def decode_values(encoded: Any, arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The pytree that :func:`encode_values` took apart; its arrays are taken out of ``arrays``.

    Args:
        encoded: what :func:`encode_values` returned.
        arrays: all arrays by name.
        like: a pytree of the same structure, for structures that are not written out.

    Raises:
        ValueError: ``like`` is needed, and missing or of another structure.
    """
    leaves = [
        jnp.asarray(arrays.pop(f"{encoded['prefix']}/{k}")) for k in range(encoded["num_leaves"])
    ]
    if encoded["structure"] is not None:
        structure: Any = jax.tree.structure(_prototype(encoded["structure"]))
    else:
        structure = jax.tree.structure(like)
        if str(structure) != encoded["description"]:
            raise ValueError(
                "`init_params` must be values like those the saved run was given, of structure "
                f"{encoded['description']}; got {None if like is None else structure}."
            )
    return jax.tree.unflatten(structure, leaves)


def _arguments(mcmc: Any) -> dict[str, Any]:
    """What decides how a run goes on: arguments of kernel and ``MCMC``.

    Raises:
        TypeError: not an ``MCMC`` with an ``RWPO`` kernel.
    """
    kernel: Any = getattr(mcmc, "sampler", None)
    if not hasattr(kernel, "arguments"):
        raise TypeError(
            "`run` must be a numpyro.infer.MCMC whose kernel is RWPO, or a state of one; got "
            f"{type(mcmc).__name__ if kernel is None else type(kernel).__name__}."
        )
    return {
        **kernel.arguments,
        "num_warmup": mcmc.num_warmup,
        "num_chains": mcmc.num_chains,
        "chain_method": mcmc.chain_method if isinstance(mcmc.chain_method, str) else "callable",
    }


def check_arguments(saved: dict[str, Any] | None, mcmc: MCMC, state: RWPOState, path: str) -> None:
    """Refuse to go on in an ``MCMC`` with other settings than the saved run's.

    Raises:
        TypeError: ``mcmc`` is not an ``MCMC`` with an ``RWPO`` kernel.
        ValueError: settings, or the number of chains, differ.
    """
    here = _arguments(mcmc)
    if saved is None:  # a state alone, without its run
        chains = state.step_size.shape[0] if state.step_size.ndim else 1
        saved = {**here, "num_chains": chains}
    different = [
        f"{name} was {saved.get(name)!r} and is {here.get(name)!r}"
        for name in sorted({*saved, *here})
        if saved.get(name) != here.get(name)
    ]
    if different:
        raise ValueError(
            f"A run goes on with the settings it was saved with; in '{path}' {'; '.join(different)}"
            ". Use the same settings, or start anew with another file."
        )
