"""Command lines of the gallery's examples while the documentation is built."""

from typing import Any


def fast(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The arguments with which the continuous integration runs an example."""
    return ["--fast"]
