"""Command lines of the gallery's examples while the documentation is built."""

from typing import Any


def fast(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """Arguments with which the continuous integration runs an example."""
    return ["--fast"]
