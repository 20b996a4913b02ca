"""States and draws as named arrays with a JSON header, and back.

Nothing is pickled. Named tuples become arrays with dotted names; the user's own values become
numbered arrays with a description of their structure.
"""

from typing import Any, TypedDict, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_rwpo._version import __version__
from numpyro_rwpo.dynamics.state import RWPOState

Arrays = dict[str, np.ndarray]


class EncodedValues(TypedDict):
    """What a JSON header holds of a pytree whose leaves are stored as arrays.

    Attributes:
        prefix: beginning of the names of its arrays, which end in ``/0``, ``/1``, ...
        num_leaves: number of those arrays.
        structure: nested description of dictionaries, lists and tuples; ``None`` for a pytree with
            nodes of any other kind.
        description: what JAX prints for the structure.
    """

    prefix: str
    num_leaves: int
    structure: Any
    description: str


def state_to_arrays(state: RWPOState) -> tuple[dict[str, Any], Arrays]:
    """Take a state apart into a JSON header and named arrays."""
    arrays: Arrays = {}
    values = encode_values(state.z, "z", arrays)
    key = state.rng_key
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if is_typed:
        state = state._replace(rng_key=random.key_data(key))
    arrays.update(_flatten(state._replace(z=()), ""))
    return {"z": values, "key": str(random.key_impl(key)) if is_typed else None}, arrays


def arrays_to_state(
    header: dict[str, Any], arrays: Arrays, path: str, init_params: Any
) -> RWPOState:
    """Put together the state that :func:`state_to_arrays` took apart.

    Args:
        header: the header.
        arrays: the named arrays.
        path: name of the file, for error messages.
        init_params: values of the same structure as the draws, for structures that the header does
            not describe.

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
        f"written by numpyro-rwpo {header['version']}; resume it with that version, or start a new "
        "run."
    )


def check_precision(arrays: Arrays, path: str) -> None:
    """Refuse arrays in double precision where JAX would silently round them to single.

    Raises:
        ValueError: the arrays are in double precision, and JAX does not have it enabled.
    """
    is_double = any(x.dtype == np.float64 for x in arrays.values())
    if is_double and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(
            f"'{path}' holds a run in double precision, which is not enabled here; call "
            "numpyro.enable_x64() before anything else, as the saved run did."
        )


def _flatten(node: Any, prefix: str) -> Arrays:
    """The arrays of nested named tuples, by their dotted names."""
    if not isinstance(node, tuple):
        return {prefix: np.asarray(node)}
    fields = node._asdict().items() if hasattr(node, "_asdict") else ()
    arrays: Arrays = {}
    for name, value in fields:
        arrays.update(_flatten(value, f"{prefix}.{name}" if prefix else name))
    return arrays


def _build(cls: Any, prefix: str, arrays: Arrays) -> Any:
    """Named tuples of class ``cls``, from the arrays of :func:`_flatten`, which are removed."""
    fields = {}
    for name, kind in get_type_hints(cls).items():
        dotted = f"{prefix}.{name}" if prefix else name
        if get_args(kind) and dotted not in arrays:  # not an array but one of some named tuples
            kind = _kind_in_file(get_args(kind), dotted, arrays)
        if hasattr(kind, "_fields"):
            fields[name] = _build(kind, dotted, arrays)
        elif dotted != "z":
            fields[name] = jnp.asarray(arrays.pop(dotted))
        else:
            fields[name] = None
    return cls(**fields)


def _kind_in_file(kinds: tuple[Any, ...], prefix: str, arrays: Arrays) -> Any:
    """The named tuple, of several that a field may hold, whose fields are there."""
    names = {
        name[len(prefix) + 1 :].split(".")[0] for name in arrays if name.startswith(f"{prefix}.")
    }
    kinds = tuple(kind for kind in kinds if hasattr(kind, "_fields"))
    return next((kind for kind in kinds if set(kind._fields) == names), kinds[0])


def encode_values(values: Any, prefix: str, arrays: Arrays) -> EncodedValues:
    """Add the leaves of a pytree to ``arrays``, and return its structure for JSON.

    The structure is written out if it consists of dictionaries with strings as keys, of lists and
    of tuples. Otherwise only its printed form is kept.
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
    """The structure of a pytree for JSON; ``None`` if it has nodes of any other kind."""
    if node is None:
        return "none"
    if jax.tree_util.all_leaves([node]):
        return "leaf"
    if type(node) is dict and all(isinstance(key, str) for key in node):
        # JAX sorts the leaves of a dictionary by their keys.
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


def decode_values(encoded: EncodedValues, arrays: Arrays, like: Any) -> Any:
    """Put together the pytree that :func:`encode_values` took apart.

    Args:
        encoded: what :func:`encode_values` returned.
        arrays: all arrays by name; those of the pytree are removed.
        like: a pytree of the same structure, needed where the structure is not written out.

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
