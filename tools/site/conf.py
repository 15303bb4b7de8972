"""Configuration of Sphinx."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

project = "stageflow"
author = "the stageflow authors"
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.graphviz"]
myst_heading_anchors = 4

graphviz_output_format = "svg"

html_theme = "furo"
html_title = f"stageflow {version}"
html_baseurl = _PROJECT["urls"]["Documentation"]
html_copy_source = False  # build.py writes the Markdown of each page next to it
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
