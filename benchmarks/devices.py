"""Time and communication of one ensemble whose particles several devices share.

From the repository root::

    python -m benchmarks.devices [--out FOLDER]

One step of the flow (moments, metric, attention, gradients) and one Hamiltonian sweep of a single
leapfrog step, on the 50-dimensional L1 logistic regression. Devices are virtual ones of this CPU, a
fresh process for each number: the bytes are those that real devices would exchange, counted from
the compiled program; the times say only that sharing costs little, because all virtual devices
share the same cores. A model on paper, `model_seconds`, takes it from there.
"""

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.communication import traffic
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import device_kwargs
from numpyro_rwpo import RWPO
from numpyro_rwpo.correction import sweep
from numpyro_rwpo.ensemble import Ensemble, evaluate
from numpyro_rwpo.transport import transport_step
from numpyro_rwpo.warmup import Turn, learn_moments, tuning

PROBLEM = "l1_logistic_d50"
DEVICES = (1, 2, 4, 8)
STRONG = {"copula": 16_384, "joint": 4_096}  # particles in all
WEAK = {"copula": 4_096, "joint": 1_024}  # particles a device
NUM_REPEATS = 7
LIMIT_SECONDS = 300.0

# The model on paper: an accelerator of today in rough numbers, and what joins it to others.
FLOPS = 20e12  # single-precision operations a second that a fused elementwise loop reaches
MEMORY_BANDWIDTH = 2e12  # bytes a second
LINK_BANDWIDTH = 50e9  # bytes a second of one device to the others
LATENCY = 10e-6  # seconds of one collective, times the logarithm of the number of devices
PAPER_DEVICES = (1, 8, 64, 256, 1024)


def measure(num_devices: int, num_particles: int, attention: str) -> dict[str, Any]:
    """Compile and time a step and a sweep in this process.

    Args:
        num_devices: That share the particles.
        num_particles: In all.
        attention: Name of the head.

    Returns:
        Bytes by kind of collective, numbers of operations, and seconds.
    """
    problem = load_problem(PROBLEM)
    kwargs = device_kwargs(problem)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("particles",))
    kernel = RWPO(problem.model, num_particles=num_particles, attention=attention, mesh=mesh)
    state = kernel.init(jax.random.key(0), 40, None, (), kwargs)
    settings, source = kernel.settings, kernel._source
    assert settings is not None
    assert source is not None
    target = source.bind((), kwargs)._replace(placement=settings.placement)
    ensemble = jax.jit(lambda x: evaluate(x, target))(0.1 * state.ensemble.particles)

    def step(ensemble: Ensemble, adaptation: Any, flow: Any) -> Any:
        adaptation = learn_moments(adaptation, 0, ensemble, target, settings.candidates)
        moved, flow = transport_step(
            ensemble,
            flow,
            adaptation.preconditioner,
            target,
            attention=attention,
            relative_time=settings.relative_prox_time,
        )
        return evaluate(moved.particles, target), adaptation, flow

    def one_sweep(ensemble: Ensemble, adaptation: Any, key: jax.Array) -> Any:
        turn = Turn(jax.numpy.zeros((), int), jax.numpy.zeros((), bool))
        tuned = tuning(adaptation, turn, target, settings.candidates, True)
        tuned = tuned._replace(step_size=jax.numpy.full((), np.pi / 2))
        return sweep(key, ensemble, target, tuned)

    adaptation = state.adaptation
    programs = {
        "step": (step, (ensemble, adaptation, state.flow)),
        "sweep": (one_sweep, (ensemble, adaptation, state.rng_key)),
    }
    record: dict[str, Any] = {
        "num_devices": num_devices,
        "num_particles": num_particles,
        "attention": attention,
        "dim": int(ensemble.particles.shape[1]),
        "status": "complete",
    }
    for name, (function, arguments) in programs.items():
        compiled = jax.jit(function).lower(*arguments).compile()
        sent = traffic(compiled.as_text())
        cost = compiled.cost_analysis() or {}
        jax.block_until_ready(compiled(*arguments))
        seconds = []
        for _ in range(NUM_REPEATS):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.append(time.perf_counter() - begin)
        record[name] = {
            "bytes": sent.always,
            "bytes_in_branches": sent.branches,
            "flops": float(cost.get("flops", np.nan)),
            "bytes_accessed": float(cost.get("bytes accessed", np.nan)),
            "seconds": float(np.median(seconds)),
        }
    return record


def table(records: list[dict[str, Any]]) -> str:
    """Strong and weak scaling, as Markdown."""
    parts = []
    for title, kind in (("Strong scaling", "strong"), ("Weak scaling", "weak")):
        rows = []
        for record in records:
            if kind not in record["kinds"]:
                continue
            names = [
                record["attention"],
                f"{record['num_devices']}",
                f"{record['num_particles']:,}",
            ]
            if record["status"] != "complete":
                rows.append([*names, record["reason"], "", "", ""])
                continue
            step, swept = record["step"], record["sweep"]
            numbers = [
                f"{sum(step['bytes'].values()):,}",
                f"{sum(swept['bytes'].values()):,}",
                three_digits(1e3 * step["seconds"]),
                three_digits(1e3 * swept["seconds"]),
            ]
            rows.append([*names, *numbers])
        header = ["head", "devices", "particles", "bytes a step", "bytes a sweep"]
        header += ["ms a step, 2 cores", "ms a sweep, 2 cores"]
        parts.append(f"{title}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)
