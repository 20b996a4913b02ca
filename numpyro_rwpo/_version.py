"""The version, in one place: hatchling reads it for the metadata, the package re-exports it."""

__version__ = "0.2.0"
