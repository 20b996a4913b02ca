"""The benchmark's arithmetic, its report, and that its cells end in time."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import many_parameters, mcmc_times, scaling
from benchmarks.__main__ import cells_to_run, parse
from benchmarks.cell import (
    CompileClock,
    Run,
    Timed,
    drive,
    judged_run,
    measure,
    replace_nan,
)
from benchmarks.effective_size import size_by_error, smallest_ess
from benchmarks.problems import PROBLEMS
from benchmarks.references import load_reference, scalars
from benchmarks.report import summarize, targets_table, write_report
from benchmarks.runner import Cell, load_results, run_cells, run_process
from benchmarks.samplers import SAMPLERS
from benchmarks.samplers.myula import myula_step
from benchmarks.samplers.protocol import FlatTarget, Segment, flat_target

NUM_DRAWS, NUM_RUNS, NUM_COORDINATES = 400, 300, 20


def errors_of_independent_draws(bias=0.0, mcse=0.0):
    """Errors of means of normal draws against a reference that is itself off."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((NUM_RUNS, NUM_COORDINATES, NUM_DRAWS))
    # A reference of its own for every run, so that the subtraction is tested and not one reference.
    return draws.mean(2) + bias + mcse * rng.standard_normal((NUM_RUNS, NUM_COORDINATES))


@pytest.mark.parametrize(("bias", "mcse"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.05)])
def test_size_by_error_is_the_number_of_independent_draws_less_what_a_bias_costs(bias, mcse):
    found = size_by_error(errors_of_independent_draws(bias, mcse), np.full(NUM_COORDINATES, mcse))
    mean_square = 1 / NUM_DRAWS + bias**2
    # The squared error of a normal with mean b and variance v has the variance 2 v^2 + 4 v b^2.
    variance = 1 / NUM_DRAWS + mcse**2
    standard_error = np.sqrt(
        (2 * variance**2 + 4 * variance * bias**2) / errors_of_independent_draws().size
    )
    assert abs(1 / found.size - mean_square) < 4 * standard_error
    assert found.low < found.size < found.high
    assert 1 / found.low - 1 / found.size == pytest.approx(2 * standard_error, rel=0.25)


def test_size_by_error_without_the_reference_error_would_be_too_small():
    errors = errors_of_independent_draws(mcse=0.05)
    assert size_by_error(errors, np.zeros(NUM_COORDINATES)).high < NUM_DRAWS
    assert size_by_error(errors, np.full(NUM_COORDINATES, 0.05)).resolvable == pytest.approx(400)


def test_size_by_error_of_extremes():
    one = size_by_error([[0.1, 0.1]], [0.0, 0.0])
    assert (one.size, one.low, one.high) == (pytest.approx(100), 0.0, math.inf)
    assert size_by_error([[np.nan]], [0.0]).size == 0.0
    assert size_by_error([[0.001], [0.001]], [0.1]).size == math.inf


def test_smallest_ess():
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((3, 4, 500))
    assert 1500 < smallest_ess(draws, "bulk") < 2600
    draws[1] = np.repeat(draws[1, :, ::10], 10, axis=1)  # every value ten times in a row
    assert smallest_ess(draws, "bulk") < 400
    draws[1, 0, 0] = np.nan
    assert math.isnan(smallest_ess(draws, "bulk"))


# Laplace prior of rate 2 times a normal likelihood of one observation, by hand.
OBSERVED, NOISE, RATE = 1.2, 0.7, 2.0
ONE_DIMENSION = FlatTarget(
    1,
    lambda x: 0.5 * ((x[0] - OBSERVED) / NOISE) ** 2 + RATE * jnp.abs(x[0]),
    lambda x: {"x": x},
    jnp.array([RATE]),
)


def stationary_moments(step_size, smoothing):
    """Mean and sd of MYULA's stationary distribution, from its transition density on a grid."""
    x = np.linspace(-4, 4, 1201)
    shrunk = np.sign(x) * np.maximum(np.abs(x) - smoothing * RATE, 0)
    drift = (x - OBSERVED) / NOISE**2 + (x - shrunk) / smoothing
    ahead = x - step_size * drift
    transition = np.exp(-((x[:, None] - ahead) ** 2) / (4 * step_size))
    transition /= transition.sum(0)
    density = np.linalg.matrix_power(transition, 512)[:, 0]
    mean = density @ x
    return mean, np.sqrt(density @ (x - mean) ** 2)


def posterior_mean():
    x = np.linspace(-4, 4, 20001)
    density = np.exp(-0.5 * ((x - OBSERVED) / NOISE) ** 2 - RATE * np.abs(x))
    return density @ x / density.sum()


def test_myula_has_its_known_stationary_distribution_and_not_the_posterior():
    curvature = 1 / NOISE**2
    smoothing, step_size = 1 / curvature, 0.25 / curvature
    num_chains, num_steps = 20_000, 150

    @jax.jit
    def run(rng_key):
        def body(i, x):
            keys = jax.random.split(jax.random.fold_in(rng_key, i), num_chains)
            move = jax.vmap(myula_step, (0, 0, None, None, None))
            return move(keys, x, ONE_DIMENSION, smoothing, step_size)

        return jax.lax.fori_loop(0, num_steps, body, jnp.zeros((num_chains, 1)))

    draws = np.asarray(run(jax.random.key(0)))[:, 0]
    mean, sd = stationary_moments(step_size, smoothing)
    standard_error = sd / np.sqrt(num_chains)
    assert abs(draws.mean() - mean) < 4 * standard_error
    assert draws.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * num_chains))
    assert abs(draws.mean() - posterior_mean()) > 10 * standard_error  # the bias that it has


@pytest.mark.slow
def test_flat_target_splits_the_laplace_prior_off():
    target = flat_target(PROBLEMS["diabetes_lasso"]())
    assert target.dim == 11
    np.testing.assert_array_equal(np.sort(target.rates), [0.0, *[5.0] * 10])
    x = jnp.linspace(-0.5, 0.7, 11)
    slope = jax.grad(target.potential)(x) - jax.grad(target.smooth_potential)(x)
    np.testing.assert_allclose(slope, target.rates * jnp.sign(x), atol=1e-3)


@pytest.mark.parametrize("sampler", [pytest.param("nuts", marks=pytest.mark.slow), "noise_free"])
def test_a_cell_measures_all_runs(sampler, tmp_path):
    record = measure(
        "four_modes", sampler, 0, budget=60.0, num_runs=2, num_warmup=12, num_samples=12
    )
    (tmp_path / "four_modes--x.json").write_text(json.dumps(replace_nan(record)))
    first, second = load_results(tmp_path)
    assert first["cold_seconds"] == second["cold_seconds"]
    assert first["figures"]["errors"] != second["figures"]["errors"]
    assert record["status"] == "complete"
    assert record["cold_seconds"] > record["warmup_seconds"] + record["sampling_seconds"] > 0
    assert record["warm"]["sampling"]["compile_seconds"] == 0
    assert record["warm"]["warmup"]["compile_seconds"] == 0
    assert record["sampling_evaluations"] > 0
    figures = record["figures"]
    assert len(figures["errors"]) == 2
    assert figures["num_draws"] == 12
    last = record["curve"][-1]
    assert last["error"] == pytest.approx(np.sqrt(np.mean(np.square(figures["errors"]))), rel=1e-3)
    json.dumps(replace_nan(record), allow_nan=False)


def test_compile_clock_counts_nested_spans_once():
    clock = CompileClock()
    trace, compiling = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/backend_compile_duration",
    )
    for event, start, end in (
        (trace, 1.0, 2.0),
        (trace, 3.0, 4.0),
        (trace, 0.0, 5.0),  # the two above are inside
        (compiling, 6.0, 8.0),
        ("/something/else", 8.0, 20.0),
    ):
        clock.add(event, start, end)
    assert clock.seconds == 7.0


class SlowProgram:
    """A quarter of a second for every draw."""

    def run(self, rng_key):
        yield Segment("start")
        for i in range(100):
            time.sleep(0.25)
            yield Segment("sampling", 1, 1, {"x": np.full((1, 1), i)})


def test_a_run_stops_at_the_deadline_with_what_it_has():
    notes = []
    run = drive(
        SlowProgram(), jax.random.key(0), time.perf_counter() + 0.6, CompileClock(), notes.append
    )
    assert not run.is_complete
    draws = run.draws()["x"].ravel()
    assert 1 <= len(draws) <= 3
    np.testing.assert_array_equal(draws, np.arange(len(draws)))
    assert len(notes) == len(draws) + 1


def test_too_few_draws_are_said_to_be_so():
    draws = Segment("sampling", 1, 8, {"x": np.zeros((4, 3, 2))})
    run = Run([Timed(Segment("warmup", 5, 40), 1.0, 0.5), Timed(draws, 0.5, 0.0)], False)
    record = judged_run("four_modes", run, None, is_warm=False)
    assert record["status"] == "too few draws"
    assert record["warmup_seconds"] == 0.5


def test_a_process_that_does_not_stop_is_ended_and_recorded(tmp_path):
    path = tmp_path / "a--b--seed0.json"
    sleep = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
    begin = time.perf_counter()
    run_process(sleep, path, limit=0.5, record=Cell("a", "b", 0)._asdict())
    assert time.perf_counter() - begin < 10
    (record,) = load_results(tmp_path)
    assert (record["problem"], record["status"]) == ("a", "ended")


def test_no_cell_starts_when_time_is_up(tmp_path, capsys):
    cells = [Cell("four_modes", "nuts", 0), Cell("p_much_larger_n", "ess", 0)]
    run_cells(cells, tmp_path, budget=60.0, no_start_after=time.perf_counter() - 1)
    assert "No time left for 2 cells" in capsys.readouterr().out
    assert not load_results(tmp_path)
    run_cells(cells[1:], tmp_path, budget=60.0)  # nothing to start: it is left out
    assert load_results(tmp_path)[0]["status"] == "left out"
    assert "left out" in capsys.readouterr().out
    run_cells(cells[1:], tmp_path, budget=60.0)  # it has a file now
    assert not capsys.readouterr().out


def fake_record(problem, sampler, seed, speed, *, error=0.02):
    rng = np.random.default_rng(seed)
    errors = error * rng.standard_normal(11)
    points = [
        {"seconds": s / speed, "evaluations": 100 * s, "draws": s, "error": 1 / np.sqrt(s)}
        for s in (100, 1000, 4000)
    ]
    sampling = {"seconds": 3.0 / speed + 5.0, "compile_seconds": 5.0}
    return {
        "problem": problem,
        "sampler": sampler,
        "seed": seed,
        "status": "complete",
        "cold_seconds": 20.0,
        "cold": {"sampling": sampling},
        "is_warm_estimated": False,
        "num_divergences": 0,
        "warmup_seconds": 1.0 / speed,
        "sampling_seconds": 3.0 / speed,
        "warmup_evaluations": 1000,
        "sampling_evaluations": 3000,
        "curve": points,
        "figures": {
            "max_mean_error": 0.05,
            "min_sd_ratio": 0.97,
            "max_sd_ratio": 1.04,
            "max_r_hat": 1.003,
            "min_bulk_ess": 1000.0,
            "min_tail_ess": 900.0,
            "errors": list(errors),
            "reference_errors": [0.005] * 11,
        },
    }


def fake_records():
    speeds = {"rwpo": 6.0, "nuts": 0.5, "nuts_dense": 1.0, "chees": 3.0}
    records = [
        fake_record("diabetes_lasso", sampler, seed, speed)
        for sampler, speed in speeds.items()
        for seed in range(5)
    ]
    # As sure of itself as the others, and far off.
    records += [fake_record("diabetes_lasso", "aies", s, 6.0, error=0.5) for s in range(5)]
    left_out = {"status": "left out", "reason": "too few walkers"}
    return [*records, {"problem": "p_much_larger_n", "sampler": "ess", "seed": 0, **left_out}]


def test_summaries_take_the_smaller_size():
    by_sampler = {s.sampler: s for s in summarize(fake_records())}
    assert by_sampler["rwpo"].size == 1000.0
    assert by_sampler["rwpo"].rate == pytest.approx(1000 / (4 / 6))
    assert by_sampler["aies"].bulk_ess == 1000.0
    assert by_sampler["aies"].size == by_sampler["aies"].by_error.size < 10
    # 20 s cold, of which 0.5 s are 1000 draws: four times as many.
    assert by_sampler["rwpo"].seconds_to_effective_draws == pytest.approx(19.5 + 4 * 0.5)


def test_targets_are_judged_against_the_better_nuts():
    table = targets_table(summarize(fake_records()))
    assert "6.00 ✓ (≥ 5)" in table
    assert "6.00 ✗ (≥ 20)" in table
    assert "2.00 ✓ (≥ 1.5)" in table


def test_report_of_a_folder(tmp_path):
    machine = {"cpu": "a", "cores": 2, "memory_gib": 1, "system": "b", "versions": {"jax": "1"}}
    write_report(fake_records(), machine, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "too few walkers" in page
    assert "Preliminary" not in page.replace("Seeds per cell: 1", "")
    assert json.loads((tmp_path / "results.json").read_text())["machine"] == machine
    for name in ("error_vs_time.png", "error_vs_gradients.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_tables_of_the_other_scripts():
    ended = {"status": "ended", "reason": "still running after 300 s"}
    steps = {"num_particles": 1000, "status": "complete", "step_seconds": 0.02}
    table = scaling.table([{"num_particles": 4000, **ended}, {**steps, "peak_memory_mb": 100.0}])
    assert "| 1,000 | 20.0 | 20.0 | 100 |" in table
    assert "still running" in table

    seconds = {"cold_seconds": 6.0, "again_seconds": 4.0, "warm_seconds": 1.0}
    run = {"problem": "a", "status": "complete", "accuracy": {"max_mean_error": 0.03}, **seconds}
    failed = {"problem": "b", "kernel": "nuts", **ended}
    twice = {**run, "kernel": "nuts", "cold_seconds": 12.0}
    table = mcmc_times.table([{**run, "kernel": "rwpo"}, twice, failed])
    assert "| a | 6.00 | 12.0 | 0.50 |" in table

    left = {"problem": "network", "metric": "auto", **ended}
    assert "| network, auto | still running after 300 s |" in many_parameters.table([left])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "nonsense"], "no nonsense; choose from diabetes_lasso"),
        (["--samplers", "hmc"], "no hmc; choose from rwpo"),
        (["--seeds", "0"], "at least 1"),
        (["--budget", "-3"], "positive"),
        (["--quick", "--problems", "logistic_n100k"], "no cell is left"),
    ],
)
def test_command_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_cells_come_seed_by_seed_and_have_files_of_their_own(tmp_path):
    cells = cells_to_run(parse(["--seeds", "2"]))
    half = len(cells) // 2
    assert [c.seed for c in cells] == [0] * half + [1] * half
    assert len({c.path(tmp_path) for c in cells}) == len(cells)
    assert {c.problem for c in cells} > set(PROBLEMS)
    assert {c.sampler for c in cells} == set(SAMPLERS)
    assert Cell("a", "b", 0, 50).path(tmp_path) != Cell("a", "b", 0).path(tmp_path)


@pytest.mark.parametrize("name", PROBLEMS)
def test_scalars_follow_the_reference(name):
    reference = load_reference(name)
    samples = {
        s: np.broadcast_to(c["mean"], (2, 3, *c["mean"].shape)) for s, c in reference.items()
    }
    columns = scalars(name, samples)
    np.testing.assert_allclose(columns.draws.mean((1, 2)), columns.mean, atol=1e-6)
    assert np.all(columns.sd > 0)


def test_benchmarks_import_where_the_samplers_they_compare_with_are_not_installed():
    """Tests import benchmarks, and BlackJAX is in the extra `bench` alone."""
    root = Path(__file__).parents[2]
    names = {path.stem for path in (root / "benchmarks").glob("[!_]*.py")} - {"mode_baselines"}
    code = [
        "import importlib, sys",
        "sys.modules['blackjax'] = None",
        *(f"importlib.import_module('benchmarks.{name}')" for name in sorted(names)),
    ]
    subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=root, check=True)
