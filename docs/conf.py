"""Settings of the documentation site. ``make docs`` builds it into ``build/docs``; a warning ends the build.

The root of the checkout is the source folder, not ``docs/``: the README, the changelog and the notebooks are
pages as well, and links between all of them are the relative ones that a git host follows, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import dsd_env  # noqa: E402

project = "dsd_env"
author = "The dsd_env contributors"
copyright = f"2026, {author}"
version = release = dsd_env.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "gallery",
    "markdown_docstrings",
    "scenario_fields",
    "units",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "notebooks/**.ipynb",
    "configs/policies/**.md",
    "validation/README.md",
]
exclude_patterns = [".*", "build", "dist", "runs", "out", "demo_out"]

# Markdown: headings have the anchors of a git host; code without a language is text.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # text is often a command or a name

# Notebooks are shown with the outputs that they were committed with; tests run them.
nb_execution_mode = "off"

# Docstrings: Google's form; single backticks are code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"dsd_env {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
