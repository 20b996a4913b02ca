r"""An exact Gibbs sampler for linear regression with a sparse group lasso prior and latent scales.

The model is :func:`benchmarks.structured.sparse_group`, with the prior density proportional to
:math:`b^{-d} \exp\{-(\sum_j |\beta_j| + \sum_g |\beta_g|)/(2b)\}` on d coefficients in groups of m.
Either term is a scale mixture of normals (Park and Casella 2008, sec. 2; Kyung, Gill, Ghosh and
Casella 2010, sec. 3.1), so that, given a scale v for each coefficient and w for each group,
coefficients have independent normal priors of precision 1/v_j + 1/w_g. Reciprocals of v and w are
inverse Gaussian given the coefficients. The two scales, with half-normal priors, are drawn by slice
sampling of their logs (Neal 2003, sec. 4).
"""

from collections.abc import Callable

import numpy as np

from benchmarks.posteriors.lasso.gibbs import Array, draw_coefficients, draw_variances


def slice_draw(
    rng: np.random.Generator, x: float, log_density: Callable[[float], float], width: float = 0.5
) -> float:
    """One update that leaves a density on the line invariant, by stepping out and shrinking."""
    level = log_density(x) + np.log(rng.random())
    low = x - width * rng.random()
    high = low + width
    while log_density(low) > level:
        low -= width
    while log_density(high) > level:
        high += width
    while True:
        new = rng.uniform(low, high)
        if log_density(new) > level:
            return float(new)
        low, high = (new, high) if new < x else (low, new)


def sample(
    seed: int, X: Array, y: Array, *, scale_sd: float, noise_sd: float, num_warmup: int, number: int
) -> dict[str, Array]:
    """Run one chain.

    Args:
        seed: Seed of the chain.
        X: Covariates, (rows, groups, m).
        y: Response, (rows,).
        scale_sd: Of the half-normal prior of the scale b.
        noise_sd: Of the half-normal prior of the noise's standard deviation.
        num_warmup: Draws to discard.
        number: Draws to keep.

    Returns:
        Draws of ``effect`` (number, groups, m), ``scale`` and ``noise``, (number,).
    """
    rng = np.random.default_rng(seed)
    num_rows, num_groups, size = X.shape
    flat, y = X.reshape(num_rows, -1).astype(np.float64), np.asarray(y, np.float64)
    scale, noise = 0.5, float(y.std())
    of_each, of_group = np.ones(flat.shape[1]), np.ones(num_groups)
    draws = np.empty((number, flat.shape[1] + 2))
    for i in range(-num_warmup, number):
        variances = 1 / (1 / of_each + np.repeat(1 / of_group, size))
        beta = draw_coefficients(rng, flat / noise, y / noise, variances)
        norms = np.linalg.norm(beta.reshape(num_groups, size), axis=1)
        total, power = (np.abs(beta).sum() + norms.sum()) / 2, beta.size
        square = ((y - flat @ beta) ** 2).sum()

        def of_scale(log: float, total: float = total, power: int = power) -> float:
            b = np.exp(log)
            return float((1 - power) * log - total / b - (b / scale_sd) ** 2 / 2)

        def of_noise(log: float, square: float = square) -> float:
            s = np.exp(log)
            return float((1 - num_rows) * log - square / (2 * s**2) - (s / noise_sd) ** 2 / 2)

        scale = np.exp(slice_draw(rng, np.log(scale), of_scale))
        noise = np.exp(slice_draw(rng, np.log(noise), of_noise))
        # The scale was drawn with these integrated out, so that they have to follow it.
        of_each = draw_variances(rng, beta, 2 * scale)
        of_group = draw_variances(rng, norms, 2 * scale)
        if i >= 0:
            draws[i] = [*beta, scale, noise]
    effect = draws[:, :-2].reshape(number, num_groups, size)
    return {"effect": effect, "scale": draws[:, -2], "noise": draws[:, -1]}
