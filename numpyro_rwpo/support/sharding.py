"""The placement of an ensemble's particles: on one device, or sharded over a mesh of devices.

The code of the sampler is the same for both. If particles are sharded, the few hints in this module
tell XLA's partitioner which arrays have a row for each particle; it then inserts sums over devices
where the code sums over particles. Operations that would move whole particles between devices are
kept behind a branch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


class Placement(NamedTuple):
    """Devices that share the particles, and the name of the axis of chains.

    Attributes:
        mesh: mesh of devices; with ``None``, everything stays where the data are.
        axis: name of the mesh axis over which particles are sharded.
        chain_axis: name of the axis of the vmap over chains, ``None`` without such a vmap.
    """

    mesh: Mesh | None = None
    axis: str = ""
    chain_axis: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle devices by their ids."""
        if self.mesh is None:
            return Placement, tuple(self)
        numbers = np.vectorize(lambda device: device.id)(self.mesh.devices)
        return _placement_on, (numbers, self.mesh.axis_names, self.axis, self.chain_axis)

    @property
    def number(self) -> int:
        """Number of devices over which the particles are sharded."""
        return 1 if self.mesh is None else self.mesh.shape[self.axis]

    @property
    def num_chains(self) -> int:
        """Number of chains that run side by side."""
        return 1 if self.chain_axis is None else lax.axis_size(self.chain_axis)

    def chain_mean(self, x: jax.Array) -> jax.Array:
        """The mean over the chains that run side by side."""
        return x if self.chain_axis is None else lax.pmean(x, self.chain_axis)

    def rows(self, tree: Tree) -> Tree:
        """Shard the rows of arrays that have a row for each particle."""
        return self._constrain(tree, PartitionSpec(self.axis))

    def whole(self, tree: Tree) -> Tree:
        """Replicate arrays, so that each device has a copy."""
        return self._constrain(tree, PartitionSpec())

    def _constrain(self, tree: Tree, spec: PartitionSpec) -> Tree:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, sharding), tree)

    def row(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """One row of an array that has a row for each particle."""
        if self.mesh is None:
            return lax.dynamic_index_in_dim(x, index, 0, False)
        # This becomes a sum over devices, whereas a dynamic slice would gather all rows on every
        # device.
        return self.whole(jnp.take(x, index[None], axis=0, mode="clip")[0])

    def where_needed(self, needed: jax.Array, change: Callable[[Tree], Tree], tree: Tree) -> Tree:
        """``change(tree)``, where ``change`` has no effect unless ``needed`` is true somewhere.

        If particles are sharded, the change is skipped when it is not needed, because it moves rows
        between devices.
        """
        if self.mesh is None:
            return change(tree)
        is_needed = jnp.any(needed)
        if self.chain_axis is not None:  # the same for all chains, so vmap keeps the branch
            is_needed = lax.pmax(is_needed, self.chain_axis)
        return lax.cond(is_needed, change, lambda same: same, tree)


ONE_PLACE = Placement()


def _automatic(devices: np.ndarray[Any, Any], names: tuple[str, ...]) -> Mesh:
    # Meshes from jax.make_mesh have explicit axes, on which the partitioner makes no decisions.
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def _placement_on(
    numbers: np.ndarray[Any, Any], names: tuple[str, ...], axis: str, chain_axis: str | None
) -> Placement:
    """Rebuild a placement that was pickled, on the devices with these ids."""
    devices = {device.id: device for device in jax.devices()}
    found = np.vectorize(devices.__getitem__, otypes=[object])(numbers)
    return Placement(_automatic(found, names), axis, chain_axis)


def check_mesh(mesh: Any, particle_axis: Any) -> Placement:
    """The placement given by the arguments ``mesh`` and ``particle_axis`` of ``RWPO``.

    Raises:
        TypeError: ``mesh`` is not a ``jax.sharding.Mesh``.
        ValueError: ``particle_axis`` does not name one of its axes, or is given without a mesh.
    """
    if mesh is None:
        if particle_axis is not None:
            raise ValueError(
                f"`particle_axis` names an axis of `mesh`; got {particle_axis!r} without a mesh."
            )
        return ONE_PLACE
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "`mesh` must be a jax.sharding.Mesh such as jax.make_mesh((8,), ('particles',)); got "
            f"{mesh!r}."
        )
    names = mesh.axis_names
    if particle_axis is None and len(names) == 1:
        particle_axis = names[0]
    if particle_axis not in names:
        raise ValueError(
            f"`particle_axis` must be one of the axes of `mesh`, {names}; got {particle_axis!r}."
        )
    return Placement(_automatic(mesh.devices, names), particle_axis)


def check_use(num_particles: int, placement: Placement) -> None:
    """Check that the particles can be sharded in this context.

    Raises:
        ValueError: the devices would not get the same number of particles, or each of them runs its
            own chain.
    """
    if placement.mesh is None:
        return
    if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
        raise ValueError(
            "`mesh` shares the particles of a chain out over devices, on which "
            "`chain_method='parallel'` would put whole chains: use 'vectorized', or no mesh."
        )
    if num_particles % placement.number:
        raise ValueError(
            f"`num_particles` must be a multiple of the {placement.number} devices along the mesh "
            f"axis '{placement.axis}'; got {num_particles}."
        )
