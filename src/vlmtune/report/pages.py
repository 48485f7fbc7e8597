"""A report as files: one HTML page, Markdown, JSON and its charts. Three renderers over one list of sections.

In: a `Report`. Out: NAME.html (one file, offline), NAME.md, NAME.json and charts/ID.svg beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlmtune.files import write_json, write_text
from vlmtune.report.charts import style
from vlmtune.report.section import Report, Section, Table

CHARTS = "charts"


def write_report(page: Path, report: Report) -> Path:
    """Write the page and its other files beside it; returns its path. Raises RunFolderError if the disk is full."""
    for section in _walk(report.sections):
        if section.chart is not None:
            write_text(page.parent / CHARTS / f"{section.id}.svg", section.chart.standalone())
    write_text(page.with_suffix(".md"), to_markdown(report))
    write_json(page.with_suffix(".json"), to_json(report))
    write_text(page, to_html(report))
    return page


def to_html(report: Report) -> str:
    """The page as text: styles, script, charts and images inside."""
    environment = Environment(
        loader=PackageLoader("vlmtune.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["kebab"] = lambda name: re.sub("([A-Z])", r"-\1", name).lower()  # as `dataset` reads it
    styles = Markup(style("chart.css") + style("style.css"))
    template = environment.get_template("page.html.jinja")
    return template.render(report=report, style=styles, script=Markup(style("script.js"))).lstrip()


def to_markdown(report: Report) -> str:
    """The findings as text, to paste into an issue or a README; its charts are SVG files beside it."""
    parts = [f"# {plain(report.title)}", _sentences(report.summary)]
    for section in report.sections:
        parts += _section_markdown(section, 2)
    if report.warnings:
        parts += ["## Warnings", "\n".join(f"- {plain(warning)}" for warning in report.warnings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """The figures behind the page, without images."""
    return {
        **report.figures,
        "title": report.title,
        "summary": report.summary,
        "warnings": report.warnings,
        "sections": {section.id: _section_json(section) for section in report.sections},
    }


def plain(value: str) -> str:
    """Text that reads as itself in Markdown: it can break no table and start no tag, link or emphasis."""
    return re.sub(r"([\\|\[\]*`])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")


def _walk(sections: Sequence[Section]) -> Iterator[Section]:
    for section in sections:
        yield section
        yield from _walk(section.parts)


def _section_markdown(section: Section, level: int) -> list[str]:
    chart = f"![{plain(section.title)}]({CHARTS}/{section.id}.svg)" if section.chart is not None else ""
    content = [_sentences(section.sentences), chart, _table_markdown(section.table) if section.table else ""]
    for part in section.parts:
        content += _section_markdown(part, level + 1)
    # Omit sections whose whole content is for HTML only.
    return [f"{'#' * level} {plain(section.title)}", *content] if any(content) else []


def _table_markdown(table: Table) -> str:
    head, rows = table.head(), table.texts()
    lines = [head, ["---"] * len(head), *rows[: table.num_in_markdown]]
    text = "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)
    more = len(rows) - table.num_in_markdown
    return f"{text}\n\n{more} more on the page." if more > 0 else text


def _sentences(sentences: Sequence[str]) -> str:
    return " ".join(plain(sentence) for sentence in sentences)


def _section_json(section: Section) -> dict[str, Any]:
    parts = {part.id: _section_json(part) for part in section.parts}
    content = {"title": section.title, "sentences": section.sentences, "figures": section.figures, "parts": parts}
    return {key: value for key, value in content.items() if value}
