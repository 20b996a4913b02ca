"""The exact moves: reversible, volume preserving, and leaving the target invariant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro.distributions import StudentT

from numpyro_rwpo.dynamics import hamiltonian
from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.hamiltonian import (
    Reference,
    Tuning,
    leapfrog_step,
    make_metric,
    start_phase,
    sweep,
)
from numpyro_rwpo.model.target import Differentiation, Proposal
from numpyro_rwpo.priors.laplace import LaplacePrior

DIM = 3
PRECISION = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 1.5]])


def make_target(prior=True, sign=1.0):
    """Gaussian likelihood times asymmetric Laplace priors on the first two coordinates."""
    precision = jnp.asarray(PRECISION)

    def smooth(x, centring):
        return 0.5 * (x - 0.5) @ precision @ (x - 0.5)

    rates = LaplacePrior(
        jnp.array([0.0, 0.3, 0.0]),
        sign * jnp.array([2.0, 1.0, 0.0]),
        sign * jnp.array([2.0, 3.0, 0.0]),
    )
    return Differentiation(1.0, False).target(smooth, rates if prior else None)


FLOWS = ("exact", "free", "harmonic")
MEAN, SCALE = jnp.array([0.3, 0.2, 0.6]), jnp.array([0.6, 1.1, 0.8])


def make_tuning(target, flow, step_size, dense=True):
    """Any reference will do for a Metropolis-corrected proposal; this one is off the target."""
    factor = jnp.asarray([[0.7, 0.0, 0.0], [-0.2, 0.6, 0.0], [0.0, 0.3, 1.0]])
    inverse = jnp.linalg.inv(factor)
    if not dense:
        factor, inverse = SCALE, 1 / SCALE
    reference = Reference(MEAN, factor, inverse)
    if flow == "exact":
        factor = jnp.diag(SCALE) if dense else SCALE
    is_exact, is_harmonic = flow == "exact", flow == "harmonic"
    metric = make_metric(
        factor, SCALE, reference.mean, target, is_exact=is_exact, is_harmonic=is_harmonic
    )
    one = jnp.ones((), int)
    return Tuning(metric, reference, jnp.asarray(step_size), one, one, 0 * one)


def one_step(target, tuning, x, p, step_size):
    ensemble = Ensemble(x, *target.value_and_grad(x))
    start = start_phase(ensemble, p, tuning)
    end = leapfrog_step(start, jnp.full((len(x), 1), step_size), target, tuning)
    return end.ensemble.particles, end.momentum


EVERY_FLOW = pytest.mark.parametrize(
    ("flow", "prior", "dense"),
    [
        *((flow, True, True) for flow in FLOWS),
        ("exact", True, False),
        ("free", False, True),
        ("harmonic", False, True),
        ("harmonic", False, False),
    ],
)


@EVERY_FLOW
def test_step_is_reversible_and_preserves_volume(flow, prior, dense):
    with jax.enable_x64(True):
        target = make_target(prior)
        tuning = make_tuning(target, flow, 0.37, dense)
        x = random.normal(random.key(0), (20, DIM))
        p = random.normal(random.key(1), (20, DIM))
        forward = one_step(target, tuning, x, p, 0.37)
        back = one_step(target, tuning, forward[0], -forward[1], 0.37)
        np.testing.assert_allclose(back[0], x, atol=1e-10)
        np.testing.assert_allclose(-back[1], p, atol=1e-10)

        def flat(z):
            new = one_step(target, tuning, z[None, :DIM], z[None, DIM:], 0.37)
            return jnp.concatenate([new[0][0], new[1][0]])

        jacobians = jax.vmap(jax.jacfwd(flat))(jnp.concatenate([x, p], 1))
        np.testing.assert_allclose(np.linalg.det(jacobians), 1, atol=1e-8)


def exact_draws(key, number):
    """Rejection sampling from the target with its prior, proposals from the Gaussian part."""
    key_normal, key_accept = random.split(key)
    covariance = np.linalg.inv(PRECISION)
    x = random.multivariate_normal(
        key_normal, jnp.full(DIM, 0.5), jnp.asarray(covariance), (number,)
    )
    keep = random.uniform(key_accept, (number,)) < jnp.exp(-make_target().prior_potential(x))
    return x[keep]


def moments(x):
    return np.concatenate([x, x**2, x[:, :1] * x[:, 1:], np.abs(x)], axis=1)


def largest_z(draws, others):
    a, b = moments(np.asarray(draws)), moments(np.asarray(others))
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    return np.abs((a.mean(0) - b.mean(0)) / error).max()


@pytest.mark.parametrize(
    ("flow", "kind"),
    [*((flow, {}) for flow in FLOWS), ("free", {"is_independent": True})]
    + [(flow, {"is_short": True}) for flow in FLOWS]
    + [("free", {"is_independent": True, "proposal": StudentT(5.0, MEAN, SCALE).to_event(1)})],
)
def test_sweeps_leave_the_target_invariant(flow, kind):
    """11 moments of moved exact draws against fresh ones; a false alarm at 4.5 errors: 1e-4."""
    draws, fresh = exact_draws(random.key(0), 400_000), exact_draws(random.key(1), 400_000)
    kind = dict(kind)
    proposal = kind.pop("proposal", None)
    if proposal is not None:
        student = proposal
        proposal = Proposal(lambda key, n: student.sample(key, (n,)), student.log_prob)

    def moved(target):
        target = target._replace(proposal=proposal)
        ensemble = Ensemble(draws, *target.value_and_grad(draws))
        tuning = make_tuning(target, flow, 1.4 if "is_short" in kind else 0.7)
        infos = []
        for k in range(3):
            ensemble, info = sweep(random.key(k + 2), ensemble, target, tuning, **kind)
            infos.append(info)
        return ensemble.particles, infos

    particles, infos = moved(make_target())
    assert 0.3 < infos[0].accept_prob.mean() < 0.999
    assert not infos[0].diverging.any()
    assert largest_z(particles, fresh) < 4.5
    # Negative control: the same moves for another target are noticed.
    assert largest_z(moved(make_target(prior=False))[0], fresh) > 10


@pytest.mark.parametrize("flow", FLOWS)
def test_small_steps_are_accepted(flow):
    """The exact flow keeps second order at the kinks; substeps across them cost an order."""
    draws = exact_draws(random.key(0), 20_000)
    target = make_target()
    ensemble = Ensemble(draws, *target.value_and_grad(draws))

    def rejected(step_size):
        _, info = sweep(random.key(1), ensemble, target, make_tuning(target, flow, step_size))
        return 1 - float(info.accept_prob.mean())

    assert rejected(0.05) < rejected(0.5) / (30 if flow == "exact" else 5)


def test_harmonic_flow_is_exact_on_a_normal_target_that_the_reference_knows():
    with jax.enable_x64(True):
        target = make_target(prior=False)
        factor = jnp.asarray(np.linalg.cholesky(np.linalg.inv(PRECISION)))
        reference = Reference(jnp.full(DIM, 0.5), factor, jnp.linalg.inv(factor))
        metric = make_metric(
            factor, SCALE, reference.mean, target, is_exact=False, is_harmonic=True
        )
        tuning = Tuning(metric, reference, jnp.array(1.5), jnp.array(0), jnp.array(1), jnp.array(0))
        x = random.normal(random.key(0), (200, DIM))
        ensemble = Ensemble(x, *target.value_and_grad(x))
        _, info = sweep(random.key(1), ensemble, target, tuning)
        np.testing.assert_allclose(info.accept_prob, 1, atol=1e-12)
        free = tuning._replace(metric=metric._replace(is_harmonic=jnp.array(False)))
        _, info = sweep(random.key(1), ensemble, target, free)
        assert info.accept_prob.mean() < 0.9


def test_substeps_spare_most_of_the_rejections_at_the_kinks():
    """A steep prior in a dense metric: without substeps the error per step is that of one kick."""
    draws = exact_draws(random.key(0), 20_000)
    target = make_target()
    ensemble = Ensemble(draws, *target.value_and_grad(draws))

    def rejected(flow):
        _, info = sweep(random.key(1), ensemble, target, make_tuning(target, flow, 0.7))
        return 1 - float(info.accept_prob.mean())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamiltonian, "NUM_SUBSTEPS", 1)
        kicked = rejected("free")
    assert rejected("free") < 0.8 * kicked


def test_non_finite_potentials_are_rejected_and_flagged():
    def smooth(x, centring):
        return jnp.where(x[0] > 0.5, jnp.nan, 0.5 * x @ x)

    target = Differentiation(1.0, False).target(smooth, None)
    x = jnp.zeros((200, DIM))
    ensemble = Ensemble(x, *target.value_and_grad(x))
    for is_independent in (False, True):
        moved, info = sweep(
            random.key(0), ensemble, target, make_tuning(target, "free", 0.8), is_independent
        )
        assert np.all(np.isfinite(moved.particles)) and np.all(moved.particles[:, 0] <= 0.5)
        assert (info.accept_prob == 0).any()
        assert np.all(info.accept_prob[info.diverging] == 0)
        # A proposal that lands on bad ground says nothing about the integrator.
        assert info.diverging.any() != is_independent
