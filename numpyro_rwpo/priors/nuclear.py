r"""The nuclear norm, the sum of the singular values of a matrix: value, derivatives, proximal map.

With the singular value decomposition :math:`X = U \operatorname{diag}(s) V^\top`, the norm is
:math:`\sum_i s_i`, its subgradient of least norm is the sum of :math:`u_i v_i^\top` over
:math:`s_i > 0`, and its proximal map lowers every singular value by the step, at most to 0 (Cai,
Candes and Shen 2010, SIAM J. Optim. 20, theorem 2.1).

Derivatives of the decomposition itself contain one over :math:`s_i^2 - s_j^2`, which is infinite if
two singular values coincide. Those of the norm do not: the first is the sum above, and the second
has :math:`s_i + s_j` in the denominator.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _decompose(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """U, s and V transposed, and which singular values are not 0 up to rounding."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    # The usual threshold of a numerical rank, as in NumPy's matrix_rank.
    smallest = s[..., :1] * (max(x.shape[-2:]) * jnp.finfo(x.dtype).eps)
    return u, s, vt, s > smallest


@jax.custom_jvp
def polar_factor(x: jax.Array) -> jax.Array:
    """The subgradient of the nuclear norm that has the least norm; 0 at the zero matrix.

    Args:
        x: Matrices, (..., rows, columns).

    Returns:
        The sum of ``u_i v_i^T`` over the singular values that are not 0, in the shape of x.
    """
    u, _, vt, is_positive = _decompose(x)
    return (u * is_positive[..., None, :]) @ vt


@polar_factor.defjvp
def _polar_factor_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Its derivative within the matrices of the same rank, which exists everywhere."""
    (x,), (dx,) = primals, tangents
    u, s, vt, is_positive = _decompose(x)
    u, vt = u * is_positive[..., None, :], vt * is_positive[..., :, None]
    s = jnp.where(is_positive, s, 0.0)
    ut, v = jnp.swapaxes(u, -1, -2), jnp.swapaxes(vt, -1, -2)
    inner = ut @ dx @ v
    total = s[..., :, None] + s[..., None, :]
    is_block = is_positive[..., :, None] & is_positive[..., None, :]
    turn = (inner - jnp.swapaxes(inner, -1, -2)) / jnp.where(is_block, total, 1.0)
    inverse = jnp.where(is_positive, 1 / jnp.where(is_positive, s, 1.0), 0.0)
    # What leaves the space of the columns, and that of the rows.
    column = dx @ v - u @ inner
    row = ut @ dx - inner @ vt
    tangent = u @ turn @ vt + (column * inverse[..., None, :]) @ vt
    return (u @ vt), tangent + u @ (inverse[..., :, None] * row)


@jax.custom_jvp
def nuclear_norm(x: jax.Array) -> jax.Array:
    """Sum of the singular values; its gradient is :func:`polar_factor`, everywhere finite.

    Args:
        x: Matrices, (..., rows, columns).

    Returns:
        The norms, (...), in the units of x.
    """
    return jnp.linalg.svd(x, compute_uv=False).sum(-1)


@nuclear_norm.defjvp
def _nuclear_norm_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Value and derivative from one decomposition: the inner product of x and its polar factor."""
    (x,), (dx,) = primals, tangents
    factor = polar_factor(x)
    return (factor * x).sum((-2, -1)), (factor * dx).sum((-2, -1))


def nuclear_norm_prox(x: jax.Array, step_size: ArrayLike) -> jax.Array:
    """Proximal map ``argmin_z |z|_* + |z - x|^2 / (2 step_size)``, a soft threshold.

    Args:
        x: Matrices, (..., rows, columns).
        step_size: Step >= 0, in the units of x, a number or one for each matrix, (...).

    Returns:
        The minimizers, in the shape of x.
    """
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    step = jnp.asarray(step_size, x.dtype)
    shrunk = jnp.maximum(s - jnp.broadcast_to(step, x.shape[:-2])[..., None], 0.0)
    return (u * shrunk[..., None, :]) @ vt
