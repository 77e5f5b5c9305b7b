"""The page's templates, style and script, and how they are filled in: everything is escaped."""

import functools
import importlib.resources
import json
from typing import Any

import jinja2
from markupsafe import Markup


def render(name: str, **values: Any) -> str:
    """Returns a template with its places filled in; what is not marked as HTML is escaped."""
    return _environment().get_template(name).render(**values)


def island(document: Any) -> Markup:
    """Returns a document as compact JSON for a page, which no element of it can be ended by."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


@functools.cache
def asset(name: str) -> Markup:
    """Returns a file of this folder as it is."""
    return Markup((importlib.resources.files(__name__) / name).read_text("utf-8"))


@functools.cache
def vega_lite() -> Markup:
    """Returns Vega-Lite, Vega and vega-embed as one script, for a page without a network."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(bundle.replace("</script", "<\\/script"))


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vlm_jax.report", "web"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
