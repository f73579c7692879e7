"""The documentation site: `make docs` builds it with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import markdown_docstrings  # noqa: E402
import tables  # noqa: E402

from edgerec_gym import __version__  # noqa: E402

project = "edgerec_gym"
author = "the edgerec_gym authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "generated"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code, as everywhere else
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of named tuples are documented once

html_theme = "furo"
html_title = "edgerec_gym"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Any) -> None:
    """Write what is generated from the code, and let docstrings hold Markdown tables."""
    app.connect("builder-inited", lambda _: tables.write_all(HERE / "generated"))
    app.connect("autodoc-process-docstring", markdown_docstrings.convert)
