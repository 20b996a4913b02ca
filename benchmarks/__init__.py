"""Judged problems and scripts that measure the package; not part of the wheel."""
