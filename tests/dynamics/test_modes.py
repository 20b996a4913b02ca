"""Several modes: they are found, jumps leave the posterior invariant, one mode costs nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import run_mcmc
from jax import random
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC

from benchmarks.mode_targets import TARGETS, as_model
from benchmarks.modes import measure
from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.exploration import Explored
from numpyro_rwpo.dynamics.flows import HarmonicFlow
from numpyro_rwpo.dynamics.mode_fit import Fitted, _bridge, _distinct
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.mode_search import (
    Group,
    Separated,
    as_groups,
    find_groups,
    find_separated,
    wide_starts,
)
from numpyro_rwpo.dynamics.modes import Modes, hop_jump, mode_of
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.programs import Programs
from numpyro_rwpo.dynamics.several_modes import _in_listed_modes
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.runs.encoding import arrays_to_state, state_to_arrays

CENTERS, SDS, SHARES = np.array([[-6.0, 0.0], [4.0, 3.0]]), np.array([1.0, 0.5]), [0.7, 0.3]


def log_density(x: jax.Array) -> jax.Array:
    """Two normal densities in the plane, normalized."""
    square = ((x[None] - jnp.asarray(CENTERS, x.dtype)) ** 2).sum(1)
    sds = jnp.asarray(SDS, x.dtype)
    each = jnp.log(jnp.asarray(SHARES, x.dtype)) - square / sds**2 / 2 - 2 * jnp.log(sds)
    return jax.nn.logsumexp(each) - np.log(2 * np.pi)


def make_target() -> Target:
    return Differentiation(1.0, False).target(lambda x, centering: -log_density(x), None)


def make_modes() -> Modes:
    """A list that is off: in its means, covariances, and weights."""
    mean = jnp.asarray(CENTERS + [[0.3, -0.2], [0.1, 0.2]])
    factor = jnp.asarray([[[1.2, 0.1], [0.1, 0.8]], [[0.4, -0.1], [-0.1, 0.7]]])
    weights = jnp.log(jnp.asarray([0.4, 0.6]))
    return Modes(mean, factor, jnp.linalg.inv(factor), jnp.linalg.slogdet(factor)[1], weights)


def make_move(modes: Modes, hop_share: float) -> ModeMove:
    zero = jnp.zeros((2, 2))
    flow = HarmonicFlow(modes.mean, modes.factor, modes.inverse, zero, zero)
    one = jnp.asarray(1)
    rate, found = jnp.ones(2), jnp.ones(2, bool)
    share = jnp.asarray(hop_share)
    return ModeMove(modes, flow, jnp.asarray(1.0), one, one, 2 * one, share, rate, found)


def exact_draws(number: int) -> jax.Array:
    rng = np.random.default_rng(0)
    label = (rng.uniform(size=number) < SHARES[1]).astype(int)
    return jnp.asarray(CENTERS[label] + SDS[label, None] * rng.normal(size=(number, 2)))


def test_a_hop_there_and_back_returns_to_its_start(x64: None) -> None:
    modes, x = make_modes(), exact_draws(500)
    there = hop_jump(random.key(0), x, modes)
    assert there.is_allowed.mean() > 0.8
    number = mode_of(modes, there.position)
    is_moved = np.asarray(there.is_allowed & (number != mode_of(modes, x)))
    assert 100 < is_moved.sum() < 400
    for key in range(20):  # until the way back has been drawn for each
        back = hop_jump(random.key(key), there.position, modes)
        home = np.asarray(mode_of(modes, back.position) == mode_of(modes, x)) & is_moved
        np.testing.assert_allclose(back.position[home], x[home], atol=1e-12)
        np.testing.assert_allclose(back.log_ratio[home], -there.log_ratio[home], atol=1e-12)


def errors_after_moves(modes: Modes, hop_share: float) -> np.ndarray:
    """Share, means and variances of 20,000 exact draws after three states, in standard errors."""
    number = 20_000
    target, move = make_target(), make_move(modes, hop_share)
    ensemble = evaluate(exact_draws(number), target)
    for k in range(3):
        ensemble, _ = jax.jit(lambda key, e: move.advance(key, e, target))(random.key(k), ensemble)
    x = np.asarray(ensemble.particles)
    label = (x[:, 0] > -1).astype(int)
    scores = [(label.mean() - SHARES[1]) / np.sqrt(SHARES[0] * SHARES[1] / number)]
    for k in range(2):
        white = (x[label == k] - CENTERS[k]) / SDS[k]
        scores += list(white.mean(0) * np.sqrt(len(white)))
        scores += list((white.var(0) - 1) * np.sqrt(len(white) / 2))
    return np.asarray(scores)


@pytest.mark.parametrize("hop_share", [0.0, 0.5, 1.0])
def test_moves_leave_the_posterior_invariant(x64: None, hop_share: float) -> None:
    # Nine scores: above 4 anywhere with a probability of 6e-4.
    assert np.abs(errors_after_moves(make_modes(), hop_share)).max() < 4


def test_without_the_jacobian_shares_are_wrong(x64: None) -> None:
    modes = make_modes()
    wrong = modes._replace(log_det=jnp.zeros(2))
    assert np.abs(errors_after_moves(wrong, 1.0)).max() > 10


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_groups(dim: int) -> None:
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(4 * max(64, 2 * dim), dim))
    assert [len(group) for group in find_groups(x, x)] == [len(x)]
    shift = np.where(np.arange(len(x)) % 8 == 0, 40 / np.sqrt(dim), 0.0)[:, None]
    sizes = [len(group) for group in find_groups(x + shift, x)]
    assert sizes[0] > 0.2 * len(x) and len(sizes) > 1
    assert not any(len(set(shift[g, 0])) > 1 for g in find_groups(x + shift, x))


def test_bridge_sampling_of_a_known_constant() -> None:
    rng = np.random.default_rng(0)
    normal = dist.Normal(0.0, 1.3)

    def ratio(x: np.ndarray) -> np.ndarray:
        return np.asarray(2 + normal.log_prob(x) - dist.Normal().log_prob(x))

    found = [
        _bridge(ratio(1.3 * rng.normal(size=64)), ratio(rng.normal(size=256))) for _ in range(50)
    ]
    # One estimate has a standard deviation of 0.02.
    assert abs(np.mean(found) - 2) < 4 * np.std(found) / np.sqrt(50)
    assert np.std(found) < 0.05


def two_modes(dim: int, distance: float = 40.0) -> None:
    """Normal densities of shares 0.9 and 0.1, on either side of the origin."""
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
    center = distance / 2 / np.sqrt(dim)
    low, high = (-((x - c) ** 2).sum() / 2 for c in (-center, center))
    numpyro.factor("modes", jnp.logaddexp(low + np.log(0.9), high + np.log(0.1)))


def in_small_mode(mcmc: MCMC) -> np.ndarray:
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"].mean(-1) > 0, float)


def share_score(mcmc: MCMC) -> float:
    """Deviation of the share of the small mode from 0.1, in standard errors."""
    small = in_small_mode(mcmc)
    effective = min(float(effective_sample_size(small)), small.size)
    return float((small.mean() - 0.1) / np.sqrt(0.09 / effective))


@pytest.fixture(scope="module")
def bimodal_run() -> MCMC:
    return run_mcmc(RWPO(two_modes), 2, num_warmup=100, num_samples=512, num_chains=4)


def test_share_of_a_distant_mode(bimodal_run: MCMC) -> None:
    assert isinstance(bimodal_run.last_state.move, ModeMove)
    assert abs(share_score(bimodal_run)) < 4
    assert effective_sample_size(in_small_mode(bimodal_run)) > 800
    assert split_gelman_rubin(bimodal_run.get_samples(group_by_chain=True)["x"]).max() < 1.02


def test_report_of_modes(bimodal_run: MCMC) -> None:
    report = diagnose(bimodal_run)
    first, second = report.measurements.modes
    assert first.share + second.share == pytest.approx(1)
    assert abs(second.share - 0.1) < 4 * second.share_error < 0.1
    assert first.center["x[0]"] < -10 and second.center["x[0]"] > 10
    assert min(first.jump_rate, second.jump_rate) > 0.5
    assert "found by chains" in str(report)
    assert not {"jumps", "shares of modes"} & {finding.about for finding in report.findings}


def test_state_with_modes_is_saved_and_restored(bimodal_run: MCMC) -> None:
    state = jax.device_get(bimodal_run.last_state)
    header, arrays = state_to_arrays(state)
    again = arrays_to_state(header, arrays, "file", None)
    assert isinstance(again.move, ModeMove)
    jax.tree.map(np.testing.assert_array_equal, again.move, state.move)


def test_chains_that_cannot_jump_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains share the list of modes, but not their particles: R-hat shows it if jumps fail."""
    monkeypatch.setattr(
        ModeMove, "_jump", lambda self, key, ensemble, tally, target: (ensemble, tally)
    )
    mcmc = run_mcmc(RWPO(two_modes), 2, num_warmup=100, num_samples=512, num_chains=4)
    assert isinstance(mcmc.last_state.move, ModeMove)
    assert split_gelman_rubin(mcmc.get_samples(group_by_chain=True)["x"]).max() > 1.01
    assert {"jumps", "R-hat"} <= {finding.about for finding in diagnose(mcmc).findings}


def normal_model() -> None:
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def test_one_mode_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("there is only one mode")

    for name in ("_heights", "_explored", "_settled"):
        monkeypatch.setattr(Programs, name, forbidden)
    mcmc = run_mcmc(RWPO(normal_model), num_warmup=50, num_chains=4)
    assert isinstance(mcmc.last_state.move, HamiltonianMove)
    assert diagnose(mcmc).measurements.modes == ()


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 10, 50])
def test_shares_over_seeds(dim: int) -> None:
    scores = []
    for seed in range(20):
        mcmc = run_mcmc(
            RWPO(two_modes), dim, key=seed, num_warmup=200, num_samples=1000, num_chains=4
        )
        scores.append(share_score(mcmc))
        assert split_gelman_rubin(mcmc.get_samples(group_by_chain=True)["x"]).max() < 1.02
    # Twenty squared standard normal scores have a mean above 2 with a probability of 0.5%.
    assert np.mean(np.square(scores)) < 2.0
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(20)


@pytest.mark.slow
def test_aliases_of_a_frequency_are_found_beyond_the_start() -> None:
    """Chains start within 2 of the origin, which are attracted by two of ten modes."""
    target = TARGETS["aliases"]()
    found = measure(target, RWPO(as_model(target)), 200, seed=0)
    assert found["missed"] == 0
    assert found["r_hat"] < 1.02
    # The mean of ten squared scores, which the total share and pairs of modes make dependent, has
    # a standard deviation of about 0.6.
    assert found["score"] < 3


def test_wide_starts_reach_beyond_what_was_found() -> None:
    here, there = np.array([-5.0, 0.0]), np.array([5.0, 0.0])
    rng = np.random.default_rng(0)
    members = here + rng.normal(size=(20, 2))
    starts = wide_starts([Separated(here, members), Separated(there, members[:0])], 1000, rng)
    # A standard deviation of 1000 draws has a relative error of 2 %.
    np.testing.assert_allclose(starts.std(0), 3 * np.hypot([5, 0], members.std(0)), rtol=0.1)


def test_the_ends_of_descents_are_places_each_once() -> None:
    ends = np.array([[1.0, 0], [1.0, 1e-4], [8.0, 3.0], [np.nan, 0], [-90.0, 0]])
    starts = np.array([[0.0, 0], [1.0, 1.0], [8.0, 4.0], [3.0, 2.0], [-80.0, 0]])

    def evaluate(x: np.ndarray) -> np.ndarray:
        return np.where(x[:, 0] < -50, 1e4, x[:, 0])

    # The last end is far too high, unless a particle at rest has led there.
    groups = as_groups(ends, starts, evaluate, are_at_rest=False)
    np.testing.assert_allclose([g.positions[0] for g in groups], [[1, 0], [8, 3]], atol=1e-3)
    assert all(np.isinf(g.heights).all() and not len(g.members) for g in groups)
    groups = as_groups(ends, starts, evaluate, are_at_rest=True)
    assert [len(g.members) for g in groups] == [2, 1, 1]
    np.testing.assert_array_equal(groups[0].members, starts[:2])


def test_many_places_of_one_mode_are_one_set() -> None:
    """All near neighbors of a place may be in its own half of a mode."""
    rng = np.random.default_rng(1)
    halves = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + [8.0, 0.0]])
    groups = [Group(x[None], np.array([np.inf]), x[None]) for x in halves]
    # A flat valley, and one with a barrier of ten nats between the halves.
    flat = find_separated(groups, lambda x: np.zeros(len(x)))
    assert [len(one.members) for one in flat] == [80]
    walled = find_separated(groups, lambda x: 10 * np.exp(-((x[:, 0] - 4) ** 2)))
    assert sorted(len(one.members) for one in walled) == [40, 40]


def unit_modes(means, log_weight):
    number, dim = means.shape
    eye = jnp.broadcast_to(jnp.eye(dim), (number, dim, dim))
    return Modes(jnp.asarray(means), eye, eye, jnp.zeros(number), jnp.asarray(log_weight))


def test_particles_in_a_mode_that_is_not_in_the_list_move_onto_others():
    means = np.array([[0.0], [10.0], [20.0]], np.float32)
    distinct = unit_modes(means, np.log(np.array([0.5, 1e-6, 0.5], np.float32)))
    fitted = Fitted(unit_modes(means[[0, 2]], np.log([0.5, 0.5])), np.array([0, 2]), distinct,
                    np.array([True, False, True]))  # fmt: skip
    target = Differentiation(1.0, False).target(lambda x, centering: (x**2).sum(), None)
    # The second chain has no other particles, and keeps them.
    chains = jnp.array([[[0.1], [9.9], [20.1], [10.2]], [[10.0], [10.1], [10.2], [10.3]]])
    ensemble = jax.vmap(lambda x: evaluate(x, target))(chains)
    moved = _in_listed_modes(ensemble, fitted)
    np.testing.assert_allclose(moved.particles[0, :, 0], [0.1, 0.1, 20.1, 20.1])
    np.testing.assert_allclose(moved.particles[1], chains[1])
    np.testing.assert_allclose(moved.smooth, (moved.particles**2).sum(2), rtol=1e-6)


def test_an_ensemble_that_spreads_over_two_modes_does_not_make_them_one() -> None:
    """It explores neither of them; an ensemble that is in the same mode as another is left out."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(4, 200, 2))
    particles = CENTERS[[0, 1, 1, 1]][:, None] + SDS[[0, 1, 1, 1], None, None] * noise
    particles[3, :100] = particles[0, :100]
    potential = np.asarray(jax.vmap(jax.vmap(lambda x: -log_density(x)))(jnp.asarray(particles)))
    mean, sd = particles.mean(1), particles.std((1, 2))
    eye = np.eye(2)
    factor, inverse = sd[:, None, None] * eye, eye / sd[:, None, None]
    fields = (mean, factor, inverse, 2 * np.log(sd), np.full(4, -np.log(4.0)))
    modes = Modes(*(jnp.asarray(x, jnp.float32) for x in fields))
    nothing = dict.fromkeys(Explored._fields)
    explored = Explored(**nothing | {"particles": particles, "potential": potential})  # type: ignore[arg-type]

    def heights(x: np.ndarray) -> np.ndarray:
        return np.asarray(jax.vmap(lambda y: -log_density(y))(jnp.asarray(x)))

    kept = _distinct(jax.random.key(0), modes, explored, heights)
    assert len(kept) == 2
    assert kept.min() == 0
    assert kept.max() in (1, 2)
