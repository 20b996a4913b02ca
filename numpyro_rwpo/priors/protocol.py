r"""What the sampler asks of a prior with closed forms.

A prior is a convex potential g, minus the log of its density up to a constant. Most are separable,
:math:`g(x) = \sum_k g_k(x_k)`, and work one coordinate at a time; structured ones tie coordinates
together. Transport needs the proximal map and the kernel of the regularized Wasserstein proximal
operator,

.. math:: K(x, y) = \frac{1}{Z(y)} \exp\Bigl\{-\frac\beta2 \Bigl[g(x) + \frac{(x-y)^2}{2T}\Bigr]
    \Bigr\},

and the exact moves need the motion of a particle in the potential. ``tests/priors`` holds every
prior to the same contract: closed forms against quadrature, brute force and one another.
"""

from typing import Any, Protocol, Self, runtime_checkable

import jax
from jax.typing import ArrayLike


class _CommonPrior(Protocol):
    """What separable and structured priors have in common."""

    @property
    def location(self) -> jax.Array:
        """The kink or, without one, the minimum of the potential, position units, (dim,)."""

    def potential(self, x: ArrayLike, /) -> jax.Array:
        """Minus the log prior density up to a constant, per coordinate."""

    def subgradient(self, x: ArrayLike, /) -> jax.Array:
        """Slope of :meth:`potential`; at a kink the middle of the subdifferential."""

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

    def scaled(self, scale: ArrayLike, /) -> Self:
        """The same prior in the coordinates ``x / scale``, ``scale > 0``."""

    def tempered(self, beta: ArrayLike, /) -> Self:
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


@runtime_checkable
class Prior(_CommonPrior, Protocol):
    r"""A separable convex potential with closed forms; also a pytree of its parameters.

    Methods work elementwise on arrays (..., dim) that broadcast with the parameters, themselves
    (dim,) or broadcastable. They keep the dtype, check nothing, and may be jitted and vmapped; all
    but :meth:`sample` and :meth:`hamiltonian_flow` can be differentiated. ``prox_time`` is
    :math:`T > 0` in position units squared, ``beta`` the inverse temperature; both are scalars or
    (dim,).
    """

    def rise(self, start: ArrayLike, step: ArrayLike, /) -> tuple[jax.Array, jax.Array]:
        """What :meth:`potential` adds between ``start`` and ``start + step``, and the slope there.

        Without the cancellation of a difference, for steps short against the distance to the
        location. A step from the location itself is exact.
        """

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


@runtime_checkable
class StructuredPrior(_CommonPrior, Protocol):
    """A convex potential that ties coordinates together; also a pytree of its parameters.

    Its methods are those of :class:`Prior` without the four that only make sense for one coordinate
    at a time. They take and return arrays (..., dim), too. What belongs to several coordinates
    together (potential, logarithms of densities and normalizers) is shared out among
    them, and only the sum means anything. ``beta`` is the same within such a group. The motion need
    not be exact, only reversible and preserving volume.
    """

    @property
    def separable(self) -> Prior:
        """The part of the potential that is separable; a flat prior if there is none.

        Heads that fit each coordinate for itself use it in the place of the whole.
        """


AnyPrior = Prior | StructuredPrior


def separable_part(prior: AnyPrior) -> Prior:
    """The separable part of a prior, which is the prior itself if it is separable."""
    part: Any = getattr(prior, "separable", prior)
    return part


def is_separable(prior: AnyPrior) -> bool:
    """Whether a prior acts on each coordinate for itself."""
    return separable_part(prior) is prior


def coupling(prior: AnyPrior) -> AnyPrior | None:
    """The prior where :func:`coupling_slope` is not 0, ``None`` for a separable one."""
    return None if is_separable(prior) else prior


def coupling_slope(prior: AnyPrior | None, x: jax.Array) -> jax.Array | float:
    """The slope of the part of a potential that is not separable, in the shape of x."""
    if prior is None:
        return 0.0
    return prior.subgradient(x) - separable_part(prior).subgradient(x)
