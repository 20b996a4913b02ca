"""The exact moves: reversible, volume preserving, and leaving the target invariant."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro.distributions import StudentT

from numpyro_rwpo.dynamics import flows
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.factors import LowRank
from numpyro_rwpo.dynamics.flows import ExactFlow, Flow, HarmonicFlow, leapfrog
from numpyro_rwpo.dynamics.moves import (
    STEP_JITTER,
    TRAJECTORY_LENGTH,
    HamiltonianMove,
    Sweep,
    hamiltonian_sweep,
    num_leapfrog_steps,
    proposal_sweep,
)
from numpyro_rwpo.model.target import Differentiation, Proposal, Target
from numpyro_rwpo.priors.laplace import LaplacePrior

DIM = 3
PRECISION = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 1.5]])
# Any reference will do for a Metropolis-corrected proposal; this one is off the target.
MEAN, SCALE = np.array([0.3, 0.2, 0.6]), np.array([0.6, 1.1, 0.8])
FACTOR = np.array([[0.7, 0.0, 0.0], [-0.2, 0.6, 0.0], [0.0, 0.3, 1.0]])
DIRECTIONS = np.linalg.qr(FACTOR[:, :2])[0]
CORE = np.array([[1.4, 0.2], [-0.3, 0.8]])
FLOWS = ("exact", "diagonal", "dense", "low rank")


def make_target(prior: bool = True) -> Target:
    """Gaussian likelihood times asymmetric Laplace priors on the first two coordinates."""
    precision = jnp.asarray(PRECISION)

    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        return 0.5 * (x - 0.5) @ precision @ (x - 0.5)

    rates = LaplacePrior(
        jnp.array([0.0, 0.3, 0.0]), jnp.array([2.0, 1.0, 0.0]), jnp.array([2.0, 3.0, 0.0])
    )
    return Differentiation(1.0, False).target(smooth, rates if prior else None)


def make_flow(target: Target, form: str) -> Flow:
    """The exact flow, or the harmonic one with a factor of that form."""
    mean, scale = jnp.asarray(MEAN), jnp.asarray(SCALE)
    if form == "exact":
        return ExactFlow(scale)
    factor, inverse = {
        "diagonal": (SCALE, 1 / SCALE),
        "dense": (FACTOR, np.linalg.inv(FACTOR)),
        "low rank": (
            LowRank(SCALE, DIRECTIONS, CORE),
            LowRank(1 / SCALE, DIRECTIONS, np.linalg.inv(CORE)),
        ),
    }[form]
    factor, inverse = jax.tree.map(jnp.asarray, (factor, inverse))
    slope, curvature = jnp.zeros(DIM), jnp.zeros(DIM)
    if target.prior is not None:
        slope, curvature = target.prior.normal_fit(mean, scale)
    return HarmonicFlow(mean, factor, inverse, slope, curvature)


def one_step(
    target: Target, flow: Flow, x: jax.Array, p: jax.Array, step_size: float
) -> tuple[jax.Array, jax.Array]:
    start = flow.phase(Ensemble(x, *target.value_and_grad(x)), p)
    end = leapfrog(flow, start, jnp.full((len(x), 1), step_size), target)
    return end.ensemble.particles, end.momentum


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("form", FLOWS)
def test_step_is_reversible_and_preserves_volume(x64: None, form: str, prior: bool) -> None:
    target = make_target(prior)
    flow = make_flow(target, form)
    x = random.normal(random.key(0), (20, DIM))
    p = random.normal(random.key(1), (20, DIM))
    forward = one_step(target, flow, x, p, 0.37)
    assert np.abs(forward[0] - x).max() > 0.3
    back = one_step(target, flow, forward[0], -forward[1], 0.37)
    np.testing.assert_allclose(back[0], x, atol=1e-10)
    np.testing.assert_allclose(-back[1], p, atol=1e-10)

    def flat(z: jax.Array) -> jax.Array:
        new = one_step(target, flow, z[None, :DIM], z[None, DIM:], 0.37)
        return jnp.concatenate([new[0][0], new[1][0]])

    jacobians = jax.vmap(jax.jacfwd(flat))(jnp.concatenate([x, p], 1))
    np.testing.assert_allclose(np.linalg.det(jacobians), 1, atol=1e-8)


def energy(target: Target, x: jax.Array, p: jax.Array) -> jax.Array:
    return potential(evaluate(x, target), target) + (p**2).sum(1) / 2


@pytest.mark.parametrize("form", FLOWS)
def test_energy_error_is_of_second_order(x64: None, form: str) -> None:
    """Over a fixed time, away from kinks: half the step, a quarter of the error."""
    target = make_target(prior=False)
    flow = make_flow(target, form)
    x = random.normal(random.key(0), (200, DIM))
    p = random.normal(random.key(1), (200, DIM))

    def error(num_steps: int) -> float:
        position, momentum = x, p
        for _ in range(num_steps):
            position, momentum = one_step(target, flow, position, momentum, 0.8 / num_steps)
        change = energy(target, position, momentum) - energy(target, x, p)
        return float(jnp.sqrt((change**2).mean()))

    orders = [math.log2(error(n) / error(2 * n)) for n in (4, 8, 16)]
    np.testing.assert_allclose(orders, 2.0, atol=0.15)


def test_the_priors_own_flow_has_no_energy_error(x64: None) -> None:
    """On the prior alone, kinks and all, however long the step."""
    rate = jnp.array([2.0, 1.0, 4.0])
    target = Differentiation(1.0, False).target(
        lambda x, centering: 0.0 * x.sum(), LaplacePrior(jnp.zeros(DIM), rate, 2 * rate)
    )
    x, p = (random.normal(random.key(k), (200, DIM)) for k in (0, 1))
    end = one_step(target, ExactFlow(jnp.asarray(SCALE)), x, p, 2.0)
    assert np.any(np.sign(end[0]) != np.sign(x), axis=0).all()  # over the kinks
    np.testing.assert_allclose(energy(target, *end), energy(target, x, p), rtol=1e-9)


def test_harmonic_flow_is_exact_on_the_normal_density_that_it_knows(x64: None) -> None:
    target = make_target(prior=False)
    factor = jnp.asarray(np.linalg.cholesky(np.linalg.inv(PRECISION)))
    zero = jnp.zeros(DIM)
    flow = HarmonicFlow(jnp.full(DIM, 0.5), factor, jnp.linalg.inv(factor), zero, zero)
    ensemble = evaluate(random.normal(random.key(0), (200, DIM)), target)

    def accepted(flow: Flow) -> jax.Array:
        step = jnp.asarray(1.5)
        _, sweep = hamiltonian_sweep(random.key(1), ensemble, flow, step, jnp.asarray(1), target)
        return sweep.accept_prob

    np.testing.assert_allclose(accepted(flow), 1, atol=1e-12)
    # Negative control: straight lines in the same metric are not.
    assert accepted(ExactFlow(jnp.sqrt(jnp.diag(jnp.linalg.inv(PRECISION))))).mean() < 0.9


def exact_draws(key: jax.Array, number: int) -> jax.Array:
    """Rejection sampling from the target with its prior, proposals from the Gaussian part."""
    key_normal, key_accept = random.split(key)
    covariance = np.linalg.inv(PRECISION)
    x = random.multivariate_normal(
        key_normal, jnp.full(DIM, 0.5), jnp.asarray(covariance), (number,)
    )
    keep = random.uniform(key_accept, (number,)) < jnp.exp(-make_target().prior_potential(x))
    return x[keep]


def largest_z(draws: jax.Array, others: jax.Array) -> float:
    """Largest difference of 11 moments, in standard errors."""

    def moments(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, x**2, x[:, :1] * x[:, 1:], np.abs(x)], axis=1)

    a, b = moments(np.asarray(draws)), moments(np.asarray(others))
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    return float(np.abs((a.mean(0) - b.mean(0)) / error).max())


@pytest.fixture(scope="module")
def draws() -> tuple[jax.Array, jax.Array]:
    """Two independent sets of exact draws."""
    return exact_draws(random.key(0), 400_000), exact_draws(random.key(1), 400_000)


def student_proposal() -> Proposal:
    """Draws and densities point by point: NumPyro's distributions broadcast batches silently."""
    student = StudentT(5.0, jnp.asarray(MEAN), jnp.asarray(SCALE)).to_event(1)

    def sample(rng_key: jax.Array, num_samples: int) -> jax.Array:
        return jax.vmap(student.sample)(random.split(rng_key, num_samples))

    return Proposal(sample, jax.vmap(student.log_prob))


@pytest.mark.parametrize("form", FLOWS)
def test_hamiltonian_sweeps_leave_the_target_invariant(
    form: str, draws: tuple[jax.Array, jax.Array]
) -> None:
    """11 moments of moved exact draws against fresh ones; a false alarm at 4.5 errors: 1e-4."""

    def moved(target: Target) -> tuple[jax.Array, Sweep]:
        ensemble, flow = evaluate(draws[0], target), make_flow(target, form)
        for k in (2, 3, 4):
            ensemble, sweep = hamiltonian_sweep(
                random.key(k), ensemble, flow, jnp.asarray(0.9), jnp.asarray(2), target
            )
        return ensemble.particles, sweep

    particles, sweep = moved(make_target())
    assert 0.3 < sweep.accept_prob.mean() < 0.99
    assert not sweep.diverging.any()
    assert largest_z(particles, draws[1]) < 4.5
    # Negative control: the same moves for another target are noticed.
    assert largest_z(moved(make_target(prior=False))[0], draws[1]) > 10


@pytest.mark.parametrize("num_trajectories", [0, 2])
def test_jumps_leave_the_target_invariant(
    num_trajectories: int, draws: tuple[jax.Array, jax.Array]
) -> None:
    """Jumps alone, and all that a move does between two draws that are kept."""

    def moved(target: Target) -> jax.Array:
        target = target._replace(proposal=student_proposal())
        ensemble = evaluate(draws[0], target)
        if not num_trajectories:
            for k in (2, 3, 4):
                ensemble, accept_prob = proposal_sweep(random.key(k), ensemble, target)
                assert 0.3 < accept_prob.mean() < 0.9
            return ensemble.particles
        one, three = jnp.asarray(1), jnp.asarray(3)
        flow = make_flow(target, "dense")
        move = HamiltonianMove(flow, jnp.asarray(0.9), one, one * num_trajectories, three)
        return move.advance(random.key(2), ensemble, target)[0].particles

    assert largest_z(moved(make_target()), draws[1]) < 4.5
    assert largest_z(moved(make_target(prior=False)), draws[1]) > 10


def test_a_move_is_jumps_and_then_trajectories() -> None:
    """The draw that is kept is the last state; the trajectories on the way count for it."""
    target = make_target()._replace(proposal=student_proposal())
    flow, step = make_flow(target, "dense"), jnp.asarray(1.4)
    ensemble = evaluate(exact_draws(random.key(0), 2000), target)
    key, steps = random.key(1), jnp.asarray(2)
    move = HamiltonianMove(flow, step, steps, num_sweeps=jnp.asarray(3), num_jumps=jnp.asarray(2))
    after, total = move.advance(key, ensemble, target)

    expected, sweeps = ensemble, []
    for k in range(2):
        expected, _ = proposal_sweep(random.fold_in(key, 2**20 + k), expected, target)
    assert np.any(np.asarray(expected.particles) != ensemble.particles)
    for k in range(3):
        key_sweep = random.fold_in(key, k)
        expected, sweep = hamiltonian_sweep(key_sweep, expected, flow, step, steps, target)
        sweeps.append(sweep)
    np.testing.assert_allclose(after.particles, expected.particles, atol=1e-5)
    mean = np.mean([sweep.accept_prob for sweep in sweeps], axis=0)
    np.testing.assert_allclose(total.accept_prob, mean, atol=1e-4)
    np.testing.assert_allclose(total.energy, sweeps[-1].energy, rtol=1e-4)
    np.testing.assert_array_equal(total.num_steps, 3 * 2 + 2)


@pytest.mark.parametrize("form", FLOWS)
def test_small_steps_are_accepted(form: str) -> None:
    """The exact flow keeps second order at the kinks; substeps across them cost an order."""
    target = make_target()
    flow = make_flow(target, form)
    ensemble = evaluate(exact_draws(random.key(0), 20_000), target)

    def rejected(step_size: float) -> float:
        step = jnp.asarray(step_size)
        _, sweep = hamiltonian_sweep(random.key(1), ensemble, flow, step, jnp.asarray(1), target)
        return 1 - float(sweep.accept_prob.mean())

    assert rejected(0.05) < rejected(0.5) / (30 if form == "exact" else 5)


def test_substeps_spare_most_of_the_rejections_at_the_kinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A steep prior in a dense metric: without substeps the error per step is that of one kick."""
    target = make_target()
    flow = make_flow(target, "dense")
    ensemble = evaluate(exact_draws(random.key(0), 20_000), target)

    def rejected() -> float:
        _, sweep = hamiltonian_sweep(
            random.key(1), ensemble, flow, jnp.asarray(0.7), jnp.asarray(1), target
        )
        return 1 - float(sweep.accept_prob.mean())

    with_substeps = rejected()
    monkeypatch.setattr(flows, "NUM_SUBSTEPS", 1)
    assert with_substeps < 0.8 * rejected()


@pytest.mark.parametrize("step_size", [0.5, 1.4])
def test_energy_is_that_of_the_state_that_is_kept(step_size: float) -> None:
    """Less the potential it is a kinetic energy, whose mean is half the dimension.

    The state after acceptance, momentum included, has the density exp(-energy) wherever the draws
    before were exact; the error of the mean is that of half a chi squared variable.
    """
    target = make_target()
    before = evaluate(exact_draws(random.key(0), 400_000), target)
    after, sweep = hamiltonian_sweep(
        random.key(1),
        before,
        make_flow(target, "exact"),
        jnp.asarray(step_size),
        jnp.asarray(1),
        target,
    )
    kinetic = np.asarray(sweep.energy - potential(after, target), np.float64)
    assert kinetic.min() > -1e-4
    error = math.sqrt(DIM / 2 / len(kinetic))
    assert abs(kinetic.mean() - DIM / 2) < 4.5 * error
    np.testing.assert_allclose(kinetic.var(), DIM / 2, rtol=0.05)
    is_moved = np.any(np.asarray(after.particles != before.particles), axis=1)
    assert is_moved.any()
    assert not is_moved.all()


def test_non_finite_potentials_are_rejected_and_flagged() -> None:
    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        return jnp.where(x[0] > 0.5, jnp.nan, 0.5 * x @ x)

    target = Differentiation(1.0, False).target(smooth, None)
    target = target._replace(proposal=student_proposal())
    ensemble = evaluate(jnp.zeros((200, DIM)), target)
    moved, sweep = hamiltonian_sweep(
        random.key(0),
        ensemble,
        ExactFlow(jnp.asarray(SCALE)),
        jnp.asarray(0.8),
        jnp.asarray(1),
        target,
    )
    assert sweep.diverging.any()
    assert np.all(sweep.accept_prob[sweep.diverging] == 0)
    jumped, accept_prob = proposal_sweep(random.key(0), ensemble, target)
    assert (accept_prob == 0).any()
    for after in (moved, jumped):
        assert np.all(np.isfinite(after.particles)) and np.all(after.particles[:, 0] <= 0.5)
        assert np.any(after.particles[:, 0] != 0)


def test_a_large_energy_error_is_a_divergence() -> None:
    """Finite, but above 1000; a step that is merely rejected is none."""
    target = Differentiation(1.0, False).target(lambda x, c: 0.5 * x @ x, None)
    ensemble = evaluate(jnp.ones((500, DIM)), target)

    def swept(step_size: float) -> Sweep:
        return hamiltonian_sweep(
            random.key(0),
            ensemble,
            ExactFlow(jnp.ones(DIM)),
            jnp.asarray(step_size),
            jnp.asarray(1),
            target,
        )[1]

    assert swept(40.0).diverging.mean() > 0.9
    rejecting = swept(2.5)
    assert rejecting.accept_prob.mean() < 0.2
    assert not rejecting.diverging.any()


def test_trajectories_are_a_quarter_turn() -> None:
    """Up to the jitter of the step size, and at least one step, at most the most."""
    sizes = np.geomspace(1e-4, 3.0, 200)
    most = 1024
    steps = np.asarray(num_leapfrog_steps(jnp.asarray(sizes, jnp.float32), most))
    assert steps.min() == 1
    assert steps.max() == most
    is_free = steps < most
    length = (steps * sizes)[is_free]
    assert np.all(length > TRAJECTORY_LENGTH - (STEP_JITTER + 1e-3) * sizes[is_free])
    assert np.all((length < TRAJECTORY_LENGTH + sizes[is_free]) | (steps[is_free] == 1))
