r"""The posterior as a smooth part plus a prior with closed forms, on flat unconstrained vectors.

A target is :math:`\pi(x) \propto \exp\{-\beta [f(x) + g(x)]\}`. ``g`` collects the Laplace priors,
whose proximal maps, attention kernels and Hamiltonian flows are known
(:mod:`numpyro_rwpo.priors`); ``f`` is everything else (likelihood, other priors, Jacobians) and is
used through batched gradients only.

:class:`ModelSource` and :class:`PotentialSource` hold what is known before the data are: the
layout of the parameters and which of them have a Laplace prior. Their ``bind`` makes a
:class:`Target` from the model's arguments, also inside a compiled program, so that new data of the
same shape need no new compilation.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

from numpyro_rwpo.laplace_sites import (
    SiteParameters,
    default_key,
    distribution_parameters,
    is_laplace,
    split_laplace_sites,
)
from numpyro_rwpo.model_checks import check_model, explained, with_fixed_sites
from numpyro_rwpo.placement import ONE_PLACE, Placement
from numpyro_rwpo.preparation import Preparation, check_rates
from numpyro_rwpo.priors import LaplacePrior
from numpyro_rwpo.proposal import Proposal


class Target(NamedTuple):
    """One posterior, bound to its data.

    Attributes:
        smooth: ``beta f`` and its gradient for a batch of positions (n, dim) and centrings (n,):
            (n,), (n, dim).
        full_prior: ``beta g`` at centring 0, fields (dim,); ``None`` when no coordinate has a
            Laplace prior.
        is_rewritten: coordinates of Laplace sites with a latent scale, (dim,); ``None`` without.
        centring: parametrisation of these sites, see :mod:`numpyro_rwpo.laplace_sites`: 0 or 1,
            scalar, or one for each position that will be given, (n,).
        placement: devices that share the particles.
        proposal: the user's density near it, ``None`` where there is none.
    """

    smooth: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    full_prior: LaplacePrior | None
    is_rewritten: jax.Array | None
    centring: jax.Array
    placement: Placement = ONE_PLACE
    proposal: Proposal | None = None

    def value_and_grad(self, particles: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``beta f`` and its gradient, (n, dim) -> (n,), (n, dim)."""
        return self.smooth(particles, jnp.broadcast_to(self.centring, particles.shape[:1]))

    @property
    def prior(self) -> LaplacePrior | None:
        """``beta g`` in this parametrisation: at centring 1 the rewritten sites are in f."""
        if self.full_prior is None or self.is_rewritten is None:
            return self.full_prior
        split = ~(self.is_rewritten & (self.centring[..., None] > 0))
        location, left, right = self.full_prior
        return LaplacePrior(location, left * split, right * split)

    def prior_potential(self, particles: jax.Array) -> jax.Array:
        """``beta g`` summed over coordinates, (..., dim) -> (...)."""
        if self.prior is None:
            return jnp.zeros(particles.shape[:-1], particles.dtype)
        return self.prior.potential(particles).sum(-1)

    def prior_subgradient(self, particles: jax.Array) -> jax.Array:
        """Subgradient of ``beta g``, in the shape of ``particles``."""
        if self.prior is None:
            return jnp.zeros_like(particles)
        return self.prior.subgradient(particles)


def pool_chains(target: Target, axis_name: str) -> Target:
    """The same target for code that is vmapped over chains, with one gradient for all of them.

    The particles of all chains are then the rows of one matrix, whatever the layout that ``vmap``
    would give the model: on a CPU small problems take half the time. Not where devices share the
    particles: rows of several chains would have to move.
    """
    placement = target.placement._replace(chain_axis=axis_name)
    if placement.mesh is not None:
        return target._replace(placement=placement)

    def smooth(*batches: jax.Array) -> tuple[jax.Array, jax.Array]:
        pooled = (lax.all_gather(x, axis_name, tiled=True) for x in batches)
        value, gradient = target.smooth(*pooled)
        number = batches[0].shape[0]
        start = lax.axis_index(axis_name) * number
        return (
            lax.dynamic_slice_in_dim(value, start, number),
            lax.dynamic_slice_in_dim(gradient, start, number),
        )

    return target._replace(smooth=smooth)


def has_loop(bind: Callable[[], Target], dim: int, dtype: Any) -> bool:
    """Whether the gradient runs through a loop (scan, ODE solver), which no batch can speed up."""
    shapes = jax.ShapeDtypeStruct((1, dim), dtype), jax.ShapeDtypeStruct((1,), dtype)
    return _mentions_loop(jax.make_jaxpr(lambda x, c: bind().smooth(x, c))(*shapes).jaxpr)


def _mentions_loop(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("scan", "while"):
            return True
        inner = (getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values())))
        if any(hasattr(x, "eqns") and _mentions_loop(x) for x in inner):
            return True
    return False


class Differentiation(NamedTuple):
    """How the smooth potential is tempered and differentiated."""

    inverse_temperature: float
    forward_mode: bool

    def target(
        self,
        smooth: Callable[[jax.Array, jax.Array], jax.Array],
        prior: LaplacePrior | None,
        is_rewritten: jax.Array | None = None,
    ) -> Target:
        """Temper both parts and batch the gradient of the smooth one, (dim,), () -> ()."""
        beta = self.inverse_temperature

        def tempered(position: jax.Array, centring: jax.Array) -> jax.Array:
            return beta * smooth(position, centring)

        def forward(position: jax.Array, centring: jax.Array) -> tuple[jax.Array, jax.Array]:
            return tempered(position, centring), jax.jacfwd(tempered)(position, centring)

        one = forward if self.forward_mode else jax.value_and_grad(tempered)
        prior = None if prior is None else prior.tempered(beta)
        return Target(jax.vmap(one), prior, is_rewritten, jnp.zeros(()))


class Source(Protocol):
    """What the kernel needs to know of a posterior before its data.

    Attributes:
        has_prior: whether any coordinate has a Laplace prior with closed forms.
        layout: of the latent values, and which of them are Laplace sites; hashable.
    """

    has_prior: bool
    layout: Hashable

    def prepare(
        self,
        rng_keys: jax.Array,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Preparation:
        """Start one chain per key: at ``init_params`` (with a chain axis), or where it is found."""

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Target:
        """Make the target for these model arguments."""

    def emit(
        self,
        position: jax.Array,
        centring: jax.Array,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""

    def ravel(
        self, values: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centring 0."""

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map unconstrained values to the sites of the user's model."""


class ModelSource:
    """A NumPyro model with its Laplace sites split off. Making one computes nothing.

    Args:
        model: NumPyro model.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        init_strategy: NumPyro's per-site initialisation strategy.
        nonsmooth: ``"auto"``, ``None`` or names of Laplace sites, see
            :func:`numpyro_rwpo.laplace_sites.split_laplace_sites`.
        differentiation: temperature and differentiation mode.

    Raises:
        ValueError: discrete latent sites, Delta sites, no latent sites, or a name in
            ``nonsmooth`` that is not a Laplace site; see also
            :func:`numpyro_rwpo.model_checks.check_model`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
        *,
        init_strategy: Callable[..., Any],
        nonsmooth: Any,
        differentiation: Differentiation,
    ) -> None:
        self._init_strategy = init_strategy
        self._differentiation = differentiation
        model = with_fixed_sites(model, check_model(model, model_args, model_kwargs))
        with explained(model, model_args, model_kwargs):
            self._split = split_laplace_sites(model, model_args, model_kwargs, nonsmooth)
            shapes = self._split.unconstrained_shapes(model_args, model_kwargs)
        self.has_prior = bool(self._split.fixed or self._split.rewritten)
        self._prototype = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        self._unravel = ravel_pytree(self._prototype)[1]
        sites = self._split.fixed, tuple(self._split.rewritten)
        self.layout: Hashable = (layout(self._prototype), sites)

    def prepare(
        self,
        rng_keys: jax.Array,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Preparation:
        """Take the user's start or search a valid one, as NumPyro does for NUTS."""
        if init_params is None:
            found = initialize_model(
                rng_keys,
                self._split.smooth_model,
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
                forward_mode_differentiation=self._differentiation.forward_mode,
            ).param_info
            flatten = jax.vmap(lambda z: ravel_pytree(z)[0])
            start, gradient = flatten(found.z), flatten(found.z_grad)
            potential = found.potential_energy
        else:
            ravel = partial(self.ravel, model_args=model_args, model_kwargs=model_kwargs)
            # Mapped over keys too: values without any array must reach the check of their layout.
            start = jax.vmap(lambda _, z: ravel(z))(rng_keys, init_params)
            potential, gradient = self.bind(model_args, model_kwargs).value_and_grad(start)
        emit = partial(self.emit, model_args=model_args, model_kwargs=model_kwargs)
        values, _ = jax.vmap(emit)(start, jnp.zeros(len(start)))
        prior = self._split.prior_parameters(model_args, model_kwargs) if self.has_prior else {}
        return Preparation(start, values, potential, gradient, prior)

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Target:
        """Make the target for these model arguments."""
        split = self._split

        def smooth(position: jax.Array, centring: jax.Array) -> jax.Array:
            kwargs = {**model_kwargs, "_centring": centring} if split.rewritten else model_kwargs
            model = default_key(self._split.smooth_model)
            return potential_energy(model, model_args, kwargs, self._unravel(position))

        if not self.has_prior:
            return self._differentiation.target(smooth, None)
        prior = ravel_prior(split.prior_parameters(model_args, model_kwargs), self._prototype)
        if not split.rewritten:
            return self._differentiation.target(smooth, prior)
        rewritten = {
            name: np.full(np.shape(x), name in split.base_sites)
            for name, x in self._prototype.items()
        }
        is_rewritten = ravel_pytree(rewritten)[0]
        # What g leaves out of minus the log density: the centrings must differ by nothing else.
        width = jnp.where(is_rewritten, 1 / prior.rate_left + 1 / prior.rate_right, 1.0)
        log_normalizer = jnp.log(width).sum()

        def comparable(position: jax.Array, centring: jax.Array) -> jax.Array:
            return smooth(position, centring) + jnp.where(centring > 0, 0.0, log_normalizer)

        return self._differentiation.target(comparable, prior, is_rewritten)

    def emit(
        self,
        position: jax.Array,
        centring: jax.Array,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""
        values = self._unravel(position)
        if not self._split.rewritten:
            return values, jnp.zeros(())
        return self._split.to_user_values(values, centring, model_args, model_kwargs)

    def ravel(
        self, values: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centring 0."""
        if self._split.rewritten:
            values = self._split.from_user_values(values, model_args, model_kwargs)
        return ravel_like(values, self._prototype)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map unconstrained values to the sites of the user's model."""
        return partial(
            constrain_fn,
            default_key(self._split.user_model),
            model_args,
            model_kwargs,
            return_deterministic=True,
        )


class PotentialSource:
    """A potential function of any pytree of floating-point arrays.

    Args:
        potential_fn: the whole potential, as for NUTS: minus the log density up to a constant.
        init_params: the pytree for one chain; its structure is that of every draw.
        nonsmooth: the part of ``potential_fn`` that has closed forms: a pytree of the structure
            of ``init_params`` whose leaves are ``numpyro.distributions.Laplace`` or
            ``AsymmetricLaplace`` distributions, or ``None`` for leaves without; or ``"auto"`` or
            ``None`` when there is no such part.
        differentiation: temperature and differentiation mode.

    Raises:
        ValueError: ``potential_fn`` does not return a scalar, or ``nonsmooth`` does not fit.
        TypeError: a leaf of ``init_params`` or the potential is not floating-point.
    """

    def __init__(
        self,
        potential_fn: Callable[[Any], jax.Array],
        init_params: Any,
        *,
        nonsmooth: Any,
        differentiation: Differentiation,
    ) -> None:
        self._potential_fn = potential_fn
        self._differentiation = differentiation
        for leaf in jax.tree.leaves(init_params):
            dtype = getattr(leaf, "dtype", np.asarray(leaf).dtype)
            if dtype not in (np.float32, np.float64):
                raise TypeError(
                    "`init_params` must hold arrays in float32 or float64; got a leaf of dtype "
                    f"{dtype}. Convert it, e.g. with jnp.asarray(x, float)."
                )
        self._prototype = jax.tree.map(
            lambda x: np.zeros(jnp.shape(x), jnp.result_type(x)), init_params
        )
        flat, self._unravel = ravel_pytree(init_params)
        if flat.size == 0:
            raise ValueError("`init_params` holds no parameters; there is nothing to sample.")
        shape = jax.eval_shape(potential_fn, init_params)
        if getattr(shape, "shape", None) != ():
            raise ValueError(
                "`potential_fn` must return a scalar (minus the log density of one position); "
                f"got {shape}. Sum over coordinates and observations."
            )
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(
                "`potential_fn` must return a floating-point number, of which there is a gradient; "
                f"got dtype {shape.dtype}. Convert its arguments or its result."
            )
        self._prior = prior_from_leaves(nonsmooth, self._prototype)
        self.has_prior = self._prior is not None
        self.layout: Hashable = layout(self._prototype)

    def prepare(
        self,
        rng_keys: jax.Array,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Preparation:
        """Start at ``init_params``."""
        start = jax.vmap(lambda z: self.ravel(z, model_args, model_kwargs))(init_params)
        potential, gradient = self.bind(model_args, model_kwargs).value_and_grad(start)
        return Preparation(start, jax.vmap(self._unravel)(start), potential, gradient, {})

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Target:
        """Make the target; a potential function has no model arguments."""
        prior = self._prior

        def smooth(position: jax.Array, centring: jax.Array) -> jax.Array:
            value = self._potential_fn(self._unravel(position))
            return value if prior is None else value - prior.potential(position).sum()

        return self._differentiation.target(smooth, prior)

    def emit(
        self,
        position: jax.Array,
        centring: jax.Array,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Any, jax.Array]:
        """A flat position (dim,) in the user's structure, and 0."""
        return self._unravel(position), jnp.zeros(())

    def ravel(
        self, values: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> jax.Array:
        """A user's values for one chain as a position (dim,)."""
        return ravel_like(values, self._prototype)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Leave the values as they are: a potential function has no constraints."""
        return lambda values: values


def layout(values: Any) -> tuple[Any, tuple[Any, ...]]:
    """Structure, shapes and types of a pytree of arrays, hashable, for comparison."""
    leaves, structure = jax.tree.flatten(values)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


def ravel_like(values: Any, prototype: Any) -> jax.Array:
    """Flatten ``values`` after checking their structure and shapes against ``prototype``."""
    structure: Any = jax.tree.structure(prototype)
    if jax.tree.structure(values) != structure:
        raise ValueError(
            "`init_params` must have the structure of the unconstrained latent values, "
            f"{jax.tree.map(np.shape, prototype)}; got {jax.tree.map(np.shape, values)}."
        )
    shapes = [np.shape(x) for x in jax.tree.leaves(values)]
    expected = [np.shape(x) for x in jax.tree.leaves(prototype)]
    if shapes != expected:
        raise ValueError(
            f"`init_params` must have the shapes {jax.tree.map(np.shape, prototype)} "
            "(unconstrained, after the chain axis if there are several chains); got "
            f"{jax.tree.map(np.shape, values)}."
        )
    like = jax.tree.map(lambda x, p: jnp.asarray(x, p.dtype), values, prototype)
    return ravel_pytree(like)[0]


def ravel_prior(parameters: dict[str, SiteParameters], prototype: Any) -> LaplacePrior:
    """Lay the parameters of Laplace sites out over the flat position; rate 0 elsewhere."""

    def field(k: int) -> jax.Array:
        leaves = {
            name: parameters[name][k].astype(x.dtype).reshape(x.shape) if name in parameters else x
            for name, x in prototype.items()
        }
        return ravel_pytree(leaves)[0]

    return LaplacePrior(field(0), field(1), field(2))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    return len(padded) == len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))


def prior_from_leaves(nonsmooth: Any, prototype: Any) -> LaplacePrior | None:
    """The Laplace prior that ``nonsmooth`` describes leaf by leaf."""
    if nonsmooth is None or (isinstance(nonsmooth, str) and nonsmooth == "auto"):
        return None
    is_leaf = lambda x: x is None or isinstance(x, dist.Distribution)  # noqa: E731
    leaves, structure = jax.tree.flatten(nonsmooth, is_leaf=is_leaf)
    expected: Any = jax.tree.structure(prototype)
    if structure != expected or not all(x is None or is_laplace(x) for x in leaves):
        raise ValueError(
            "With `potential_fn`, `nonsmooth` must be a pytree like `init_params` whose leaves "
            "are Laplace or AsymmetricLaplace distributions or None; got "
            f"{nonsmooth!r} for parameters of shapes {jax.tree.map(np.shape, prototype)}."
        )
    none = SiteParameters(*3 * (jnp.zeros(()),))
    whole = []
    for number, (fn, x) in enumerate(zip(leaves, jax.tree.leaves(prototype), strict=True)):
        parameters = none if fn is None else distribution_parameters(fn)
        if fn is not None:
            check_rates({f"leaf {number} of `nonsmooth`": parameters})
            if not _broadcasts(fn.shape(), x.shape):
                raise ValueError(
                    f"Leaf {number} of `nonsmooth` must broadcast to the shape {x.shape} of its "
                    f"parameter; got a distribution of shape {fn.shape()}."
                )
        whole.append([jnp.broadcast_to(field, x.shape).ravel() for field in parameters])
    return LaplacePrior(*(jnp.concatenate(fields) for fields in zip(*whole, strict=True)))
