"""Settings of the documentation.

``sphinx-build docs docs/_build/html`` runs every example of the gallery at full length (about ten
minutes on two cores). With ``-t fast`` they make few draws and are compiled without optimization;
the continuous integration builds this version, to check that everything runs. With
``-t no_gallery`` no example is run.
"""

import doctest
import os
import runpy
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

IS_FAST = tags.has("fast")  # noqa: F821 - Sphinx puts `tags` into this file
if IS_FAST:  # set before JAX starts, because most of an example's time is compilation
    flags = runpy.run_path(str(HERE.parent / "tests" / "quick_compilation.py"))["FLAGS"]
    os.environ.setdefault("XLA_FLAGS", flags)
os.environ["CI"] = "true"  # makes NumPyro show no progress bars
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

from numpyro_rwpo import __version__  # noqa: E402

jax.Array.__module__, jax.Array.__qualname__ = "jax", "Array"  # the name that users know

project = "numpyro-rwpo"
author = "The numpyro-rwpo developers"
copyright = "the numpyro-rwpo developers, Apache License 2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.md5", "gallery/*.py", "gallery/*.ipynb"]
nitpicky = False  # no inventory is loaded for the types of JAX and NumPyro

# ---------------------------------------------------------------------------------------- pages
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = f"numpyro-rwpo {__version__}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the sidebar already has the search
}
html_show_sourcelink = False

# ------------------------------------------------------------------------------------ reference
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Without Sphinx's IGNORE_EXCEPTION_DETAIL, with which only the types of errors would be compared.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1
# The imports that the examples in pages and docstrings assume.
doctest_global_setup = """
import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_rwpo
from numpyro_rwpo import *
from numpyro_rwpo.distributions import FusedLaplace, GroupLaplace, NuclearNorm
"""

# -------------------------------------------------------------------------------------- gallery
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",  # these are run; the others are shown as they are
    "ignore_pattern": r"/developer/",
    "within_subsection_order": "ExampleTitleSortKey",
    "reset_modules": (),
    "image_scrapers": ("matplotlib",),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "plot_gallery": not tags.has("no_gallery"),  # noqa: F821
    "write_computation_times": False,
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "capture_repr": ("_repr_html_",),
    "matplotlib_animations": False,
    "default_thumb_file": None,
}

if IS_FAST:
    sphinx_gallery_conf["reset_argv"] = "gallery_arguments.fast"
    if sphinx_gallery_conf["plot_gallery"]:
        sphinx_gallery_conf["parallel"] = 2

# ArviZ 0.23 warns at its first import of the day that version 1.0 is different.
warnings.filterwarnings("ignore", message=r"\sArviZ is undergoing", category=FutureWarning)
