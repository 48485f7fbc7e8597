"""A page as one HTML file, from a template of ours and what it shows."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlmtune.report import numbers as wording
from vlmtune.report.files import style


def to_html(template: str, **content: Any) -> str:
    """A page as text: styles, script, charts and images inside.

    Args:
        template: a file in templates/ that extends page.html.jinja.
    """
    environment = Environment(
        loader=PackageLoader("vlmtune.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update({"w": wording})
    return environment.get_template(template).render(
        **content, style=Markup(style("chart.css") + style("style.css")), script=Markup(style("script.js"))
    )
