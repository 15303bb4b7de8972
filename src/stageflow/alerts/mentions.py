"""Text out of a record on its way to a chat, which would notify people and show links for what is in it."""

from __future__ import annotations

import re

from ..render.foreign import on_one_line

__all__ = ["without_mentions"]

_GROUPS = "everyone|here|channel|all|group|room|team"
_MENTION = re.compile(
    # "@everyone" notifies inside a word too; other names only where no e-mail address has an "@".
    rf"@(?=(?:{_GROUPS})\b)|(?<![\w.+-])@(?=[\w&!<-])"
    # Slack has "<!channel>" and "<@U1>", Teams "<at>", HTML "<a>", Markdown "[text](address)".
    r"|<(?=[!@#:/?A-Za-z])|\](?=[(\[:])",
    re.IGNORECASE,
)


def without_mentions(text: str) -> str:
    """Return text on one line with a blank inside each mention, tag and link, so that no service obeys it.

    A blank and not a character without width: some services remove those.

    Example:
        >>> without_mentions("@everyone [free](https://evil.example) <!channel> ann@shop.example")
        '@ everyone [free] (https://evil.example) < !channel> ann@shop.example'
    """
    return _MENTION.sub(lambda found: f"{found[0]} ", on_one_line(text))
