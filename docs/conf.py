"""Sphinx: ``make docs`` builds the site from the repository's root, so that every link holds."""

from __future__ import annotations

import importlib
import re
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

import pyro_vmonf

project = "pyro_vmonf"
author = "the authors of pyro_vmonf"
copyright = author
release = pyro_vmonf.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
# The source folder is the repository: links between its files are the same here and there.
include_patterns = [
    "docs/**.md",
    "notebooks/*.ipynb",
    "benchmarks/RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".venv", "out", "build", "**/.ipynb_checkpoints", "docs/_static/**"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks show the outputs that are committed with them
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # what torch and Pyro say of a method they say themselves
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"pyro_vmonf {release}"
html_static_path = ["_static"]
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = [("mathematics.js", {"defer": "defer"})]
mathjax_path = "katex/katex.min.js"  # formulas are typeset without a network
copybutton_prompt_text = r">>> |\.\.\. |\$ "  # what is copied has no prompts
copybutton_prompt_is_regexp = True
html_extra_path = ["_extra"]  # the first address leads to the first page
html_copy_source = False

linkcheck_timeout = 20
linkcheck_retries = 2

# A broken reference is an error. Exceptions are other projects, and types of signatures outside the
# interface.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|matplotlib|numpy|os|pathlib|pyro|sklearn|torch)\..*"),
    (r"py:.*", r"Tensor|Distribution|Transform|DataTree|InferenceData|nn\.Module|dict\[str|rows"),
    (r"py:class", r"Activation|End|Precision|Way"),
    # Of the signature of fit, whose options stand in a table of their own.
    (r"py:class", r"Callback|Compile|ELBO|Keep|LRScheduler|Optimizer|Schedule|nn\.Parameter|Axes"),
    (r"py:.*", r"pyro_vmonf\.(\w+\.)+(Box|Columns|Selected|WithParameters|Rows|TensorSource)"),
]

EXTENSION_POINTS = {"FlowTransform", "Posterior", "Term", "Weights"}


def show_member(
    app: Any, what: str, name: str, found: Any, skip: bool, options: Any
) -> bool | None:
    """Show the methods that a class of one's own has to write, although their class says what."""
    owner = getattr(found, "__qualname__", "").split(".")[0]
    wanted = owner in EXTENSION_POINTS and name in ("forward", "reset_parameters")
    return False if wanted else None


def home_of(name: str) -> str | None:
    """Return where an object of this library is defined, as module and qualified name."""
    module, _, rest = name.partition(".")
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        found = getattr(found, part, None)
    if found is None or not hasattr(found, "__qualname__"):
        return None
    return f"{found.__module__}.{found.__qualname__}"


def documented(target: str, module: str | None, objects: Any) -> str | None:
    """Return the documented name of a target: a bare name, or a name by package or module."""
    names = [target]
    if not target.startswith("pyro_vmonf."):
        names = [
            f"{module}.{target}",
            *(known for known in objects if known.endswith(f".{target}")),
        ]
    for name in filter(lambda name: name.startswith("pyro_vmonf."), names):
        home = home_of(name)
        short = re.sub(r"^pyro_vmonf\.(?:[a-z_]+\.)+", "pyro_vmonf.", home or "")
        for found in (name, home, short):
            if found in objects:
                return found
    return None


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Find what a docstring refers to."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    found = documented(node["reftarget"], node.get("py:module"), domain.objects)
    if found is None:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found, node, contnode)


def link_names(app: Any, doctree: nodes.document, page: str) -> None:
    """Link the library's names that stand in the text as code, such as ``pyro_vmonf.VMoNF``."""
    objects = app.env.get_domain("py").objects
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext()
        if isinstance(node.parent, nodes.reference) or not name.startswith("pyro_vmonf."):
            continue
        found = documented(name, None, objects)
        if found is not None:
            entry = objects[found]
            where = (page, entry.docname, entry.node_id)
            node.replace_self(make_refnode(app.builder, *where, node.deepcopy(), found))


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("autodoc-skip-member", show_member)
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_names)
