"""How hard XLA should try to make a program of ours fast."""

from functools import cache
from typing import Any

import jax

# Up to this many elements in the particles of all chains, and this many computed by one gradient of
# them all, a warm-up of some hundred gradients runs for less time than the first level of
# optimization takes. Higher levels are never worth theirs.
SMALL, SMALL_GRADIENT = 2**15, 2**23


def compiler_options(num_elements: int, gradient_size: int = 0) -> dict[str, Any] | None:
    """Compiler options for a program that runs once.

    Args:
        num_elements: number of elements of its particles.
        gradient_size: number of elements that one gradient of them all computes.

    Returns:
        ``None`` on devices other than CPUs, which do not know these options.
    """
    if jax.default_backend() != "cpu":
        return None
    is_small = num_elements <= SMALL and gradient_size <= SMALL_GRADIENT
    options = {
        "xla_backend_optimization_level": 0 if is_small else 1,
        "xla_cpu_use_fusion_emitters": False,
    }
    # Without optimization, there is too little to do for several threads.
    options |= {"xla_cpu_parallel_codegen_split_count": 1} if is_small else {}
    return _known(tuple(options.items()))


Options = tuple[tuple[str, Any], ...]


@cache
def _known(options: Options) -> dict[str, Any]:
    """Those of the options that this version of XLA has: an unknown one would be an error."""
    if _is_known(options):
        return dict(options)
    return {name: value for name, value in options if _is_known(((name, value),))}


def _is_known(options: Options) -> bool:
    """Whether an empty program compiles with the options."""
    program = jax.jit(lambda x: x, compiler_options=dict(options))
    try:
        program.lower(jax.ShapeDtypeStruct((), "float32")).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
