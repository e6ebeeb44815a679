"""The site: Sphinx reads the Markdown of this directory and executes its notebooks. `scripts/docs` builds it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_site"))

from hf_pdyn import __version__  # noqa: E402

project = "hf_pdyn"
author = "The hf_pdyn authors"
copyright = author  # noqa: A001  (Sphinx's name)
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "pages", "options"]
exclude_patterns = ["_build", "_site", "upstream"]  # upstream: proposals to other projects, which are files for loading
default_role = "code"
nitpicky = False

myst_heading_anchors = 4
# A page's Python and shell blocks are highlighted as what they are; YAML and text too.
myst_enable_extensions = ["colon_fence"]

nb_execution_mode = os.environ.get("HF_PDYN_NOTEBOOKS", "force")
nb_execution_timeout = 180  # seconds, of one cell; `pages` refuses a notebook that takes longer as a whole
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

autodoc_typehints = "none"  # the signatures have them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

smartquotes = False  # of --spectra it would make one dash
# For the notebooks' kernels: tqdm's advice names a path of this machine.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

html_theme = "furo"
html_title = f"hf_pdyn {release}"
html_sourcelink_suffix = ""
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
