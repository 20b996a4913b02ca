"""What is computed before sampling, as one program that new data can use again.

The arrays among the model's arguments are arguments of the program; everything else (numbers,
names, flags) is constant. A model that looks at the values of its data (``np.unique``, an ``if``)
cannot be compiled in this way. For such a model, the data are constants, too, and the program is
compiled again for each data set.
"""

import hashlib
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.model.checks import no_valid_start
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.priors.protocol import AnyPrior

T = TypeVar("T")


class Preparation(NamedTuple):
    """One starting position per chain, with the quantities that are checked before sampling.

    Attributes:
        start: positions, (chains, dim).
        values: these positions as unconstrained values of the user's sites, with a leading chain
            axis.
        potential: smooth part of the potential, (chains,).
        gradient: gradient of the smooth part, (chains, dim).
        site_priors: priors of the sites that are split off, by name.
        split_errors: errors of the densities of these sites, by name, see
            :mod:`numpyro_rwpo.model.split_check`.
    """

    start: jax.Array
    values: Any
    potential: jax.Array
    gradient: jax.Array
    site_priors: dict[str, AnyPrior]
    split_errors: dict[str, jax.Array]


def check_preparation(
    prepared: Preparation,
    model: Callable[..., Any] | None,
    init_params: Any,
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
) -> None:
    """Refuse starts without a finite potential and gradient, and unusable priors.

    Raises:
        ValueError: a Laplace scale or a parameter of another prior cannot be used.
        RuntimeError: there is no valid starting position; the message names the site that is to
            blame.
    """
    if isinstance(prepared.start, jax.core.Tracer):
        return
    for name, prior in prepared.site_priors.items():
        check_site_prior(f"'{name}'", prior)
    potential, gradient = np.asarray(prepared.potential), np.asarray(prepared.gradient)
    if np.isfinite(potential).all() and np.isfinite(gradient).all():
        return
    if init_params is None and model is not None:
        raise no_valid_start(model, model_args, model_kwargs)
    raise RuntimeError(
        "Cannot find valid initial parameters: `init_params` must be unconstrained values at "
        "which the potential and its gradient are finite; got a potential of "
        f"{potential}. Start elsewhere, or check the model for nan and inf."
    )


def check_site_prior(name: str, prior: AnyPrior) -> None:
    """Refuse Laplace scales that are not positive, or too small for their square.

    Args:
        name: The name of the site in the error message.
        prior: The prior of the site. If it is not a Laplace prior, its parameters must be finite.

    Raises:
        ValueError: The message names the site and its scales.
    """
    if not isinstance(prior, LaplacePrior):
        if not all(np.isfinite(field).all() for field in jax.tree.leaves(prior)):
            raise ValueError(
                f"The parameters of the prior of site {name} must be finite; got {prior}. Correct "
                "the parameters of its distribution in the model."
            )
        return
    rates = np.stack([prior.rate_left, prior.rate_right])
    with np.errstate(over="ignore", divide="ignore"):
        is_usable = np.isfinite(rates**2) & (rates > 0)
        scales = 1 / rates
    if not is_usable.all():
        smallest = 1 / np.sqrt(float(np.finfo(rates.dtype).max))
        raise ValueError(
            f"The scale of Laplace site {name} must be positive and finite everywhere, and in "
            f"{rates.dtype} above {smallest:.0e}; got scales between {scales.min()} and "
            f"{scales.max()}. Correct the scale (and asymmetry) in the model."
        )


class _Mark(Enum):
    ARRAY = auto()


class Layout(NamedTuple):
    """A model's arguments without their arrays.

    Attributes:
        structure: structure of the pytree of args and kwargs.
        leaves: the leaves of this pytree, with a mark in the place of each array.
    """

    structure: Hashable
    leaves: tuple[Hashable, ...]


def split_arrays(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Layout]:
    """The arrays of numbers among the model's arguments, and everything else."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    is_array = [
        isinstance(x, jax.Array) or (isinstance(x, np.ndarray) and x.dtype.kind in "biuf")
        for x in leaves
    ]
    arrays = [x for x, yes in zip(leaves, is_array, strict=True) if yes]
    marked = [_Mark.ARRAY if yes else x for x, yes in zip(leaves, is_array, strict=True)]
    return arrays, Layout(structure, tuple(marked))


class _Constant:
    """An array that can be compared and hashed, for programs of which it is a constant."""

    def __init__(self, data: Any) -> None:
        self.data = data
        values = np.asarray(data)
        digest = hashlib.blake2b(np.ascontiguousarray(values).tobytes()).digest()
        self.identity = digest, values.shape, values.dtype, type(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


def fix_arrays(arrays: list[Any], layout: Layout) -> Layout:
    """The layout with the arrays themselves in it."""
    rest = iter(arrays)
    leaves = (_Constant(next(rest)) if x is _Mark.ARRAY else x for x in layout.leaves)
    return Layout(layout.structure, tuple(leaves))


def join_arrays(arrays: list[Any], layout: Layout) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's args and kwargs; the inverse of :func:`split_arrays`."""
    rest = iter(arrays)
    leaves = [next(rest) if leaf is _Mark.ARRAY else leaf for leaf in layout.leaves]
    leaves = [leaf.data if isinstance(leaf, _Constant) else leaf for leaf in leaves]
    structure: Any = layout.structure
    return jax.tree.unflatten(structure, leaves)


# The number of programs that are kept at a time, of all kernels together. A run takes seven, or
# more where chains disagree or there are several modes. NumPyro keeps some of its own loops, and
# each loop keeps its kernel alive: without a limit, a process that runs many different data sets
# would hold the programs of all of them, with hundreds of memory maps each.
MAX_PROGRAMS = 24


class _Program(Generic[T]):
    """A compiled function of inputs and arrays, which may still be compiling in another thread."""

    def __init__(self, program: Callable[[Any, list[Any]], T], options: Any) -> None:
        self._run = jax.jit(program, compiler_options=None if options is None else dict(options))
        self._compiling: Future[Any] | None = None
        self._result: Any = None

    def begin(self, inputs: Any, arrays: list[Any]) -> Any:
        """Trace the program, begin to compile it, and return the shapes and types of its result."""
        if self._result is None:
            lowered = self._run.lower(inputs, arrays)
            self._result = lowered.out_info
            thread = ThreadPoolExecutor(1)
            self._compiling = thread.submit(lowered.compile)
            thread.shutdown(wait=False)
        return self._result

    def __call__(self, inputs: Any, arrays: list[Any]) -> T:
        """Run the program once it is compiled. JAX finds what the thread has compiled."""
        if self._compiling is not None:
            wait([self._compiling])  # If compiling failed, the next line raises the error.
        result = self._run(inputs, arrays)
        # From now on only JAX holds the executable, so that `jax.clear_caches()` frees it.
        self._compiling = None
        return result


@lru_cache(maxsize=MAX_PROGRAMS)
def _compiled(
    function: Callable[..., T],
    constants: Hashable,
    layout: Layout,
    shapes: Hashable,
    options: tuple[tuple[str, Any], ...] | None,
) -> _Program[T]:
    """``function`` as a program of its own for these constants and shapes, freed when evicted."""

    def program(inputs: Any, arrays: list[Any]) -> T:
        result = function(constants, inputs, *join_arrays(arrays, layout))
        # Without weak types, which `lower` forgets, the next program fits the result as well as its
        # shapes, for which it may have been compiled.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), result)

    program.__name__ = function.__name__.strip("_")  # the name in profiles and in JAX's log
    return _Program(program, options)


class CompiledOnce(Generic[T]):
    """``function(constants, inputs, args, kwargs)``, compiled once for all data of the same shapes.

    If it is called while JAX traces something, it becomes part of that program. Only the
    ``MAX_PROGRAMS`` programs that were used last are kept.

    Args:
        function: must be traceable with respect to ``inputs``, a pytree of arrays, and to the
            arrays among ``args`` and ``kwargs`` if the model is. Everything else that it depends on
            is in ``constants``, which are hashable; with other constants, it is compiled again.
        options: maps constants and inputs to XLA's compiler options; ``None`` stands for the
            default options.
    """

    def __init__(
        self,
        function: Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], T],
        options: Callable[[Any, Any], dict[str, Any] | None] = lambda constants, inputs: None,
    ) -> None:
        self._function = function
        self._options = options

    def __call__(
        self, constants: Hashable, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        """Run the program.

        If that raises an error, the function is run again with the data as constants.
        """
        try:
            program, arrays = self._program(constants, inputs, args, kwargs)
            return program(inputs, arrays)
        except Exception:  # An error in the model itself is raised again below.
            return self._fixed_program(constants, inputs, args, kwargs)(inputs, [])

    def begin(
        self, constants: Hashable, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Begin to compile the program in another thread, so that the next one can be traced.

        Args:
            constants: as in a call.
            inputs: as in a call, or their shapes and types.
            args: as in a call.
            kwargs: as in a call.

        Returns:
            The shapes and types of the result, or ``None`` if JAX traces something or if the
            program cannot be traced: a call shows why.
        """
        if _is_traced((inputs, args, kwargs)):
            return None
        try:
            program, arrays = self._program(constants, inputs, args, kwargs)
            return program.begin(inputs, arrays)
        except Exception:  # The call raises it again, or takes the data as constants.
            return None

    def _program(
        self, constants: Hashable, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Program[T], list[Any]]:
        """The program, and the arrays among the model's arguments."""
        arrays, layout = split_arrays(args, kwargs)
        options = self._chosen_options(constants, inputs, args, kwargs)
        chosen = None if options is None else tuple(sorted(options.items()))
        shapes = _shapes((inputs, arrays))
        return _compiled(self._function, constants, layout, shapes, chosen), arrays

    def _fixed_program(
        self, constants: Hashable, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Program[T]:
        """The program with the data as constants, kept for further runs on the same data."""
        options = self._chosen_options(constants, inputs, args, kwargs)
        try:
            fixed = fix_arrays(*split_arrays(args, kwargs))
            chosen = None if options is None else tuple(sorted(options.items()))
            return _compiled(self._function, constants, fixed, _shapes(inputs), chosen)
        except Exception:  # Arguments that are traced or that cannot be hashed.
            return _Program(
                lambda inputs, _: self._function(constants, inputs, args, kwargs), options
            )

    def _chosen_options(
        self, constants: Hashable, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The options; the default ones while JAX traces a program, which has its own."""
        return None if _is_traced((inputs, args, kwargs)) else self._options(constants, inputs)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _shapes(tree: Any) -> Hashable:
    """Structure, shapes and types of a pytree of arrays and numbers."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
