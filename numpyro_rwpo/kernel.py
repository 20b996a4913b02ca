"""``RWPO``, the NumPyro kernel: argument checks, and which phase comes when.

One NumPyro chain is one independent ensemble of particles; draw t is particle t. A chain's life:

1. start: a quasi-Newton descent places the particles (:mod:`numpyro_rwpo.dynamics.pathfinder`);
2. transport: the noise-free flow moves them (:mod:`numpyro_rwpo.dynamics.transport`);
3. correction: exact moves (:mod:`numpyro_rwpo.dynamics.hamiltonian`), adapted during the rest of
   warm-up (:mod:`numpyro_rwpo.dynamics.adaptation`), then frozen. The whole ensemble is refreshed
   before its first particle is emitted, and again whenever its last one has been.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax, random
from jax.sharding import Mesh
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_rwpo.dynamics.adaptation import (
    Adaptation,
    SweepPair,
    learn_moments,
    learn_sweeps,
    replace_hopeless,
    tuning,
    whose_turn,
)
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.hamiltonian import Refresh, refresh_ensemble
from numpyro_rwpo.dynamics.pathfinder import num_start_evaluations, start_ensemble
from numpyro_rwpo.dynamics.settings import (
    Settings,
    default_num_particles,
    make_candidates,
    num_transport_iterations,
)
from numpyro_rwpo.dynamics.state import (
    STATE_AXES,
    RWPOState,
    initial_states,
    placed_state,
    placed_states,
    split_keys,
)
from numpyro_rwpo.dynamics.transport import Flow, is_at_rest, transport_step
from numpyro_rwpo.heads.registry import Fit, find_head
from numpyro_rwpo.model.checks import explained
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.potential_source import PotentialSource
from numpyro_rwpo.model.preparation import CompiledOnce, Preparation, check_preparation
from numpyro_rwpo.model.prior_registry import PriorRegistry, entry_names, registry_with
from numpyro_rwpo.model.proposal import (
    change_coordinates,
    check_proposal,
    check_proposal_dim,
    fingerprint,
)
from numpyro_rwpo.model.source import Source, layout, start_radius
from numpyro_rwpo.model.target import Differentiation, Target, has_loop, pool_chains
from numpyro_rwpo.support.checks import (
    check_choice,
    check_init_strategy,
    check_num_particles,
    check_range,
    check_rng_key,
    check_site_names,
    check_target,
)
from numpyro_rwpo.support.control_flow import run_if
from numpyro_rwpo.support.memory import check_memory
from numpyro_rwpo.support.precision import in_full_precision
from numpyro_rwpo.support.sharding import check_mesh, check_use
from numpyro_rwpo.support.threads import one_at_a_time

_START_ID = 2**31 - 1  # of the start's random numbers; those of refreshes count from 0


class Chain(NamedTuple):
    """The part of a chain's state that its phases change; see :class:`RWPOState`."""

    ensemble: Ensemble
    centring: jax.Array
    flow: Flow
    adaptation: Adaptation
    refresh: Refresh


def iterate(
    state: RWPOState, target: Target, settings: Settings, emit: Callable[..., Any]
) -> RWPOState:
    """One NumPyro iteration of one ensemble: advance its phase, then emit the next particle."""
    num_particles = state.ensemble.particles.shape[0]
    warmup_passes = math.ceil(settings.num_warmup / num_particles)
    index = lax.rem(state.iteration + warmup_passes * num_particles, num_particles)
    is_warmup = state.iteration < 0
    elapsed = state.iteration + settings.num_warmup
    update = elapsed - settings.num_transport  # of the adaptation

    # These are the same for all chains, so they stay branches where chains are vectorized.
    is_start = elapsed == 0
    is_flow_phase = is_warmup & ~is_start & (update < 0)
    is_adaptation_phase = is_warmup & (update >= 0) & settings.corrected
    is_refresh = ~is_warmup & (index == 0) & settings.corrected

    def place(carry: Chain) -> Chain:
        """Start or transport."""
        ensemble, centring, flow = carry.ensemble, carry.centring, carry.flow
        particles, centring = lax.cond(
            is_start & is_warmup,
            lambda x, c: start_ensemble(random.fold_in(state.rng_key, _START_ID), x, target),
            lambda x, c: (x, c),
            ensemble.particles,
            centring,
        )
        placed = target._replace(centring=centring)
        ensemble, flow = lax.cond(
            is_flow_phase,
            lambda e, f: transport_step(
                e,
                f,
                carry.adaptation.preconditioner,
                placed,
                attention=settings.attention,
                relative_time=settings.relative_prox_time,
            ),
            lambda e, f: (e, f),
            ensemble._replace(particles=particles),
            flow,
        )
        # A particle whose new position overflowed stays where it was.
        moved, old = ensemble.particles, carry.ensemble.particles
        moved = jnp.where(jnp.isfinite(moved).all(1, keepdims=True), moved, old)
        ensemble = evaluate(moved, placed)
        return carry._replace(ensemble=ensemble, centring=centring, flow=flow)

    def correct(carry: Chain) -> Chain:
        """Refresh and, in warm-up, learn from it."""
        before, adaptation = carry.ensemble, carry.adaptation
        placed = target._replace(centring=carry.centring)
        turn = whose_turn(adaptation, update, settings.candidates)
        tuned = tuning(adaptation, turn, placed, settings.candidates, is_warmup)
        after, between, refresh = refresh_ensemble(state.rng_key, elapsed, before, placed, tuned)

        def learn(after: Ensemble, adaptation: Adaptation) -> tuple[Ensemble, Adaptation]:
            pair = SweepPair(before, between, after, refresh)
            learnt = learn_sweeps(
                adaptation,
                update,
                turn,
                pair,
                placed,
                settings.candidates,
                settings.target_accept_prob,
            )
            return replace_hopeless(update, after, refresh, placed), learnt

        after, adaptation = lax.cond(is_warmup, learn, lambda *same: same, after, adaptation)
        return carry._replace(ensemble=after, adaptation=adaptation, refresh=refresh)

    def advance(carry: Chain) -> Chain:
        adaptation = lax.cond(
            is_flow_phase | is_adaptation_phase,
            lambda a: learn_moments(
                a,
                update,
                carry.ensemble,
                target._replace(centring=carry.centring),
                settings.candidates,
            ),
            lambda a: a,
            carry.adaptation,
        )
        carry = carry._replace(adaptation=adaptation)
        carry = lax.cond(is_start | is_flow_phase, place, lambda c: c, carry)
        return lax.cond(is_adaptation_phase | is_refresh, correct, lambda c: c, carry)

    is_flowing = is_flow_phase & ~is_at_rest(state.flow, settings.corrected)
    is_adapting = is_adaptation_phase & ~state.adaptation.sweeps.is_settled
    active = is_start | is_flowing | is_adapting | is_refresh
    chain = Chain(state.ensemble, state.centring, state.flow, state.adaptation, state.refresh)
    chain = run_if(active, advance, chain)

    is_sweep = is_adapting | is_refresh
    spent = (
        jnp.where(is_start & is_warmup, num_start_evaluations(num_particles, target), 0)
        + num_particles * (is_start | is_flowing)
        + num_particles * chain.refresh.num_steps * is_sweep
    )
    row = target.placement.row
    emitted = jax.tree.map(lambda x: row(x, index), chain.ensemble)
    z, log_jacobian = emit(emitted.particles, chain.centring)
    whole = potential(emitted, target._replace(centring=chain.centring))
    log_step_size = chain.adaptation.log_step_mean[chain.adaptation.chosen]
    state = state._replace(
        iteration=state.iteration + 1,
        z=z,
        diverging=row(chain.refresh.diverging, index),
        potential_energy=whole / settings.inverse_temperature - log_jacobian,
        accept_prob=row(chain.refresh.accept_prob, index),
        num_steps=jnp.where(is_warmup, spent, chain.refresh.num_steps),
        num_gradients=state.num_gradients + spent,
        step_size=jnp.exp(log_step_size),
        **chain._asdict(),
    )
    return placed_state(state, target.placement)


def different_model(values: Any) -> ValueError:
    """The error where a state is of another model."""
    return ValueError(
        "The state from which to go on must be of the same model: its latent sites have "
        f"the shapes {jax.tree.map(jnp.shape, values)}; the model's do not. Use the saved "
        "run's model and data, or start anew (`mcmc.post_warmup_state = None`)."
    )


def fits(values: Any, expected: Any) -> bool:
    """Whether values have a layout's structure and shapes, with whatever leading axes."""
    structure, leaves = layout(values)
    pairs = zip(leaves, expected[1], strict=False)
    return structure == expected[0] and all(
        a[max(len(a) - len(b), 0) :] == b[max(len(b) - len(a), 0) :] for (a, _), (b, _) in pairs
    )


def sample(
    state: RWPOState,
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    *,
    source: Source,
    settings: Settings,
    proposal: dist.Distribution | None,
    is_batch: bool,
) -> RWPOState:
    """One NumPyro iteration of one ensemble or, with a leading chain axis, of several."""
    target = source.bind(model_args, model_kwargs)._replace(placement=settings.placement)
    emit = partial(source.emit, model_args=model_args, model_kwargs=model_kwargs)
    if proposal is not None:
        ravel = partial(source.ravel, model_args=model_args, model_kwargs=model_kwargs)
        values = partial(emit, centring=target.centring)
        dtype = state.ensemble.particles.dtype
        target = target._replace(proposal=change_coordinates(proposal, dtype, ravel, values))
    step = partial(iterate, settings=settings, emit=emit)
    if not is_batch:
        return step(state, target)
    # `iteration` stays unbatched: what depends on it alone stays a real branch for all chains.
    return jax.vmap(
        partial(step, target=pool_chains(target, "chain")),
        in_axes=(STATE_AXES,),
        out_axes=STATE_AXES,
        axis_name="chain",
    )(state)


class RWPO(MCMCKernel):
    """Regularized Wasserstein proximal sampler: a drop-in for NUTS, made for Laplace priors.

    Particles are moved onto the posterior by a noise-free flow of gradients and attention among
    themselves, then corrected by Metropolis-adjusted split Hamiltonian Monte Carlo that follows
    Laplace priors exactly. One chain is one independent ensemble; draw t is particle t, and the
    ensemble is refreshed whenever all its particles have been drawn.

    Args:
        model: NumPyro model. Its Laplace and AsymmetricLaplace sites are found and split off.
        potential_fn: instead of a model: minus the log density of any pytree, up to a constant;
            ``MCMC.run`` then needs ``init_params``.
        num_particles: particles of an ensemble, at least 4; ``None`` picks a number from the
            dimension (64 to 256; half, at most 64, where the gradient runs through a loop).
        attention: ``"copula"``, ``"marginal"`` or ``"joint"``: how transport fits the density of
            the particles. ``"joint"`` is the paper's and serves few dimensions with several modes.
            Or a function ``fit(particles, prior, prox_time)`` that returns such a density, see
            :class:`numpyro_rwpo.heads.density.ProximalDensity`.
        relative_prox_time: bandwidth of the attention, in units of each coordinate's variance.
        inverse_temperature: samples from the posterior to this power.
        correction: ``"metropolis"`` for exact draws; ``None`` for the noise-free particles as
            transport leaves them. These are biased, do not change after warm-up and repeat once
            all have been emitted.
        nonsmooth: ``"auto"`` splits every Laplace site; ``None`` none; or a list of site names.
            With ``potential_fn``, a pytree like ``init_params`` of ``Laplace`` or
            ``AsymmetricLaplace`` distributions or ``None``, saying which part of the potential
            (which stays the whole one) is a Laplace prior.
        priors: further kinds of distributions with closed forms, a mapping from classes of NumPyro
            distributions to functions that make a prior of one, see
            :class:`numpyro_rwpo.priors.protocol.Prior`. Their sites are split off, too, where their
            parameters are fixed.
        dense_mass: ``"auto"`` lets warm-up choose by measurement between a dense metric (with fewer
            than two particles a dimension one that is diagonal but for a few directions) and a
            diagonal one with the exact flow of the prior; ``True`` (up to four dimensions a
            particle) or ``False`` decides.
        target_accept_prob: acceptance probability at which the step size aims.
        init_strategy: NumPyro's per-site initialisation strategy.
        proposal: a distribution of flat unconstrained parameters near the posterior, such as a
            trained guide's ``guide.get_posterior(params)``. The particles start as its draws
            (``init_params`` then only shapes the argument of ``potential_fn``) and, if corrected,
            are not transported, but jump to draws of it where that forgets cheaply. The posterior
            stays exact. The proposal must cover it: a mode that it misses is not found.
        forward_mode_differentiation: differentiate in forward mode.
        mesh: devices that share the particles of every chain; ``None`` runs where the data are.
            Chains must be one or ``"vectorized"``.
        particle_axis: axis of ``mesh`` over which the particles are shared out; may be left out
            where the mesh has one axis only. Data may be sharded over its other axes.

    Raises:
        ValueError: both or neither of ``model`` and ``potential_fn``, or an argument out of range.

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
        self._program: CompiledOnce[Preparation] | None = None
        self._layout: Any = None  # structure, shapes and types of the draws

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that are numbers or words: what a resumed run must share."""
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
        """What the user said about Laplace priors."""
        return self._nonsmooth

    @property
    def priors(self) -> PriorRegistry:
        """The kinds of distributions with closed forms: the built-in ones and the user's."""
        return self._priors

    @property
    def settings(self) -> Settings | None:
        """What the last :meth:`init` resolved, also after pickling; ``None`` before the first."""
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
        """What the progress bar says of one chain: the phase, and how it is going."""
        iteration, settings = int(state.iteration), self._settings
        done = iteration + (settings.num_warmup if settings is not None else 0)
        num_transport = settings.num_transport if settings is not None else 0
        if iteration <= 0 and done <= max(num_transport, 1):
            phase = "start" if done <= 1 else "transport"
            return f"{phase}: {int(state.num_steps)} gradients, residual {state.flow.residual:.2e}"
        phase = "adaptation" if iteration <= 0 else "sampling"
        return (
            f"{phase}: {int(state.num_steps)} gradients, step size {state.step_size:.2e}, "
            f"acc. prob {state.refresh.accept_prob.mean():.2f}"
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
        """Make the initial state: one ensemble per key.

        Raises:
            ValueError: ``init_params`` missing or of the wrong shape, or given beside a proposal
                and a model; a proposal of another dimension; a model that cannot be
                sampled (discrete, Delta or no latent sites); particles that ``mesh`` cannot share
                out; a dense metric of far more dimensions than particles.
            RuntimeError: no valid starting position.
            MemoryError: an ensemble larger than the device's memory.
        """
        check_rng_key(rng_key)
        if self._proposal is not None and self._model is not None and init_params is not None:
            raise ValueError(
                "Particles start as draws of `proposal`, so that `init_params` would have no "
                "effect; got both. Leave one out."
            )
        model_kwargs = {} if model_kwargs is None else model_kwargs
        is_batch = not is_prng_key(rng_key)
        rng_key, key_source = split_keys(rng_key, is_batch=is_batch)

        batch = jax.tree.map(lambda x: x if is_batch else jnp.asarray(x)[None], init_params)
        keys = key_source if is_batch else key_source[None]
        refused: frozenset[str] = frozenset()
        while True:
            self._source = source = self._make_source(
                is_batch, init_params, model_args, model_kwargs, refused
            )
            with explained(self._model, model_args, model_kwargs):
                prepared = self._prepare(source.layout, (keys, batch), model_args, model_kwargs)
            wrong = source.wrong_sites(prepared, model_args, model_kwargs)
            if not wrong:
                break
            refused |= wrong  # and prepare once more without these sites split off
        check_preparation(prepared, self._model, init_params, model_args, model_kwargs)
        start, z = prepared.start, prepared.values
        if not is_batch:
            start, z = jax.tree.map(lambda x: x[0], (start, z))
        dim = start.shape[-1]
        if self._proposal is not None:
            check_proposal_dim(self._proposal, dim)
        num_particles = self._num_particles
        if num_particles is None:
            bind = partial(source.bind, model_args, model_kwargs)
            num_particles = default_num_particles(dim, has_loop(bind, dim, start.dtype))
        check_use(num_particles, self._placement)
        num_transport = num_transport_iterations(num_warmup, self._correction is not None)
        if self._proposal is not None and self._correction is not None:
            # Attention of one mode would carry particles out of several.
            num_transport = min(num_transport, 1)
        settings = Settings(
            num_warmup=num_warmup,
            num_transport=num_transport,
            attention=self._attention,
            relative_prox_time=self._relative_prox_time,
            corrected=self._correction is not None,
            candidates=make_candidates(num_particles, dim, source.has_prior, self._dense_mass),
            target_accept_prob=self._target_accept_prob,
            inverse_temperature=self._differentiation.inverse_temperature,
            placement=self._placement,
        )
        check_memory(
            start.size // dim,
            num_particles // self._placement.number,
            dim,
            start.dtype.itemsize,
            attention=settings.attention.name,
            dense=settings.candidates.dense,
        )
        radius = start_radius(self._init_strategy, init_params)
        state = initial_states(rng_key, start, num_particles, radius, settings, is_batch=is_batch)
        self._settings = settings
        self._sample_fn = partial(
            sample,
            source=source,
            settings=settings,
            proposal=self._proposal,
            is_batch=is_batch,
        )
        self._layout = layout(z)
        state = state._replace(z=z)
        if settings.placement.mesh is None:
            return state
        # As `sample` returns it, so that the first step is compiled for all of them.
        return placed_states(state, settings.placement, is_batch=is_batch)

    def _make_source(
        self,
        is_batch: bool,
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
            jax.tree.map(lambda x: x[0], init_params) if is_batch else init_params,
            nonsmooth=self._nonsmooth,
            differentiation=self._differentiation,
            registry=self._priors,
        )

    @property
    def _prepare(self) -> CompiledOnce[Preparation]:
        """The source's preparation, as a program that is traced when `init` has made a source."""
        if self._program is None:

            def prepare(inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Preparation:
                assert self._source is not None
                rng_keys, init_params = inputs
                return self._source.prepare(rng_keys, init_params, args, kwargs)

            self._program = CompiledOnce(prepare)
        return self._program

    @one_at_a_time
    @in_full_precision
    def sample(
        self, state: RWPOState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> RWPOState:
        """One iteration: advance the ensemble's phase and emit the next particle."""
        if self._sample_fn is None:
            raise RuntimeError("`init` must be called before `sample`.")
        if layout(state.z) != self._layout:
            raise different_model(state.z)
        return self._sample_fn(state, model_args, {} if model_kwargs is None else model_kwargs)

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
        """Drop what was built from the model: init builds it again."""
        return {
            **self.__dict__,
            "_sample_fn": None,
            "_source": None,
            "_program": None,
            "_layout": None,
        }
