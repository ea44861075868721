"""The page /docs: what `openapi.json` says, as plain HTML of our own, without a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def reference_page(schema: Mapping[str, Any]) -> str:
    """An OpenAPI description as HTML; all of it as text."""
    info = schema["info"]
    parts = [_paragraph(info["description"])]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()}</code> {escape(path)}</h2>{_paragraph(operation['summary'])}")
            parts.append(_paragraph(operation.get("description", "")))
            body = operation.get("requestBody", {}).get("content", {})
            for kind, content in body.items():
                parts.append(f"<h3>Request, {escape(kind)}</h3>{_code(content['schema'])}")
            rows = "".join(
                f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            )
            parts.append(f"<table><tr><th>answer</th><th></th></tr>{rows}</table>")
    for name, content in schema["components"]["schemas"].items():
        parts.append(f"<h2>{escape(name)}</h2>{_code(content)}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{escape(info["title"])}</title><link rel="stylesheet" href="/style.css">'
        f'<body class="reference"><main><h1>{escape(info["title"])} {escape(info["version"])}</h1>'
        f'<p><a href="/openapi.json">openapi.json</a> · <a href="/">the live page</a></p>{"".join(parts)}</main></body>'
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _code(content: object) -> str:
    return f"<pre>{escape(json.dumps(content, indent=2))}</pre>"
