"""``RWPO``, the NumPyro kernel: argument checks, and which phase comes when.

One NumPyro chain is one independent ensemble of particles. A chain's life:

1. start: a quasi-Newton descent places the particles (:mod:`numpyro_rwpo.dynamics.pathfinder`);
2. transport: the noise-free flow moves them (:mod:`numpyro_rwpo.dynamics.transport`);
3. adaptation: exact moves (:mod:`numpyro_rwpo.dynamics.moves`) until their tuning is steady
   (:mod:`numpyro_rwpo.dynamics.adaptation`); it is then frozen;
4. sampling: a refresh takes every particle through a few successive states, which are emitted one
   after another, particle after particle (:mod:`numpyro_rwpo.dynamics.iteration`).

All but the last happen in :meth:`RWPO.init`, as programs of their own
(:mod:`numpyro_rwpo.dynamics.warmup`): NumPyro's loop compiles no more than it runs.
"""

import math
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

from numpyro_rwpo.dynamics.iteration import iterate
from numpyro_rwpo.dynamics.programs import Programs
from numpyro_rwpo.dynamics.settings import (
    Numbers,
    Settings,
    default_num_particles,
    flows_on_trial,
    metric_form,
    num_states,
)
from numpyro_rwpo.dynamics.state import (
    STATE_AXES,
    Ready,
    RWPOState,
    after_trees,
    after_warm_up,
    has_converged,
)
from numpyro_rwpo.dynamics.trees import (
    MIN_WARMUP,
    NUM_PARTICLES,
    TreeMove,
)
from numpyro_rwpo.dynamics.warmup import WarmUp, transport_path
from numpyro_rwpo.heads.registry import Fit, find_head
from numpyro_rwpo.model.binding import Bound, bind, different_model, fits
from numpyro_rwpo.model.checks import explained
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.potential_source import PotentialSource
from numpyro_rwpo.model.preparation import Preparation, check_preparation
from numpyro_rwpo.model.prior_registry import PriorRegistry, entry_names, registry_with
from numpyro_rwpo.model.proposal import (
    check_proposal,
    check_proposal_dim,
    fingerprint,
)
from numpyro_rwpo.model.source import Source, layout, start_radius
from numpyro_rwpo.model.target import Differentiation, has_loop, pool_chains
from numpyro_rwpo.support.checks import (
    check_choice,
    check_init_strategy,
    check_num_particles,
    check_range,
    check_rng_key,
    check_site_names,
    check_target,
)
from numpyro_rwpo.support.memory import check_memory, check_memory_maps
from numpyro_rwpo.support.precision import in_full_precision
from numpyro_rwpo.support.sharding import check_mesh, check_use
from numpyro_rwpo.support.threads import one_at_a_time


class RWPO(MCMCKernel):
    """Regularized Wasserstein proximal sampler: a drop-in for NUTS, made for Laplace priors.

    One chain is one independent ensemble of particles. Warm-up runs inside :meth:`init`, before
    NumPyro's loop, and makes at most ``num_warmup`` updates: it places the ensemble, moves it onto
    the posterior by a noise-free flow of gradients and attention among the particles, and adapts
    Metropolis-adjusted split Hamiltonian moves that follow Laplace priors exactly. If the ensembles
    of the chains still disagree then, smaller ones start again and move by NUTS transitions. All
    moves are frozen before the first draw.

    A refresh takes every particle through S successive states, with S = 1024 / ``num_particles``,
    but at least 4 and at most 32. These states are drawn one after another, particle after
    particle. Draws that MCMC collects during warm-up are particles of the ensemble after warm-up.

    Args:
        model: NumPyro model. Its Laplace and AsymmetricLaplace sites are found and split off.
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
        correction: ``"metropolis"`` for exact draws; ``None`` for the noise-free particles as
            transport leaves them. These are biased, do not change after warm-up, and repeat once
            all have been emitted.
        nonsmooth: ``"auto"`` splits off every Laplace site, ``None`` none, and a list of site names
            only those. With ``potential_fn``, a pytree like ``init_params`` of ``Laplace`` or
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
            they are not transported, but jump to further draws of it. The posterior stays exact.
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

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Any], jax.Array] | None = None,
        *,
        num_particles: int | None = None,
        attention: str | Fit = "copula",
        relative_prox_time: float = 0.1,
        inverse_temperature: float = 1.0,
        correction: str | None = "metropolis",
        nonsmooth: Any = "auto",
        priors: PriorRegistry | None = None,
        dense_mass: bool | str = "auto",
        target_accept_prob: float = 0.8,
        init_strategy: Callable[..., Any] = init_to_uniform,
        proposal: dist.Distribution | None = None,
        forward_mode_differentiation: bool = False,
        mesh: Mesh | None = None,
        particle_axis: str | None = None,
    ) -> None:
        check_target(model, potential_fn)
        if model is not None:
            check_site_names(nonsmooth)
        check_num_particles(num_particles)
        check_choice("correction", correction, ("metropolis", None))
        check_choice("dense_mass", dense_mass, (True, False, "auto"))
        check_init_strategy(init_strategy)
        check_proposal(proposal)
        check_choice("forward_mode_differentiation", forward_mode_differentiation, (True, False))
        check_range("relative_prox_time", relative_prox_time, 0.0, math.inf)
        check_range("inverse_temperature", inverse_temperature, 0.0, math.inf)
        check_range("target_accept_prob", target_accept_prob, 0.0, 1.0)
        self._model = model
        self._potential_fn = potential_fn
        self._num_particles = num_particles
        self._attention = find_head(attention)
        self._relative_prox_time = relative_prox_time
        self._correction = correction
        self._nonsmooth = nonsmooth
        self._priors = registry_with(priors)
        self._dense_mass = dense_mass
        self._target_accept_prob = target_accept_prob
        self._init_strategy = init_strategy
        self._proposal = proposal
        self._placement = check_mesh(mesh, particle_axis)
        self._differentiation = Differentiation(
            float(inverse_temperature), forward_mode_differentiation
        )
        # Set by init. NumPyro looks at `_sample_fn` to see whether init has run in this process.
        self._sample_fn: Callable[..., RWPOState] | None = None
        self._source: Source | None = None
        self._settings: Settings | None = None
        self._programs = self._make_programs()
        self._layout: Any = None  # structure, shapes and types of the draws
        # Number of the flow that the last run chose, for its layout and settings.
        self._preferred: dict[Any, int] = {}

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, which a resumed run must share."""
        nonsmooth = self._nonsmooth
        if self._model is None:
            nonsmooth = str(nonsmooth)  # a pytree of distributions
        elif not (nonsmooth is None or isinstance(nonsmooth, str)):
            nonsmooth = sorted(nonsmooth)
        return {
            "num_particles": None if self._num_particles is None else int(self._num_particles),
            "attention": self._attention.name,
            "relative_prox_time": float(self._relative_prox_time),
            "inverse_temperature": self._differentiation.inverse_temperature,
            "correction": self._correction,
            "nonsmooth": nonsmooth,
            "priors": entry_names(self._priors),
            "dense_mass": self._dense_mass,
            "target_accept_prob": float(self._target_accept_prob),
            "proposal": fingerprint(self._proposal),
            "forward_mode_differentiation": self._differentiation.forward_mode,
        }

    @property
    def model(self) -> Callable[..., Any] | None:
        """The NumPyro model, ``None`` with a potential function."""
        return self._model

    @property
    def potential_fn(self) -> Callable[[Any], jax.Array] | None:
        """The potential function, ``None`` with a model."""
        return self._potential_fn

    @property
    def nonsmooth(self) -> Any:
        """The argument ``nonsmooth``: which Laplace priors are split off."""
        return self._nonsmooth

    @property
    def priors(self) -> PriorRegistry:
        """The kinds of distributions with closed forms: the built-in ones and the user's."""
        return self._priors

    @property
    def settings(self) -> Settings | None:
        """The settings of the last :meth:`init`, kept by pickling; ``None`` before the first."""
        return self._settings

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
            ValueError: If ``init_params`` is missing or has the wrong shape, or is given together
                with a proposal and a model; if the proposal has another dimension; if the model
                cannot be sampled, for example because of a discrete site that is not to be summed
                out; if ``mesh`` cannot distribute the particles equally; or if a dense metric of
                far more dimensions than particles is requested.
            RuntimeError: If there is no valid starting position.
            MemoryError: If the ensemble is larger than the device's memory.
            ImportError: If there are discrete sites to sum out, and funsor is not installed.

        Warns:
            UserWarning: If compiled programs have used up most of the process's memory maps.
        """
        check_rng_key(rng_key)
        check_memory_maps()
        if self._proposal is not None and self._model is not None and init_params is not None:
            raise ValueError(
                "Particles start as draws of `proposal`, so that `init_params` would have no "
                "effect; got both. Leave one out."
            )
        model_kwargs = {} if model_kwargs is None else model_kwargs
        is_batch = not is_prng_key(rng_key)
        keys = jax.vmap(random.split)(rng_key if is_batch else rng_key[None])
        batch = jax.tree.map(lambda x: x if is_batch else jnp.asarray(x)[None], init_params)
        prepared = self._find_start(keys[:, 1], batch, model_args, model_kwargs)
        source = self._source
        assert source is not None
        start = prepared.start
        radius = start_radius(self._init_strategy, init_params)
        settings = self._resolve(start, num_warmup, radius, model_args, model_kwargs)
        self._settings = settings
        preferred = self._preferred.get((source.layout, settings), -1)
        numbers = Numbers(self._target_accept_prob, self._relative_prox_time, preferred)
        warm = self._programs.warm_up(
            (source.layout, settings), (keys[:, 1], start, numbers), model_args, model_kwargs
        )
        ready, num_states = self._choose_move(
            warm, (keys[:, 1], start, numbers), model_args, model_kwargs
        )
        state = self._programs.first_state(
            (num_warmup, num_states, self._placement), (keys[:, 0], ready), (), {}
        )
        if not is_batch:
            state = jax.tree.map(lambda x: x[0] if jnp.ndim(x) else x, state)
            state = state._replace(iteration=jnp.array(-num_warmup))
        z = prepared.values if is_batch else jax.tree.map(lambda x: x[0], prepared.values)
        self._layout = layout(z)
        self._sample_fn = self._sample
        return state._replace(z=z)

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
        if self._model is None:
            raise ValueError("`transport_path` needs a model; this kernel has a `potential_fn`.")
        check_rng_key(rng_key)
        source = self._source
        key_start, key_spread = random.split(rng_key)
        try:
            start = self._find_start(key_start[None], None, args, kwargs).start
            radius = start_radius(self._init_strategy, None)
            settings = self._resolve(start, num_steps, radius, args, kwargs)
            target = self._bind(args, kwargs, start.dtype).target
        finally:
            self._source = source
        numbers = Numbers(self._target_accept_prob, self._relative_prox_time)
        follow = partial(transport_path, settings=settings, numbers=numbers, num_steps=num_steps)
        return jax.jit(lambda key, start: follow(key, start, target))(key_spread, start[0])

    def _find_start(
        self,
        rng_keys: jax.Array,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Preparation:
        """Make the source, and find a valid start for each key.

        A Laplace site stays in the smooth part if splitting it off would change the density.
        """
        refused: frozenset[str] = frozenset()
        while True:
            source = self._make_source(init_params, model_args, model_kwargs, refused)
            self._source = source
            with explained(self._model, model_args, model_kwargs):
                prepared = self._programs.prepare(
                    source.layout, (rng_keys, init_params), model_args, model_kwargs
                )
            wrong = source.wrong_sites(prepared, model_args, model_kwargs)
            if not wrong:
                break
            refused |= wrong
        check_preparation(prepared, self._model, init_params, model_args, model_kwargs)
        return prepared

    def _choose_move(
        self,
        warm: WarmUp,
        inputs: tuple[jax.Array, jax.Array, Numbers],
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Ready, int]:
        """The ensembles with the move that suits them, and states per particle and refresh."""
        settings = self._settings
        assert settings is not None and self._source is not None
        chosen = warm.adaptation.chosen[0]
        is_traced = isinstance(chosen, jax.core.Tracer)
        number = 0 if is_traced else int(chosen)
        ready = after_warm_up(warm, number)
        self._preferred = {(self._source.layout, settings): number}
        can_start_anew = (
            settings.corrected
            and settings.num_warmup >= MIN_WARMUP
            and self._proposal is None
            and self._placement.mesh is None
            and not is_traced
        )
        if not can_start_anew or has_converged(ready.warm_up):
            return ready, settings.num_states
        small = settings._replace(num_particles=NUM_PARTICLES)
        trees = self._programs.warm_up_trees(
            (self._source.layout, small), inputs, model_args, model_kwargs
        )
        return after_trees(ready, trees), num_states(NUM_PARTICLES)

    def _resolve(
        self,
        start: jax.Array,
        num_warmup: int,
        radius: float | None,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Settings:
        """The settings of a run whose chains start at ``start``, (chains, dim)."""
        assert self._source is not None
        num_chains, dim = start.shape
        if self._proposal is not None:
            check_proposal_dim(self._proposal, dim)
        num_particles = self._num_particles
        if num_particles is None:
            bind = partial(self._source.bind, model_args, model_kwargs)
            num_particles = default_num_particles(dim, has_loop(bind, dim, start.dtype))
        check_use(num_particles, self._placement)
        dense, rank = metric_form(num_particles, dim, self._dense_mass)
        flows = flows_on_trial(dense, rank, self._source.has_prior, self._dense_mass)
        measured = start, self._target_accept_prob, self._relative_prox_time
        if any(isinstance(x, jax.core.Tracer) for x in measured):
            # Nothing can be measured before the program is compiled: a dense metric serves most
            # posteriors of few dimensions, the prior's exact flow those of many.
            flows = flows[:1] if dense else flows[-1:]
        corrected = self._correction is not None
        settings = Settings(
            num_warmup=num_warmup,
            num_particles=num_particles,
            num_states=num_states(num_particles) if corrected else 1,
            radius=radius,
            attention=self._attention,
            corrected=corrected,
            dense=dense,
            rank=rank,
            flows=flows,
            inverse_temperature=self._differentiation.inverse_temperature,
            placement=self._placement,
        )
        check_memory(
            num_chains,
            num_particles // self._placement.number,
            dim,
            start.dtype.itemsize,
            attention=settings.attention.name,
            dense=dense,
        )
        return settings

    def _make_source(
        self,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
        refused: frozenset[str],
    ) -> Source:
        if self._model is not None:
            return ModelSource(
                self._model,
                model_args,
                model_kwargs,
                init_strategy=self._init_strategy,
                nonsmooth=self._nonsmooth,
                differentiation=self._differentiation,
                refused=refused,
                registry=self._priors,
            )
        if init_params is None:
            raise ValueError(
                "Valid value of `init_params` must be provided with `potential_fn`: a pytree "
                "of floating-point arrays, with a leading chain axis for several chains."
            )
        assert self._potential_fn is not None
        return PotentialSource(
            self._potential_fn,
            jax.tree.map(lambda x: x[0], init_params),
            nonsmooth=self._nonsmooth,
            differentiation=self._differentiation,
            registry=self._priors,
        )

    def _make_programs(self) -> Programs:
        def prepare(
            rng_keys: jax.Array, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Preparation:
            assert self._source is not None
            return self._source.prepare(rng_keys, init_params, args, kwargs)

        return Programs(prepare, lambda args, kwargs, dtype: self._bind(args, kwargs, dtype).target)

    def _bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any], dtype: Any) -> Bound:
        assert self._source is not None
        return bind(
            self._source,
            model_args,
            model_kwargs,
            proposal=self._proposal,
            placement=self._placement,
            dtype=dtype,
        )

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
        return self._sample_fn(state, model_args, {} if model_kwargs is None else model_kwargs)

    def _sample(
        self, state: RWPOState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> RWPOState:
        settings = self._settings
        assert settings is not None
        target, emit = self._bind(model_args, model_kwargs, state.ensemble.particles.dtype)
        step = partial(iterate, settings=settings, emit=emit)
        if jnp.ndim(state.step_size) == 0:
            return step(state, target)
        if not isinstance(state.move, TreeMove):  # particles of a tree go on at their own pace
            target = pool_chains(target, "chain")
        # `iteration` stays unbatched: what depends on it alone stays a branch for all chains.
        return jax.vmap(
            partial(step, target=target),
            in_axes=(STATE_AXES,),
            out_axes=STATE_AXES,
            axis_name="chain",
        )(state)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map an unconstrained draw to the sites of the user's model."""
        if self._source is None:
            return lambda values: values
        constrain = self._source.postprocess_fn(model_args, model_kwargs or {})

        @one_at_a_time
        def postprocess(values: Any) -> Any:
            if not fits(values, self._layout):
                raise different_model(values)
            return constrain(values)

        return postprocess

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was built from the model; :meth:`init` builds it again."""
        built = dict.fromkeys(["_sample_fn", "_source", "_layout", "_programs"])
        return {**self.__dict__, **built, "_preferred": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the arguments, with programs that are compiled again."""
        self.__dict__.update(state)
        self._programs = self._make_programs()
