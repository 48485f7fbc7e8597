"""The web page at `/`: one self-contained HTML file, with the model's facts embedded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from vlmtune.serve.service import Service

_TEMPLATE = Path(__file__).with_name("page.html")


def render_page(service: Service, examples: Sequence[str] = ()) -> str:
    """The page's HTML.

    Args:
        examples: data URIs of images to try.
    """
    prompts, settings = service.prompts, service.settings
    facts = {
        "model": service.name,
        "labels": prompts.labels,
        "asks_question": prompts.section.asks_from_data,
        "examples": list(examples),
        "max_bytes": settings.max_body_bytes,
        "max_pixels": settings.max_pixels,
        "max_new_tokens": settings.max_new_tokens,
        "needs_key": settings.api_key is not None,
    }
    # Inside a script element only "</" and "<!--" could end the JSON early.
    text = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*FACTS*/null", text)


def page_headers(page: str) -> dict[str, str]:
    """Headers that let the page run its own script and style, and nothing else."""
    scripts = " ".join(_hashes(page, "script"))
    styles = " ".join(_hashes(page, "style"))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"content-security-policy": policy, "cache-control": "no-cache"}


def _hashes(page: str, tag: str) -> list[str]:
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in contents]
