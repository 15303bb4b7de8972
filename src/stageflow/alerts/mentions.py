"""Neutralizes text from records in chat messages, where mentions notify people and links are shown."""

from __future__ import annotations

import re

from ..render.foreign import on_one_line

__all__ = ["without_mentions"]

_GROUPS = "everyone|here|channel|all|group|room|team"
_MENTION = re.compile(
    # "@everyone" also notifies inside a word; other names only if the "@" is not part of an e-mail address.
    rf"@(?=(?:{_GROUPS})\b)|(?<![\w.+-])@(?=[\w&!<-])"
    # Slack has "<!channel>" and "<@U1>", Teams "<at>", HTML "<a>", Markdown "[text](address)".
    r"|<(?=[!@#:/?A-Za-z])|\](?=[(\[:])",
    re.IGNORECASE,
)


def without_mentions(text: str) -> str:
    """Return text on one line with a space inside each mention, tag and link, so that services ignore them.

    It is a space because some services remove characters without width.

    Example:
        >>> without_mentions("@everyone [free](https://evil.example) <!channel> ann@shop.example")
        '@ everyone [free] (https://evil.example) < !channel> ann@shop.example'
    """
    return _MENTION.sub(lambda found: f"{found[0]} ", on_one_line(text))
