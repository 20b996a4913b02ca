"""The version of jaxlib that computes wrong sums on CPUs, which the package does not install.

In jaxlib 0.10.2, compiled sums of products are wrong beyond the 32,768th row, without an error
(https://github.com/jax-ml/jax/issues/39103). A gradient of all particles at once soon has that many
rows: 256 particles and 129 observations are enough. XLA reads its flags when a process first uses a
device, so the flag that avoids the fault only helps if it is set before that.
"""

import os
import warnings
from functools import cache
from importlib.metadata import version

import jax
import jax.numpy as jnp

FAULTY = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def avoid_fault() -> None:
    """Set the flag with which the faulty version computes right sums; with others, do nothing."""
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") == FAULTY and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()


@cache
def warn_of_fault() -> None:
    """Warn once if sums are wrong in this process, because the flag came too late."""
    if version("jaxlib") == FAULTY and jax.default_backend() == "cpu" and not sums_are_right():
        warnings.warn(
            f"jaxlib {FAULTY} computes wrong sums on CPUs, so that draws may be wrong. The flag of "
            "XLA that avoids this came too late, because JAX was in use before numpyro_rwpo was "
            "imported. Install another version of jax and jaxlib, or import numpyro_rwpo first.",
            RuntimeWarning,
            stacklevel=2,
        )


def sums_are_right() -> bool:
    """Whether a compiled sum of products is right in the last of 32,769 rows."""
    with jax.ensure_compile_time_eval():
        rows = jnp.ones((2**15 + 1, 3), jnp.float32) * jnp.arange(2.0**15 + 1)[:, None]
        identity = jnp.eye(3, dtype=jnp.float32)
        sums = jax.jit(jax.vmap(lambda row: ((identity @ row) ** 2).sum()))(rows)
        return bool(abs(sums[-1] / (3 * 2.0**30) - 1) < 1e-5)
