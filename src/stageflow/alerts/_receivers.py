"""The receivers of notifications."""

from __future__ import annotations

import http
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from .._http import HttpError, check_http, post_blocking, url_problem
from .._webhook import WebhookSecrets, check_signing
from ..errors import MissingExtraError
from ._notice import Notice
from ._rule import WrongField, check_number

__all__ = ["Apprise", "Call", "NotDelivered", "Receiver", "Webhook", "of_environment"]


class NotDelivered(Exception):
    """A receiver did not accept a notification.

    Attributes:
        reason: What happened, in one line, without secrets.
        retry_after: Seconds that the receiver requests before a retry; None if it does not.
        final: True if the notification must not be retried.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.final = final


class Receiver(Protocol):
    """Receives notifications, one at a time. `Webhook`, `Apprise` and `Call` are receivers."""

    @property
    def name(self) -> str:
        """Unique name, which rules refer to."""
        ...

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        """Deliver a notification.

        Args:
            notice: The notification.
            in_doubt: True if it may have arrived before, because the process died during the last attempt.

        Raises:
            NotDelivered: It was not delivered; any other exception has the same effect.
        """
        ...

    def missing(self) -> Sequence[str]:
        """Return the missing prerequisites, such as an environment variable that is not set."""
        ...


def of_environment(name: str) -> str:
    """Return the value of an environment variable.

    Raises:
        NotDelivered: The variable is not set, or empty.
    """
    if not (value := os.environ.get(name)):
        raise NotDelivered(f"the environment variable {name} is not set")
    return value


class Call(Struct, frozen=True, kw_only=True):
    """Calls a function with each notification; if it raises an exception, the notification is retried.

    Attributes:
        name: Name that rules refer to.
        function: Called with a `Notice`, in the thread of the evaluation.

    Example:
        Call(name="log", function=lambda notice: log.warning("%s", notice.title))
    """

    name: str
    function: Callable[[Notice], object]

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        self.function(notice)

    def missing(self) -> Sequence[str]:
        return ()


_TYPES = {"critical": "failure", "warning": "warning", "info": "info"}


class Apprise(Struct, frozen=True, kw_only=True, tag_field="kind", tag="apprise"):
    """Sends a notification as text through Apprise: mail, chat, pagers. Requires `stageflow[alerts]`.

    Most of these services do not support ids, so the title of a notification that may have arrived before
    ends with "(possible duplicate)".

    Attributes:
        name: Name that rules refer to.
        url: URL of the service in the format of Apprise ("mailto://..."); empty if `url_env` is set.
        url_env: Environment variable with the URL, which is a secret for most services.

    Raises:
        InvalidArgumentError: A field has an invalid value.

    Example:
        >>> Apprise(name="phone", url_env="PHONE_URL").missing()
        ['the environment variable PHONE_URL is not set']
    """

    name: str
    url: str = ""
    url_env: str = ""

    def __post_init__(self) -> None:
        if not self.url and not self.url_env:
            raise WrongField(self.name, "url", "either url or url_env is required")
        if self.url and self.url_env:
            raise WrongField(self.name, "url", "expected either url or url_env, got both")

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        apprise = _apprise()
        service = apprise.Apprise()
        if not service.add(self.url or of_environment(self.url_env)):
            raise NotDelivered("Apprise does not support this URL")
        title = f"{notice.title} (possible duplicate)" if in_doubt else notice.title
        kind = "success" if notice.kind == "resolved" else _TYPES[notice.severity]
        # Declared as plain text, so that it is escaped for a service whose messages are HTML.
        text = apprise.NotifyFormat.TEXT
        if not service.notify(
            body=notice.text, title=title, notify_type=apprise.NotifyType(kind), body_format=text
        ):
            raise NotDelivered(
                "the service rejected the notification; the log of `apprise` states the reason"
            )

    def missing(self) -> Sequence[str]:
        try:
            address = self.url or of_environment(self.url_env)
            return [] if _apprise().Apprise().add(address) else ["Apprise does not support this URL"]
        except NotDelivered as error:
            return [error.reason]
        except MissingExtraError as error:
            return [str(error)]


def _apprise() -> Any:
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise MissingExtraError("an Apprise receiver", "alerts") from error
    return apprise


_WEBHOOK = ("a webhook receiver", "alerts")
"""The feature and its extra, for the error if the packages are not installed."""


class Webhook(Struct, frozen=True, kw_only=True, tag_field="kind", tag="webhook"):
    """POSTs a notification as JSON, signed according to Standard Webhooks. Requires `stageflow[alerts]`.

    The headers are `webhook-id`, `webhook-timestamp` and `webhook-signature`. A response of 2xx means
    success; redirects are not followed. All attempts of a notification have the same id, so a receiver can
    discard duplicates.

    Attributes:
        name: Name that rules refer to.
        url: URL of the webhook; empty if `url_env` is set.
        url_env: Environment variable with the URL, if that is a secret.
        secret_env: Environment variable with the secret: base64 of 24 bytes or more, with or without the
            prefix "whsec_". Several secrets, separated by spaces, each add a signature, to rotate secrets.
        timeout: Maximum duration of an attempt, including the response, in seconds; default 15.

    Raises:
        InvalidArgumentError: A field has an invalid value.

    Example:
        >>> Webhook(name="ops", url="https://ops.example/hook", secret_env="OPS_SECRET").timeout
        15.0
    """

    name: str
    secret_env: str
    url: str = ""
    url_env: str = ""
    timeout: float = 15.0

    def __post_init__(self) -> None:
        check_number(self.name, "timeout", self.timeout, above=0)
        if not self.url and not self.url_env:
            raise WrongField(self.name, "url", "either url or url_env is required")
        if self.url and self.url_env:
            raise WrongField(self.name, "url", "expected either url or url_env, got both")
        if self.url and url_problem(self.url):
            raise WrongField(self.name, "url", f"{url_problem(self.url)}, got {self.url!r}")
        if not self.secret_env:
            raise WrongField(
                self.name, "secret_env", "must not be empty; expected the name of an environment variable"
            )

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        url = self.url or of_environment(self.url_env)
        if why := url_problem(url):
            raise NotDelivered(f"{self.url_env}: {why}")
        secrets = WebhookSecrets(self.secret_env)
        if secrets.problem is not None:
            raise NotDelivered(secrets.problem)
        body = msgspec.json.encode(notice.payload())
        headers = {
            "content-type": "application/json",
            "user-agent": "stageflow-alerts",
            **secrets.headers(notice.id, body.decode(), *_WEBHOOK),
        }
        try:
            response = post_blocking(*_WEBHOOK, url, body, headers, seconds=self.timeout)
        except HttpError as error:
            raise NotDelivered(error.reason) from None
        if not 200 <= response.status < 300:
            final = response.status == http.HTTPStatus.GONE
            raise NotDelivered(
                f"HTTP status {response.status}", retry_after=response.retry_after, final=final
            )

    def missing(self) -> Sequence[str]:
        found = []
        try:
            if self.url_env and (why := url_problem(of_environment(self.url_env))):
                found.append(f"{self.url_env}: {why}")
        except NotDelivered as error:
            found.append(error.reason)
        if (problem := WebhookSecrets(self.secret_env).problem) is not None:
            found.append(problem)
        try:
            check_http(*_WEBHOOK)
            check_signing(*_WEBHOOK)
        except MissingExtraError as error:
            found.append(str(error))
        return found
