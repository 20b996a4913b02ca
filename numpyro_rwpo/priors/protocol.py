r"""What the sampler asks of a prior with closed forms.

A prior is a separable convex potential :math:`g(x) = \sum_k g_k(x_k)`, minus the log of its density
up to a constant. Everything here works one coordinate at a time. Transport needs the proximal map
and the kernel of the regularized Wasserstein proximal operator,

.. math:: K(x, y) = \frac{1}{Z(y)} \exp\Bigl\{-\frac\beta2 \Bigl[g(x) + \frac{(x-y)^2}{2T}\Bigr]
    \Bigr\},

and the exact moves need the motion of a particle in the potential. ``tests/priors`` holds every
prior to the same contract: closed forms against quadrature, brute force and one another.
"""

from typing import Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike


@runtime_checkable
class Prior(Protocol):
    r"""A separable convex potential with closed forms; also a pytree of its parameters.

    Methods work elementwise on arrays (..., dim) that broadcast with the parameters, themselves
    (dim,) or broadcastable. They keep the dtype, check nothing, and may be jitted and vmapped; all
    but :meth:`sample` and :meth:`hamiltonian_flow` can be differentiated. ``prox_time`` is
    :math:`T > 0` in position units squared, ``beta`` the inverse temperature; both are scalars or
    (dim,).
    """

    @property
    def location(self) -> jax.Array:
        """The kink or, without one, the minimum of the potential, position units, (dim,)."""

    def potential(self, x: ArrayLike, /) -> jax.Array:
        """Minus the log prior density up to a constant, per coordinate."""

    def subgradient(self, x: ArrayLike, /) -> jax.Array:
        """Slope of :meth:`potential`; at a kink the middle of the subdifferential."""

    def rise(self, start: ArrayLike, step: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """What :meth:`potential` adds between ``start`` and ``start + step``, and the slope there.

        Without the cancellation of a difference, for steps short against the distance to the
        location. A step from the location itself is exact.
        """

    def smoothed(self, x: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """A function near the potential whose slope is continuous, and this slope.

        The quasi-Newton start descends on it. A smooth potential is its own.
        """

    def prox(self, x: ArrayLike, step_size: ArrayLike, /) -> jax.Array:
        """Proximal map ``argmin_z potential(z) + (z - x)^2 / (2 step_size)``, step size >= 0."""

    def moreau_gradient(self, x: ArrayLike, step_size: ArrayLike, /) -> jax.Array:
        """Gradient of the Moreau envelope, ``(x - prox(x)) / step_size`` without cancellation."""

    def normal_fit(self, mean: ArrayLike, scale: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """Means of the slope and of the second derivative under normal densities, each (..., dim).

        They are value at the mean and slope of the straight line closest to the potential's slope.
        """

    def scaled(self, scale: ArrayLike, /) -> "Prior":
        """The same prior in the coordinates ``x / scale``, ``scale > 0``."""

    def tempered(self, beta: ArrayLike, /) -> "Prior":
        """The prior whose potential is ``beta`` >= 0 times this one; at 0 it is flat."""

    def log_mass(self) -> jax.Array:
        """Log of the integral of ``exp(-potential)``, per coordinate; infinite where it is flat."""

    def log_normalizer(
        self, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """Log of the integral of the kernel's exponential, log Z(y), with every constant."""

    def log_prob(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """Normalized log density log K(x, y); its exponential integrates to 1 over x."""

    def cdf(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """Probability of (-inf, x] under the kernel around y."""

    def log_cdf(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """Log of :meth:`cdf`, accurate in the left tail."""

    def log_survival(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """Log of one minus :meth:`cdf`, accurate in the right tail."""

    def sample(
        self, rng_key: jax.Array, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0, /
    ) -> jax.Array:
        """One exact draw from the kernel around each y."""

    def hamiltonian_flow(
        self, x: ArrayLike, p: ArrayLike, time: ArrayLike, /
    ) -> tuple[jax.Array, jax.Array]:
        """Exact motion of unit masses in the potential, ``H = p^2/2 + potential(x)``.

        Returns:
            Positions and momenta after ``time``; a negative one runs backward.
        """
