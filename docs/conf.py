"""Sphinx settings of the documentation: `make docs` writes the site to build/docs, without network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import edgekit

project = "edgekit"
author = "the edgekit authors"
version = release = edgekit.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "generated",
]
exclude_patterns = ["_extensions"]
suppress_warnings = ["ref.python"]  # attributes of several classes may share a name
language = "en"
smartquotes = False  # options begin with two dashes

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links such as trust.md#sealed-bundles

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = False
napoleon_use_param = False  # a docstring may describe several arguments in one line

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"edgekit {release}"
html_theme_options = {"source_view_link": ""}
html_copy_source = False
html_show_sphinx = False
