"""Arrays and a header in one file that is replaced whole or not at all.

The format is NumPy's own ``.npz``: what a run holds are a few dozen plain arrays, every array is
checked by the archive's CRC-32, no further package is needed to read it, and nothing in it is
unpickled. (Orbax is made for parameters spread over many hosts; it would bring a storage engine
with it.)
"""

import errno
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_rwpo._version import __version__

FORMAT = 1
_HEADER = "header"
_PACKAGE = "numpyro-rwpo"
# What reading a file of another kind, or a damaged one, has raised.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
)


def write_archive(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write ``arrays`` and a JSON ``header`` to ``path``; a file there is replaced at the end.

    Until then it is whole: the data go to a temporary file in the same folder, are on the disk
    before it is renamed, and the rename is atomic. A process that is killed on the way leaves a
    file ``.NAME.*.tmp`` behind that nothing reads.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The old file is
            still there.
    """
    about = {"package": _PACKAGE, "version": __version__, "format": FORMAT, **header}
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **{_HEADER: np.array(json.dumps(about))}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(error, path) from error
        raise
    _synchronise_folder(path.parent)


def _explained(error: OSError, path: Path) -> OSError:
    old = "the file that was there before is unchanged" if path.exists() else "no file was made"
    what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    message = (
        f"Cannot write '{path}': {what}; {old}. Make room (or choose another folder) and run "
        "again from the last checkpoint."
    )
    return OSError(error.errno, message)


def _synchronise_folder(folder: Path) -> None:
    """Have the rename on the disk, too, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that :func:`write_archive` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, is something else, or has a format of the future.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        is_ours = header["package"] == _PACKAGE
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"'{path}' must be a file written by numpyro_rwpo; it is damaged or something else "
            f"({error}). Take an older copy, or start the run anew."
        ) from error
    if not is_ours or header["format"] != FORMAT:
        raise ValueError(
            f"'{path}' has format {header.get('format')} of {header['package']} "
            f"{header.get('version')}; this is {_PACKAGE} {__version__}, which reads format "
            f"{FORMAT}. Read it with the version that wrote it."
        )
    return header, arrays
