"""Training of a flow: one compiled program, run a piece at a time.

A piece is a loop of gradient steps (Adam, cosine schedule, clipped gradients) inside one compiled
function. Between pieces, the progress bar is updated, early stopping is checked, and a checkpoint
is written. The random numbers of step k depend only on the key and k, so an interrupted run
continues exactly as if it had not been interrupted.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm.auto import tqdm

from numpyro_rwpo.flow.arguments import check_count
from numpyro_rwpo.flow.losses import Loss
from numpyro_rwpo.support.archive import read_archive, write_archive
from numpyro_rwpo.support.checks import check_range, check_rng_key

FlowT = TypeVar("FlowT", bound=eqx.Module)

# Gradient steps of a piece, after which the program returns to Python. That is often enough for a
# progress bar and checkpoints, and costs little compared to the steps.
_PIECE = 50


class TrainingResult(NamedTuple):
    """A trained flow and the history of its training.

    Attributes:
        flow: With validation data, the flow with the lowest validation loss; otherwise the last.
        losses: Training loss of every step taken, (steps,).
        monitored: After every piece of 50 steps, the validation loss or, without validation data,
            the mean training loss of the piece, (pieces,).
        seconds: Wall time from the start to the end of every piece in this process, including
            compilation, (pieces,).
    """

    flow: Any
    losses: np.ndarray
    monitored: np.ndarray
    seconds: np.ndarray


class _State(NamedTuple):
    """All that a run needs to continue; steps and pieces not yet reached are NaN in the arrays."""

    flow: Any
    optimizer: Any
    best_flow: Any
    step: jax.Array
    losses: jax.Array
    monitored: jax.Array


@cache
def _optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """The optimizer; it is cached, because compiled programs are looked up by its identity."""
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    # Gradients with a norm above 10 come from outlying draws.
    chain = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    # A step whose gradient is not finite is skipped.
    return optax.apply_if_finite(chain, max_consecutive_errors=num_steps)


@eqx.filter_jit
def _run_piece(
    state: _State,
    rng_key: jax.Array,
    num_steps: jax.Array,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    data: jax.Array | None,
    validation: jax.Array | None,
    batch_size: int,
) -> tuple[_State, jax.Array]:
    """Take ``num_steps`` steps, at most one piece; return the state and the monitored loss."""
    flow, static = eqx.partition(state.flow, eqx.is_inexact_array)

    def objective(flow: Any, rng_key: jax.Array, batch: jax.Array | None) -> jax.Array:
        return loss(eqx.combine(flow, static), rng_key, batch)

    def step(k: jax.Array, carry: Any) -> Any:
        flow, optimizer_state, losses = carry
        key_batch, key_loss = jax.random.split(jax.random.fold_in(rng_key, state.step + k))
        batch = None
        if data is not None:
            batch = data[jax.random.randint(key_batch, (batch_size,), 0, data.shape[0])]
        value, gradient = jax.value_and_grad(objective)(flow, key_loss, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, flow)
        return optax.apply_updates(flow, updates), optimizer_state, losses.at[k].set(value)

    losses = jnp.full(_PIECE, jnp.nan)
    flow, optimizer_state, losses = lax.fori_loop(
        0, num_steps, step, (flow, state.optimizer, losses)
    )
    if validation is None:
        monitored = jnp.nanmean(jnp.where(jnp.isfinite(losses), losses, jnp.nan))
    else:
        # The keys of steps have the numbers from 0 on.
        key_validation = jax.random.fold_in(rng_key, 2**31 - 1)
        monitored = objective(flow, key_validation, validation)
    flow = eqx.combine(flow, static)
    piece = state.step // _PIECE
    is_best = monitored <= jnp.nanmin(jnp.append(state.monitored, jnp.inf))
    best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), flow, state.best_flow)
    # Losses of steps that were not taken get an index out of bounds, so that they are dropped.
    index = jnp.where(jnp.arange(_PIECE) < num_steps, state.step + jnp.arange(_PIECE), 2**30)
    new = state._replace(
        flow=flow,
        optimizer=optimizer_state,
        best_flow=best,
        step=state.step + num_steps,
        losses=state.losses.at[index].set(losses, mode="drop"),
        monitored=state.monitored.at[piece].set(monitored),
    )
    return new, monitored


def _check_numbers(
    rng_key: Any, num_steps: Any, batch_size: Any, learning_rate: Any, patience: Any
) -> None:
    """Raise unless the arguments of :func:`train` are of the right types and in range."""
    check_rng_key(rng_key)
    check_count("num_steps", num_steps)
    check_count("batch_size", batch_size)
    check_range("learning_rate", learning_rate, 0.0, math.inf)
    if patience is not None:
        check_count("patience", patience)


def _run_settings(
    flow: eqx.Module, rng_key: jax.Array, num_steps: int, batch_size: int, learning_rate: float
) -> dict[str, str]:
    """What a run that continues from a checkpoint must share with the one that wrote it."""
    return _settings(flow) | {
        "rng_key": str(jax.random.key_data(rng_key).tolist()),
        "num_steps": str(num_steps),
        "batch_size": str(batch_size),
        "learning_rate": str(float(learning_rate)),
    }


def _run_pieces(
    state: _State,
    run_piece: Callable[[_State, int], tuple[_State, jax.Array]],
    after_piece: Callable[[_State], None],
    num_steps: int,
    patience: int | None,
    progress_bar: bool,
) -> tuple[_State, list[float]]:
    """Run pieces up to ``num_steps`` steps or until patience ends; the state, and times in seconds.

    Raises:
        FloatingPointError: The loss of a piece is not finite.
    """
    hidden = not progress_bar or "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ
    start, seconds = time.perf_counter(), list[float]()
    with tqdm(total=num_steps, initial=int(state.step), disable=hidden) as bar:
        while int(state.step) < num_steps and not _is_stuck(state.monitored, patience):
            number = min(_PIECE, num_steps - int(state.step))
            state, monitored = run_piece(state, number)
            if not np.isfinite(monitored):
                raise FloatingPointError(
                    f"The loss after {int(state.step)} steps is {float(monitored)}. Check the data "
                    "or density for values that are not finite, or lower `learning_rate`."
                )
            seconds.append(time.perf_counter() - start)
            after_piece(state)
            bar.update(number)
            bar.set_postfix_str(f"loss {float(monitored):.4g}", refresh=False)
    return state, seconds


def _result(state: _State, seconds: list[float], has_validation: bool) -> TrainingResult:
    """The result of a run that has ended; arrays are cut to the steps and pieces taken."""
    num_steps = int(state.step)
    return TrainingResult(
        flow=state.best_flow if has_validation else state.flow,
        losses=np.asarray(state.losses)[:num_steps],
        monitored=np.asarray(state.monitored)[: math.ceil(num_steps / _PIECE)],
        seconds=np.asarray(seconds),
    )


def train(
    rng_key: jax.Array,
    flow: FlowT,
    loss: Loss,
    data: Any = None,
    *,
    validation: Any = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress_bar: bool = True,
) -> TrainingResult:
    """Train a flow; the same arguments give the same flow.

    Args:
        rng_key: A random key.
        flow: :class:`SparseTransformerFlow` or :class:`NeuralODEFlow` to start from; not modified.
        loss: :class:`MaximumLikelihood`, :class:`EnergyDistance`, :class:`ReverseKL`, or any
            function of a flow, a key and a batch that returns a scalar. Two runs with equal losses
            share their compiled program.
        data: Samples to learn from, (n, dim); ``None`` for a loss that needs none.
        validation: Held-out samples, (n, dim), or ``None``.
        num_steps: Number of gradient steps, over which the learning rate decays to 0.
        batch_size: Number of samples per step, drawn with replacement.
        learning_rate: Initial learning rate of Adam.
        patience: Stop after this many pieces of 50 steps without a new lowest validation loss (or
            mean training loss); ``None`` for never.
        checkpoint: File to which the run is saved after every piece, and from which it continues if
            the file exists; ``None`` for no checkpoints.
        progress_bar: Whether to show a progress bar outside of continuous integration.

    Returns:
        The trained flow and the losses.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range or of the wrong shape, or ``checkpoint`` is from a run
            with another key, flow or setting. Data and loss are not compared.
        FloatingPointError: If a piece ends without a finite training or validation loss.
    """
    _check_numbers(rng_key, num_steps, batch_size, learning_rate, patience)
    data, validation = _samples("data", data, flow), _samples("validation", validation, flow)
    optimizer = _optimizer(float(learning_rate), num_steps)
    state = _start(flow, optimizer, num_steps)
    settings = _run_settings(flow, rng_key, num_steps, batch_size, learning_rate)

    def run_piece(state: _State, number: int) -> tuple[_State, jax.Array]:
        shared = loss, optimizer, data, validation, batch_size
        return _run_piece(state, rng_key, jnp.asarray(number), *shared)

    def save(state: _State) -> None:
        if checkpoint is not None:
            _write(Path(checkpoint), settings, state)

    if checkpoint is not None and Path(checkpoint).exists():
        state = _read("checkpoint", Path(checkpoint), settings, state)
    state, seconds = _run_pieces(state, run_piece, save, num_steps, patience, progress_bar)
    return _result(state, seconds, validation is not None)


def save_flow(path: str | os.PathLike[str], flow: eqx.Module) -> None:
    """Write a flow to a file, which is replaced atomically.

    Args:
        path: File, overwritten if it exists.
        flow: The flow.

    Raises:
        OSError: If the file cannot be written; an existing file is then unchanged.
    """
    _write(Path(path), _settings(flow), flow)


def load_flow(path: str | os.PathLike[str], like: FlowT) -> FlowT:
    """Read a flow that :func:`save_flow` wrote.

    Args:
        path: File.
        like: A flow made with the same arguments; the values of its arrays do not matter.

    Returns:
        The saved flow.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds a flow of another kind, size or settings.
    """
    return _read("path", Path(path), _settings(like), like)


def _samples(name: str, values: Any, flow: Any) -> jax.Array | None:
    if values is None:
        return None
    values = jnp.asarray(values, jnp.result_type(float))
    if values.ndim != 2 or values.shape[1] != flow.dim or values.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape (n, {flow.dim}); got {values.shape}.")
    if not bool(jnp.isfinite(values).all()):
        raise ValueError(f"`{name}` must be finite; got values that are nan or infinite.")
    return values


def _start(flow: Any, optimizer: optax.GradientTransformation, num_steps: int) -> _State:
    return _State(
        flow=flow,
        optimizer=optimizer.init(eqx.filter(flow, eqx.is_inexact_array)),
        best_flow=flow,
        step=jnp.zeros((), int),
        losses=jnp.full(num_steps, jnp.nan),
        monitored=jnp.full(math.ceil(num_steps / _PIECE), jnp.nan),
    )


def _is_stuck(monitored: jax.Array, patience: int | None) -> bool:
    seen = np.asarray(monitored)
    seen = seen[~np.isnan(seen)]
    return patience is not None and seen.size > 0 and seen.size - 1 - seen.argmin() >= patience


def _settings(flow: Any) -> dict[str, str]:
    """Class and static fields of a flow, as strings."""
    fields = [field for field in dataclasses.fields(flow) if field.metadata.get("static")]
    return {"class": type(flow).__name__} | {f.name: repr(getattr(flow, f.name)) for f in fields}


def _write(path: Path, settings: dict[str, str], tree: Any) -> None:
    """Write the settings and the arrays of a pytree, numbered in the order of its leaves."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    arrays = {str(place): np.asarray(leaf) for place, leaf in enumerate(leaves)}
    write_archive(path, {"flow": settings}, arrays)


def _read(name: str, path: Path, settings: dict[str, str], like: Any) -> Any:
    """Read what ``_write`` wrote; raise ``ValueError`` if settings or array shapes differ."""
    header, arrays = read_archive(path)
    saved = header.get("flow", {})
    for key, value in settings.items():
        if saved.get(key) != value:
            raise ValueError(
                f"`{name}`: {path} was written with {key} = {saved.get(key)}; "
                f"now it is {value}. Use the same, or another file."
            )
    expected, static = eqx.partition(like, eqx.is_array)
    leaves, structure = jax.tree.flatten(expected)
    found = [arrays[str(place)] for place in range(len(arrays))]
    if [(x.shape, x.dtype) for x in leaves] != [(x.shape, x.dtype) for x in found]:
        raise ValueError(
            f"`{name}`: sizes or kinds of the arrays in {path} differ from those of this flow."
        )
    return eqx.combine(jax.tree.unflatten(structure, map(jnp.asarray, found)), static)
