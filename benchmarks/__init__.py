"""Problems with reference posteriors and scripts that measure the package; not in the wheel."""
