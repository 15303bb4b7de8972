"""Saves one run, or one explanation, as a single HTML file, which the page shows without a server."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from collections.abc import Mapping
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Raw, Struct

from .._time import get_clock, rfc3339
from ..store import Explanation, PinnedStore
from ._details import run_details
from ._differences import as_differences
from ._facets import facets
from ._heatmap import heatmap
from ._page import require_asset
from ._question import Question
from ._series import series

__all__ = ["explanation_as_html", "run_as_html"]

_SAFE = "!'()*~"
"""The characters that `encodeURIComponent` (ECMA-262) does not escape, in addition to those of `quote`."""

_COLUMNS = "120"
"""Number of time steps of the heatmap in a saved page."""


def run_as_html(store: PinnedStore, run_id: str) -> bytes:
    """Return a page that shows one run.

    Raises:
        RunNotFoundError: The id matches no run, or more than one.
        StageflowError: This installation does not contain the page.
    """
    details = run_details(store, run_id, 1, explain=True)
    known_id = str(details.run["event_id"])
    title = f"{details.run.get('pipeline_name')} {known_id}"
    return _page(title, {"view": "run", "id": known_id}, {_key("run", id=known_id, explain="1"): details})


def explanation_as_html(store: PinnedStore, explanation: Explanation) -> bytes:
    """Return a page that shows an explanation, with the heatmap and the distributions of its rows.

    Raises:
        QueryError: A predicate is invalid for the records of this store.
        StageflowError: This installation does not contain the page.
    """
    state = {"over": explanation.over, "where": explanation.within or "", "select": explanation.where}
    question = Question.parse({**state, "columns": _COLUMNS})
    range_ = {**state, "over": "" if explanation.over == "runs" else explanation.over}
    select = {**range_, "select": explanation.where}
    responses: dict[str, Struct] = {
        _key("differences", **select): as_differences(explanation, question, 1),
        _key("heatmap", **select, measure="duration_ms", columns=_COLUMNS, rows="40"): heatmap(
            store, question, 1
        ),
        _key("series", **select, steps=_COLUMNS): series(store, question, 1),
        _key("facets", **select): facets(store, question, 1),
    }
    query = {"view": "explore", **{name: value for name, value in select.items() if value}}
    return _page(explanation.summary, query, responses)


def _key(path: str, **parameters: str) -> str:
    """Return the key under which the page finds a response. It must match `keyOf` in `web/src/saved.ts`."""
    pairs = sorted((name, value) for name, value in parameters.items() if value)
    query = "&".join(f"{quote(name, safe=_SAFE)}={quote(value, safe=_SAFE)}" for name, value in pairs)
    return f"api/{path}?{query}" if query else f"api/{path}"


def _page(title: str, query: Mapping[str, str], responses: Mapping[str, Struct]) -> bytes:
    script, style, start = (require_asset(name) for name in ("app.js", "app.css", "saved.js"))
    saved_at = rfc3339(get_clock().wall_ns() // 1000)
    page = {"query": urlencode(query), "title": title, "saved_at": saved_at}
    bodies = {key: Raw(msgspec.json.encode(response)) for key, response in responses.items()}
    packed = _packed(msgspec.json.encode(bodies))
    policy = (
        f"default-src 'none'; script-src '{_hash(start)}' '{_hash(script)}'; style-src '{_hash(style)}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = (
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{html.escape(title)} · stageflow</title>",
        '</head><body><div id="app"></div>',
        f'<script type="application/json" id="page">{_json(page)}</script>',
        f'<script type="application/json" id="responses" data-encoding="gzip">{packed}</script>',
        f'<script type="text/plain" id="packed-style">{_packed(style)}</script>',
        f'<script type="text/plain" id="packed-script">{_packed(script)}</script>',
        f"<script>{start.decode()}</script>",
        "</body></html>\n",
    )
    return "\n".join(parts).encode()


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _json(value: object) -> str:
    """Return JSON without `<`, so that no text can close the element that contains it."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _hash(content: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"
