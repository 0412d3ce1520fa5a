"""Sphinx configuration."""

from importlib.metadata import version as _version

project = "medimg"
author = "The medimg developers"
copyright = "2026, The medimg developers"
release = version = _version("medimg")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
exclude_patterns = ["_build", "scale_*.md"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"medimg {release}"

# Docstrings describe types in words, which keeps signatures short.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Base classes outside medimg: inventories of other projects are not fetched, so the build needs no network.
nitpick_ignore_regex = [
    (
        r"py:class",
        r"(Exception|OSError|EOFError|ValueError|ImportError|UserWarning|torch\..*|collections\..*|typing\..*)",
    ),
    (r"py:(class|mod)", r"(warnings|Dataset|Module|Sequence|tuple|NamedTuple|int|str|float)"),
]


def _sort_members_by_source() -> None:
    """Give autodoc the order of members in the source: public classes name ``medimg`` as their module."""
    from sphinx.pycode import ModuleAnalyzer

    import medimg

    homes = sorted(set(medimg._HOMES.values()))
    source = "\n".join(ModuleAnalyzer.for_module(home).code for home in homes)
    ModuleAnalyzer.cache["module", "medimg"] = ModuleAnalyzer.for_string(source, "medimg")


_sort_members_by_source()
