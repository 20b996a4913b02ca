"""``RWPO``, the NumPyro kernel: argument checks, and which phase comes when.

One NumPyro chain is one independent ensemble of particles. A chain's life:

1. start: quasi-Newton descents place the particles (:mod:`numpyro_rwpo.dynamics.pathfinder`);
2. adaptation: exact moves (:mod:`numpyro_rwpo.dynamics.moves`) until their tuning is steady
   (:mod:`numpyro_rwpo.dynamics.adaptation`); it is then frozen;
3. if the chains disagree, transport: the noise-free flow moves the particles of the start
   (:mod:`numpyro_rwpo.dynamics.placement`), and adaptation follows again;
4. sampling: a refresh takes every particle through a few successive states, which are emitted one
   after another, particle after particle (:mod:`numpyro_rwpo.dynamics.iteration`).

All but the last happen in :meth:`RWPO.init`, as programs of their own
(:mod:`numpyro_rwpo.dynamics.warmup`): NumPyro's loop compiles no more than it runs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from jax.sharding import Mesh
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_rwpo.arguments import Arguments, check_init_params, checked_arguments
from numpyro_rwpo.dynamics.choice import Kind, choose_move
from numpyro_rwpo.dynamics.iteration import iterate_chains
from numpyro_rwpo.dynamics.placement import transport_path
from numpyro_rwpo.dynamics.programs import Programs
from numpyro_rwpo.dynamics.settings import Settings, numbers_of, resolve_settings
from numpyro_rwpo.dynamics.several_modes import Call
from numpyro_rwpo.dynamics.state import RWPOState
from numpyro_rwpo.heads.registry import Fit, find_head
from numpyro_rwpo.model.prior_registry import PriorRegistry, registry_with
from numpyro_rwpo.model.source import different_model, fits, layout, start_radius
from numpyro_rwpo.model.target import Differentiation
from numpyro_rwpo.support.checks import check_rng_key
from numpyro_rwpo.support.faulty_jaxlib import warn_of_fault
from numpyro_rwpo.support.memory import check_memory_maps
from numpyro_rwpo.support.phases import shown_phases
from numpyro_rwpo.support.precision import in_full_precision
from numpyro_rwpo.support.renaming import Renamed, deprecated_property, renamed_arguments
from numpyro_rwpo.support.sharding import check_mesh
from numpyro_rwpo.support.threads import one_at_a_time


class RWPO(MCMCKernel):
    """Regularized Wasserstein proximal sampler: a drop-in for NUTS, made for Laplace priors.

    One chain is one independent ensemble of particles. Warm-up runs inside :meth:`init`, before
    NumPyro's loop, and makes at most ``num_warmup`` updates: it places the ensemble, and adapts
    Metropolis-adjusted split Hamiltonian moves that follow Laplace priors exactly. If the particles
    of all chains are in several separated modes then, they jump between them. If the ensembles of
    the chains otherwise disagree, a noise-free flow of gradients and attention among the particles
    moves them onto the posterior, and adaptation starts again; if they still disagree, smaller ones
    move by NUTS transitions. All moves are frozen before the first draw.

    A refresh takes every particle through S successive states, with S = 1024 / ``num_particles``,
    but at least 4 and at most 32. These states are drawn one after another, particle after
    particle. Draws that MCMC collects during warm-up are particles of the ensemble after warm-up.

    Args:
        model: NumPyro model. Its Laplace and AsymmetricLaplace sites are found and split off, and
            so are group and fused priors of :mod:`numpyro_rwpo.distributions`.
        potential_fn: Instead of a model, minus the log density of any pytree, up to a constant;
            ``MCMC.run`` then needs ``init_params``.
        num_particles: Number of particles in an ensemble, at least 4. ``None`` chooses 64, or 128
            in 33 to 64 dimensions, and half of that if the gradient contains a loop.
        attention: How transport fits the density of the particles: ``"copula"``, ``"marginal"`` or
            ``"joint"``, which is that of the papers and suits few dimensions with several modes.
            Or a function ``fit(particles, prior, prox_time)`` that returns such a density, see
            :class:`numpyro_rwpo.heads.density.ProximalDensity`.
        relative_prox_time: Bandwidth of the attention, in units of each coordinate's variance.
        inverse_temperature: Power of the posterior that is sampled.
        corrected: ``True`` for exact draws, by Metropolis-adjusted moves; ``False`` for the
            noise-free particles as transport leaves them. These are biased, do not change after
            warm-up, and repeat once all have been emitted.
        laplace_sites: ``"auto"`` splits off every Laplace site, ``None`` none, and a list of site
            names only those. With ``potential_fn``, a pytree like ``init_params`` of ``Laplace`` or
            ``AsymmetricLaplace`` distributions or ``None``, which says what part of the potential
            is a Laplace prior; the potential itself still includes this part.
        priors: Further kinds of distributions with closed forms: a mapping from classes of NumPyro
            distributions to functions that make a prior of one, see
            :class:`numpyro_rwpo.priors.protocol.Prior`. Their sites are split off, too, if their
            parameters are fixed.
        dense_mass: ``"auto"`` lets warm-up choose, by measurement, between a dense metric and a
            diagonal one with the exact flow of the prior. With fewer than two particles per
            dimension, the dense metric is one that is diagonal except in a few directions.
            ``True`` (up to four dimensions per particle) or ``False`` makes the choice.
        target_accept_prob: Acceptance probability at which the step size aims.
        init_strategy: NumPyro's initialization strategy for each site.
        proposal: A distribution of flat unconstrained parameters near the posterior, such as a
            trained guide's ``guide.get_posterior(params)``. Particles are initialized from draws of
            it (``init_params`` then only shapes the argument of ``potential_fn``). If corrected,
            they also jump to further draws of it. The posterior stays exact.
            The proposal must cover all modes, because a mode that it misses is not found.
        forward_mode_differentiation: Whether to differentiate in forward mode.
        mesh: Devices that share the particles of every chain; ``None`` runs where the data are.
            With a mesh, ``num_chains`` must be one or ``chain_method`` ``"vectorized"``.
        particle_axis: Axis of ``mesh`` over which the particles are distributed; may be omitted if
            the mesh has only one axis. Data may be sharded over its other axes.

    Raises:
        ValueError: Both or neither of ``model`` and ``potential_fn`` are given, or an argument is
            out of range.
        TypeError: ``priors`` is not a mapping from classes of distributions to functions.

    References:
        Han, Osher and Li, arXiv:2502.16773 and arXiv:2510.16356; Tan, Osher and Li,
        arXiv:2308.14945.

    Example:
        >>> mcmc = MCMC(RWPO(model), num_warmup=200, num_samples=1000)  # doctest: +SKIP
        >>> mcmc.run(jax.random.key(0), X, y)  # doctest: +SKIP
    """

    @renamed_arguments(
        nonsmooth=Renamed("laplace_sites"),
        correction=Renamed("corrected", {"metropolis": True, None: False}),
    )
    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Any], jax.Array] | None = None,
        *,
        num_particles: int | None = None,
        attention: str | Fit = "copula",
        relative_prox_time: float = 0.1,
        inverse_temperature: float = 1.0,
        corrected: bool = True,
        laplace_sites: Any = "auto",
        priors: PriorRegistry | None = None,
        dense_mass: bool | str = "auto",
        target_accept_prob: float = 0.8,
        init_strategy: Callable[..., Any] = init_to_uniform,
        proposal: dist.Distribution | None = None,
        forward_mode_differentiation: bool = False,
        mesh: Mesh | None = None,
        particle_axis: str | None = None,
    ) -> None:
        self._arguments = checked_arguments(
            Arguments(
                model=model,
                potential_fn=potential_fn,
                num_particles=num_particles,
                attention=find_head(attention),
                relative_prox_time=relative_prox_time,
                corrected=corrected,
                laplace_sites=laplace_sites,
                priors=registry_with(priors),
                dense_mass=dense_mass,
                target_accept_prob=target_accept_prob,
                init_strategy=init_strategy,
                proposal=proposal,
                differentiation=Differentiation(inverse_temperature, forward_mode_differentiation),
                placement=check_mesh(mesh, particle_axis),
            )
        )
        self._programs = Programs(self._arguments)
        # Set by init. NumPyro looks at `_sample_fn` to see whether init has run in this process.
        self._sample_fn: Callable[..., RWPOState] | None = None
        # Of the last init; also kept by pickling.
        self._settings: Settings | None = None
        self._layout: Any = None  # structure, shapes and types of the draws
        # For the layout and settings of the last run.
        self._last_flow: dict[Any, int] = {}
        # Keyword arguments of the last run of a single chain, which are one object for all chains
        # that MCMC runs one after another, and the kind of move of these chains.
        self._sequence: tuple[Any, Kind] | None = None

    @property
    def model(self) -> Callable[..., Any] | None:
        """The NumPyro model, ``None`` with a potential function."""
        return self._arguments.model

    @property
    def potential_fn(self) -> Callable[[Any], jax.Array] | None:
        """The potential function, ``None`` with a model."""
        return self._arguments.potential_fn

    @property
    def laplace_sites(self) -> Any:
        """The argument ``laplace_sites``: which Laplace priors are split off."""
        return self._arguments.laplace_sites

    @property
    def priors(self) -> PriorRegistry:
        """The kinds of distributions with closed forms: the built-in ones and the user's."""
        return self._arguments.priors

    nonsmooth = deprecated_property(
        lambda self: self.laplace_sites,
        "`RWPO.nonsmooth` has been renamed to `RWPO.laplace_sites`",
    )
    arguments = deprecated_property(
        lambda self: self._arguments.record(),
        "`RWPO.arguments` is private now: keep the arguments that you pass to `RWPO`",
    )
    settings = deprecated_property(
        lambda self: self._settings,
        "`RWPO.settings` is private now: see `diagnose(mcmc).measurements.settings`",
    )

    @property
    def sample_field(self) -> str:
        """State field that holds the draw."""
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        """State fields that MCMC collects."""
        return ("z", "diverging")

    def get_diagnostics_str(self, state: RWPOState) -> str:
        """The text that the progress bar shows for a single chain."""
        phase = "warm-up is over" if int(state.iteration) <= 0 else "sampling"
        return (
            f"{phase}: {int(state.num_steps)} gradients a draw, step size {state.step_size:.2e}, "
            f"acc. prob {state.mean_accept_prob:.2f}"
        )

    @one_at_a_time
    @in_full_precision
    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> RWPOState:
        """Warm up one ensemble per key and return the state before NumPyro's first iteration.

        Args:
            rng_key: One key, or a batch of keys, one for each chain.
            num_warmup: The largest number of updates of an ensemble in warm-up.
            init_params: Unconstrained starting values, or ``None``; with a leading chain axis if
                there is a batch of keys.
            model_args: Arguments of the model.
            model_kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If the model cannot be sampled, for example because of a discrete site that
                is not to be summed out, or if ``init_params``, ``proposal``, ``mesh`` or
                ``dense_mass`` does not fit it.
            RuntimeError: If there is no valid starting position.
            MemoryError: If the ensemble is larger than the device's memory.
            ImportError: If there are discrete sites to sum out, and funsor is not installed.

        Warns:
            UserWarning: If compiled programs have used up most of the process's memory maps.
            RuntimeWarning: If the version of jaxlib is one that computes wrong sums.
        """
        check_rng_key(rng_key)
        check_memory_maps()
        warn_of_fault()
        arguments, programs = self._arguments, self._programs
        check_init_params(arguments, init_params)
        call = model_args, {} if model_kwargs is None else model_kwargs
        is_batch = not is_prng_key(rng_key)
        rng_keys = rng_key if is_batch else rng_key[None]
        batch = jax.tree.map(lambda x: x if is_batch else jnp.asarray(x)[None], init_params)

        bound, prepared, keys = programs.find_start(rng_keys, batch, *call)
        start, radius = prepared.start, start_radius(arguments.init_strategy, init_params)
        settings = resolve_settings(arguments, bound, start, num_warmup, radius)
        constants = programs.layout, settings
        numbers = numbers_of(arguments, self._last_flow.get(constants, -1))
        inputs = keys.warm_up, start, numbers
        earlier = None
        if self._sequence is not None and not is_batch and model_kwargs is not None:
            earlier = self._sequence[1] if self._sequence[0] is model_kwargs else None
        with shown_phases() as show:
            show("placing the particles and adapting their moves")
            warm = programs.warm_up(constants, inputs, *call)
            details = Call(programs, settings, inputs, *call, show)
            choice = choose_move(warm, arguments, details, earlier)
        constants_of_state = num_warmup, choice.num_states, settings.placement
        state = programs.first_state(constants_of_state, (keys.sampling, choice.ready), (), {})
        state = state._replace(z=prepared.values)
        if not is_batch:
            state = jax.tree.map(lambda x: x[0] if jnp.ndim(x) else x, state)
            state = state._replace(iteration=jnp.array(-num_warmup))

        self._settings, self._layout = settings, layout(state.z)
        is_traced = isinstance(start, jax.core.Tracer)
        if not is_traced:
            self._last_flow = {constants: choice.kind.number}
        self._sequence = None if is_batch or is_traced else (model_kwargs, choice.kind)
        self._sample_fn = iterate_chains
        return state

    def transport_path(
        self, rng_key: jax.Array, *args: Any, num_steps: int = 40, **kwargs: Any
    ) -> jax.Array:
        """The path of one ensemble through the noise-free flow, from the plain placement.

        Particles stay where they are once the flow is at rest. This neither needs a run nor changes
        one.

        Args:
            rng_key: Random key.
            args: Arguments of the model.
            num_steps: steps of transport.
            kwargs: Keyword arguments of the model.

        Returns:
            Unconstrained positions before each step and after the last, (num_steps + 1,
            num_particles, dim), for :func:`numpyro_rwpo.plots.plot_transport`.

        Raises:
            ValueError: The kernel was made with a potential function, for which no start is known.
        """
        arguments = self._arguments
        if arguments.model is None:
            raise ValueError("`transport_path` needs a model; this kernel has a `potential_fn`.")
        check_rng_key(rng_key)
        key_start, key_spread = random.split(rng_key)
        programs = Programs(arguments)
        bound, prepared, _ = programs.find_start(key_start[None], None, args, kwargs)
        start, radius = prepared.start, start_radius(arguments.init_strategy, None)
        settings = resolve_settings(arguments, bound, start, num_steps, radius)
        target, _ = programs.bind(args, kwargs, start.dtype)
        numbers = numbers_of(arguments)
        follow = partial(
            transport_path, target=target, settings=settings, numbers=numbers, num_steps=num_steps
        )
        return jax.jit(follow)(key_spread, start[0])

    @one_at_a_time
    @in_full_precision
    def sample(
        self, state: RWPOState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> RWPOState:
        """One iteration: emit the next draw, after a refresh where all have been drawn."""
        if self._sample_fn is None:
            raise RuntimeError("`init` must be called before `sample`.")
        if layout(state.z) != self._layout:
            raise different_model(state.z)
        kwargs = {} if model_kwargs is None else model_kwargs
        target, bound = self._programs.bind(model_args, kwargs, state.ensemble.particles.dtype)
        return self._sample_fn(state, target, self._settings, bound.emit)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map an unconstrained draw to the sites of the user's model."""
        if self._programs.source is None:
            return lambda values: values
        kwargs = model_kwargs or {}

        @one_at_a_time
        def postprocess(values: Any) -> Any:
            if not fits(values, self._layout):
                raise different_model(values)
            return self._programs.constrain(values, model_args, kwargs)

        return postprocess

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was built from the model; :meth:`init` builds it again."""
        built = dict.fromkeys(["_sample_fn", "_layout", "_programs"])
        return {**self.__dict__, **built, "_last_flow": {}, "_sequence": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the arguments, with programs that are compiled again."""
        self.__dict__.update(state)
        self._programs = Programs(self._arguments)
