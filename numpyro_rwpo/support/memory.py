"""Checks whether an ensemble fits into memory, and a new program into the process's memory maps."""

import os
import warnings
from pathlib import Path

import jax


def device_bytes() -> int | None:
    """Memory of the first device of this process; ``None`` if the device does not report it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def check_memory(
    num_chains: int, num_particles: int, dim: int, itemsize: int, *, attention: str, dense: bool
) -> None:
    """Raise if an ensemble cannot fit; one that passes may still be too large.

    Args:
        num_chains: chains on one device.
        num_particles: of an ensemble, on one device.
        dim: of a particle.
        itemsize: bytes of a number.
        attention: name of the attention head.
        dense: whether the metric is dense.

    Raises:
        MemoryError: the minimum memory of the run exceeds that of the device.
    """
    limit = device_bytes()
    # At least eight arrays of the ensemble's size exist at the same time in a step: positions and
    # gradients before and after, momenta, forces, random numbers, whitened positions.
    ensemble = 8 * num_chains * num_particles * dim * itemsize
    # A dense metric has five square arrays: two moments, factor, inverse, covariance.
    metric = 5 * num_chains * dim**2 * itemsize if dense else 0
    if limit is None or ensemble + metric <= limit:
        return
    advice = "lower `num_particles`, or run fewer chains at a time (`chain_method='sequential'`)"
    if metric > ensemble:
        advice = "leave the metric diagonal (`dense_mass=False`)"
    elif attention == "joint":
        advice += "; as many particles as this are for attention='copula', whose time is linear in "
        advice += "them: that of 'joint' grows with their square"
    raise MemoryError(
        f"{num_chains} chains x {num_particles} particles x {dim} dimensions need at least "
        f"{(ensemble + metric) / 2**30:.3g} GiB, and the device has {limit / 2**30:.3g}: {advice}."
    )


def memory_maps() -> tuple[int, int] | None:
    """Memory maps of this process, and how many it may have; ``None`` where that is not known."""
    try:
        used = Path("/proc/self/maps").read_text().count("\n")
        return used, int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):  # Only Linux has these files.
        return None


def check_memory_maps() -> None:
    """Warn where compiled programs have used up most of the memory maps of this process.

    XLA aborts the process when it cannot get any more.

    Warns:
        UserWarning: four fifths of the maps are in use.
    """
    maps = memory_maps()
    # The last fifth is enough for some ten runs on data of a new shape.
    if maps is None or maps[0] <= 0.8 * maps[1]:
        return
    warnings.warn(
        f"Compiled programs use most of the memory maps that Linux allows a process: {maps[0]:,} "
        f"of {maps[1]:,}. XLA aborts the process when there are no more. Call jax.clear_caches() "
        "between runs on data of different shapes; it frees all compiled programs and no results.",
        stacklevel=2,
    )
