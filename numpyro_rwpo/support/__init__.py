"""General utilities that the other subpackages use and that do not depend on them."""
