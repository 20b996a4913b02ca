"""``AutoSparseTransformer``: the sparse transformer as a guide for NumPyro's ``SVI``."""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import init_to_uniform
from numpyro.infer.autoguide import AutoContinuous

from numpyro_rwpo.flow.arguments import check_count, check_layer_choice
from numpyro_rwpo.flow.pathwise import pathwise_sample
from numpyro_rwpo.flow.sparse_transformer import LEARNABLE, SparseTransformerFlow
from numpyro_rwpo.heads.density import ProximalDensity
from numpyro_rwpo.model.laplace_sites import split_laplace_sites
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.support.checks import check_init_strategy, check_range


class ProximalDistribution(dist.Distribution):
    """A density of particles as a NumPyro distribution.

    Args:
        density: A density fitted by an attention head, on R^dim.
        dim: Its dimension.
    """

    support = constraints.real_vector
    pytree_data_fields = ("density",)

    def __init__(self, density: ProximalDensity, dim: int) -> None:
        self.density = density
        super().__init__(batch_shape=(), event_shape=(dim,))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent draws, ``sample_shape + (dim,)``, pathwise differentiable."""
        draws = pathwise_sample(key, self.density, int(np.prod(sample_shape, dtype=int)))
        return draws.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density at (..., dim), (...)."""
        return self.density.log_prob(value.reshape(-1, *self.event_shape)).reshape(value.shape[:-1])


class AutoSparseTransformer(AutoContinuous):
    """Guide whose posterior is the density of a :class:`SparseTransformerFlow`.

    Laplace and AsymmetricLaplace sites with known location and scale determine the rates and kinks
    of the L1 prior of the layers (for an asymmetric site, the rate is the mean of its two rates);
    every other coordinate has rate 0.

    Use it with ``Trace_ELBO(num_particles=...)`` and 32 samples or more: keys are moved and the
    density is fitted only once per step, whatever the number. Let the learning rate decay to 0, for
    example with ``numpyro.optim.Adam(optax.cosine_decay_schedule(0.01, num_steps))``, because
    gradients of the ELBO stay noisy to the end, and with steps of constant size the mean of the
    posterior keeps fluctuating.

    Args:
        model: NumPyro model.
        num_layers: Number of layers of the flow.
        width: Units of the hidden layers of the network.
        attention: ``"copula"`` for posteriors with one mode, ``"joint"`` for a few dimensions with
            several modes, ``"marginal"`` for very many nearly independent coordinates.
        num_particles: Number of points of the base ensemble.
        init_scale: Initial standard deviation of the base distribution, in unconstrained units.
        learn: What is trained besides the network, as for the flow.
        prefix: Prefix of the names of the guide's own sites.
        init_loc_fn: NumPyro's per-site initialization, which is the center of the base
            distribution.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range or unknown.

    Example:
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro_rwpo.flow import AutoSparseTransformer
        >>> def model():
        ...     numpyro.sample("x", dist.Laplace(0.0, 1.0).expand([3]).to_event(1))
        >>> guide = AutoSparseTransformer(model, num_layers=2, width=8, num_particles=64)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=32))
        >>> result = svi.run(jax.random.key(0), 3, progress_bar=False)
        >>> draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(100,))
        >>> draws["x"].shape
        (100, 3)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_layers: int = 4,
        width: int = 32,
        *,
        attention: str = "copula",
        num_particles: int = 256,
        init_scale: float = 0.1,
        learn: tuple[str, ...] = ("rate", "prox_time", "base"),
        prefix: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_uniform,
    ) -> None:
        counts = {"num_layers": num_layers, "width": width, "num_particles": num_particles}
        for name, value in counts.items():
            check_count(name, value)
        check_layer_choice(attention, learn, LEARNABLE)
        check_range("init_scale", init_scale, 0.0, np.inf)
        check_init_strategy(init_loc_fn)
        self._sizes: dict[str, Any] = counts | {"attention": attention, "learn": tuple(learn)}
        self._init_scale = init_scale
        self._flow: SparseTransformerFlow | None = None
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        with handlers.block():  # SVI is tracing the guide
            split = split_laplace_sites(self.model, args, kwargs)
            # Sites with a latent scale stay in the user's parameterization.
            priors = split.without(split.rewritten).site_priors(args, kwargs)
            sites = cast(dict[str, LaplacePrior], priors)  # the only built-in kind

        def flat(field: Callable[[LaplacePrior], jax.Array]) -> jax.Array:
            """One field of all sites in the order of the latent vector, 0 where it is not known."""
            values = [
                field(sites[name]).ravel() if name in sites else jnp.zeros(jnp.size(value))
                for name, value in self._init_locs.items()
            ]
            return jnp.concatenate(values)

        self._flow = SparseTransformerFlow(
            self.latent_dim,
            **self._sizes,
            rate=flat(lambda site: 0.5 * (site.rate_left + site.rate_right)),
            center=flat(lambda site: site.location),
            location=self._init_latent,
            scale=self._init_scale,
            rng_key=numpyro.prng_key(),
        )

    def flow(self, params: dict[str, Any]) -> SparseTransformerFlow:
        """The flow with the trained parameters in ``svi.run(...).params``.

        Raises:
            RuntimeError: If the guide has not been run yet.
        """
        if self._flow is None:
            raise RuntimeError("The guide must have been run, e.g. by `svi.run`, before this.")
        _, static = eqx.partition(self._flow, eqx.is_inexact_array)
        return eqx.combine(params[f"{self.prefix}_flow$params"], static)

    def _get_posterior(self) -> ProximalDistribution:
        weights, static = eqx.partition(self._flow, eqx.is_inexact_array)
        weights = numpyro.param(f"{self.prefix}_flow$params", lambda _: weights)
        flow = eqx.combine(weights, static)
        return ProximalDistribution(flow.density(), flow.dim)

    def get_posterior(self, params: dict[str, Any]) -> ProximalDistribution:
        """The approximate posterior in flat unconstrained space, as a distribution.

        Args:
            params: Trained parameters.

        Raises:
            RuntimeError: If the guide has not been run yet.
        """
        flow = self.flow(params)
        return ProximalDistribution(flow.density(), flow.dim)

    def init_params(self, rng_key: jax.Array, params: dict[str, Any], num_chains: int) -> Any:
        """Draws in unconstrained space as initial values for ``MCMC.run`` with any kernel.

        Args:
            rng_key: A random key.
            params: Trained parameters.
            num_chains: Number of draws; for a single chain there is no leading axis.

        Returns:
            Values by site, (num_chains, ...), for the argument ``init_params``.

        Raises:
            TypeError: If ``num_chains`` is not an integer.
            ValueError: If it is not positive.
            RuntimeError: If the guide has not been run yet.
        """
        check_count("num_chains", num_chains)
        draws = self.get_posterior(params).sample(rng_key, (num_chains,))
        values = jax.vmap(self._unpack_latent)(draws)
        return values if num_chains > 1 else jax.tree.map(lambda x: x[0], values)
