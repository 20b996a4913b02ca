"""Sums over the groups of a partition of coordinates, without an array of groups by coordinates."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The group of each coordinate of one row: numbers from 0 on.
Labels = tuple[int, ...]


class _Plan(NamedTuple):
    """How to gather the members of all groups, one array for each size of a group.

    Attributes:
        members: for each size the coordinates of its groups, (groups of that size, size).
        place: the place of each coordinate's group in the order of ``members``, (row,).
        sizes: sizes of the groups in that order.
        labels: labels of the groups in that order.
    """

    members: tuple[np.ndarray, ...]
    place: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


@lru_cache(maxsize=256)
def _plan(labels: Labels) -> _Plan:
    label = np.asarray(labels)
    order, counts = np.argsort(label, kind="stable"), np.bincount(label)
    starts = np.cumsum(counts) - counts
    members, ordered = [], []
    for size in np.unique(counts):
        groups = np.flatnonzero(counts == size)
        members.append(order[starts[groups][:, None] + np.arange(size)])
        ordered.append(groups)
    group_order = np.concatenate(ordered)
    place = np.empty_like(group_order)
    place[group_order] = np.arange(group_order.size)
    return _Plan(tuple(members), place[label], counts[group_order], group_order)


def group_sizes(labels: Labels) -> np.ndarray:
    """Size of the group of each coordinate of one row, (row,)."""
    plan = _plan(labels)
    return plan.sizes[plan.place]


def group_sums(x: jax.Array, labels: Labels) -> jax.Array:
    """For each coordinate, the sum over its group.

    Args:
        x: Array (..., dim), whose last axis holds one or more rows of ``len(labels)`` coordinates.
        labels: The group of each coordinate of a row.

    Returns:
        The sums, in the shape of ``x``.
    """
    rows = x.reshape(*x.shape[:-1], -1, len(labels))
    plan = _plan(labels)
    if len(plan.sizes) == 1:
        return jnp.broadcast_to(rows.sum(-1, keepdims=True), rows.shape).reshape(x.shape)
    sums = jnp.concatenate([rows[..., index].sum(-1) for index in plan.members], -1)
    return sums[..., plan.place].reshape(x.shape)


def labels_of(groups: Sequence[Sequence[int]]) -> Labels:
    """The label of each coordinate, from lists of the coordinates of the groups.

    Raises:
        TypeError: If ``groups`` is not a sequence of sequences of integers.
        ValueError: If a group is empty, or the groups do not hold every coordinate from 0 on once.
    """
    try:
        members = [np.asarray(list(group)) for group in groups]
    except TypeError:
        members = []
    if not members or any(x.ndim != 1 or (x.size and x.dtype.kind not in "iu") for x in members):
        raise TypeError(
            f"`groups` must be lists of coordinates, such as [[0, 2], [1, 3, 4]]; got {groups!r}."
        )
    number = sum(x.size for x in members)
    if any(x.size == 0 for x in members):
        raise ValueError(f"`groups` must have no empty group; got {groups!r}.")
    flat = np.concatenate(members)
    missing = np.setdiff1d(np.arange(number), flat)
    if missing.size:
        raise ValueError(
            f"`groups` must hold each of the coordinates 0 to {number - 1} once, as it has "
            f"{number} entries; {missing[:5].tolist()} are missing and "
            f"{np.setdiff1d(flat, np.arange(number))[:5].tolist()} are out of range. "
            "An entry that occurs twice takes the place of one that is missing."
        )
    labels = np.empty(number, int)
    for label, coordinates in enumerate(members):
        labels[coordinates] = label
    return tuple(labels.tolist())
