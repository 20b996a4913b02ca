"""Arrays and a header in one file that is replaced atomically.

The format is NumPy's own ``.npz``: the state of a run consists of a few dozen plain arrays, every
array is checked by the CRC-32 of the archive, no further package is needed to read it, and nothing
in it is unpickled. (Orbax is made for parameters spread over many hosts, and would add a storage
engine to the dependencies.)
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
# Exceptions that NumPy raises when it reads a file of another kind, or a damaged one.
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
    """Write ``arrays`` and a JSON ``header`` to ``path``, replacing an existing file at the end.

    Until then the existing file is intact: the data are written to a temporary file in the same
    folder and flushed to disk before it is renamed, and the rename is atomic. A process that is
    killed before the rename leaves behind a file ``.NAME.*.tmp``, which is never read.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. An existing file
            is unchanged.
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
    _synchronize_folder(path.parent)


def _explained(error: OSError, path: Path) -> OSError:
    old = "the file that was there before is unchanged" if path.exists() else "no file was made"
    what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    message = (
        f"Cannot write '{path}': {what}; {old}. Make room (or choose another folder) and run "
        "again from the last checkpoint."
    )
    return OSError(error.errno, message)


def _synchronize_folder(folder: Path) -> None:
    """Flush the rename to disk, too, on systems where folders can be opened (not on Windows)."""
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
        ValueError: the file is damaged, is of another kind, or has the format of a later version.
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
