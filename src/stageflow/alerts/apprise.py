"""`Apprise`: notices through any of the services that Apprise knows, named by a URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from ..errors import MissingExtraError
from .notice import Notice
from .receiver import NotDelivered, of_environment
from .rule import WrongField

__all__ = ["Apprise"]

_TYPES = {"critical": "failure", "warning": "warning", "info": "info"}


class Apprise(Struct, frozen=True, kw_only=True, tag_field="kind", tag="apprise"):
    """Sends a notice as text through Apprise: mail, chat, pagers. Needs `stageflow[alerts]`.

    Most of these services do not know ids. A notice that may have arrived before says so in its title.

    Attributes:
        name: By which rules name it.
        url: Where to, as Apprise takes it ("mailto://..."); "" where `url_env` says it.
        url_env: The environment variable that holds the address, which is a secret for most services.

    Raises:
        ValueError: A field has a value that it may not have.

    Example:
        >>> Apprise(name="phone", url_env="PHONE_URL").missing()
        ['the environment variable PHONE_URL is not set']
    """

    name: str
    url: str = ""
    url_env: str = ""

    def __post_init__(self) -> None:
        if not self.url and not self.url_env:
            raise WrongField(self.name, "url", "one of the keys url and url_env is required")
        if self.url and self.url_env:
            raise WrongField(self.name, "url", "expected either url or url_env, got both")

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        apprise = _apprise()
        service = apprise.Apprise()
        if not service.add(self.url or of_environment(self.url_env)):
            raise NotDelivered("Apprise knows no such address")
        title = f"{notice.title} (may have been told before)" if in_doubt else notice.title
        kind = "success" if notice.kind == "resolved" else _TYPES[notice.severity]
        # Declared as plain text, so that it is escaped for a service whose messages are HTML.
        text = apprise.NotifyFormat.TEXT
        if not service.notify(
            body=notice.text, title=title, notify_type=apprise.NotifyType(kind), body_format=text
        ):
            raise NotDelivered("the service did not take it; the log of `apprise` says why")

    def missing(self) -> Sequence[str]:
        try:
            address = self.url or of_environment(self.url_env)
            return [] if _apprise().Apprise().add(address) else ["Apprise knows no such address"]
        except NotDelivered as error:
            return [error.why]
        except MissingExtraError as error:
            return [str(error)]


def _apprise() -> Any:
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise MissingExtraError("an Apprise receiver", "alerts") from error
    return apprise
