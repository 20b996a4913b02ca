"""Where the particles of an ensemble are: on one device, or shared out over a mesh of them.

The code of the sampler is the same for both. Where particles are shared out, these few hints tell
XLA's partitioner which arrays have a row per particle; it then adds the sums over devices where the
code sums over particles. What would move whole particles between devices is kept behind a branch.
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
        mesh: of devices; ``None`` leaves everything to where the data are.
        axis: of the mesh, over which particles are shared out.
        chain_axis: name under which the code is vmapped over chains, ``None`` where it is not.
    """

    mesh: Mesh | None = None
    axis: str = ""
    chain_axis: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle devices by their numbers."""
        if self.mesh is None:
            return Placement, tuple(self)
        numbers = np.vectorize(lambda device: device.id)(self.mesh.devices)
        return _placement_on, (numbers, self.mesh.axis_names, self.axis, self.chain_axis)

    @property
    def number(self) -> int:
        """Of devices that the particles are shared out over."""
        return 1 if self.mesh is None else self.mesh.shape[self.axis]

    def rows(self, tree: Tree) -> Tree:
        """Arrays with a row for each particle, the rows shared out."""
        return self._constrain(tree, PartitionSpec(self.axis))

    def whole(self, tree: Tree) -> Tree:
        """Arrays of which each device has a copy."""
        return self._constrain(tree, PartitionSpec())

    def _constrain(self, tree: Tree, spec: PartitionSpec) -> Tree:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, sharding), tree)

    def row(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """One row of an array that has one for each particle."""
        if self.mesh is None:
            return lax.dynamic_index_in_dim(x, index, 0, False)
        # A sum over devices of what each has; a dynamic slice would bring all rows to all devices.
        return self.whole(jnp.take(x, index[None], axis=0, mode="clip")[0])

    def where_needed(self, needed: jax.Array, change: Callable[[Tree], Tree], tree: Tree) -> Tree:
        """``change(tree)``, which leaves all as it is unless ``needed`` somewhere.

        Shared-out particles are then spared the change, because it moves rows between devices.
        """
        if self.mesh is None:
            return change(tree)
        is_needed = jnp.any(needed)
        if self.chain_axis is not None:  # the same for all chains: stays a branch under vmap
            is_needed = lax.pmax(is_needed, self.chain_axis)
        return lax.cond(is_needed, change, lambda same: same, tree)


ONE_PLACE = Placement()


def _automatic(devices: np.ndarray[Any, Any], names: tuple[str, ...]) -> Mesh:
    # Meshes of jax.make_mesh have explicit axes, on which the partitioner may not decide anything.
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def _placement_on(
    numbers: np.ndarray[Any, Any], names: tuple[str, ...], axis: str, chain_axis: str | None
) -> Placement:
    """What :meth:`Placement.__reduce__` took apart, on the devices with these numbers."""
    devices = {device.id: device for device in jax.devices()}
    found = np.vectorize(devices.__getitem__, otypes=[object])(numbers)
    return Placement(_automatic(found, names), axis, chain_axis)


def check_mesh(mesh: Any, particle_axis: Any) -> Placement:
    """The placement that the arguments ``mesh`` and ``particle_axis`` of ``RWPO`` mean.

    Raises:
        TypeError: ``mesh`` is not a ``jax.sharding.Mesh``.
        ValueError: ``particle_axis`` does not name one of its axes, or comes without a mesh.
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
    """Check that the particles can be shared out here.

    Raises:
        ValueError: the devices would not get the same number of particles, or each of them runs a
            chain of its own.
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
