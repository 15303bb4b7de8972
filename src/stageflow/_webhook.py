"""Signs webhooks according to Standard Webhooks."""

from __future__ import annotations

import base64
import binascii
import os
from datetime import UTC, datetime
from typing import Any

from ._time import get_clock
from .errors import MissingExtraError

__all__ = ["WebhookSecrets", "check_signing"]


_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24


class WebhookSecrets:
    """Secrets from an environment variable; each adds a signature, so that secrets can be rotated.

    Args:
        variable: Name of the environment variable. It contains one or more secrets, separated by spaces: the
            base64 encoding of 24 bytes or more, with or without the prefix "whsec_".

    Example:
        WebhookSecrets("OPS_SECRET").headers("msg_1", "{}", "a webhook", "alerts")
    """

    def __init__(self, variable: str) -> None:
        self._variable = variable

    @property
    def problem(self) -> str | None:
        """Why the variable does not contain valid secrets; None if it does."""
        secrets = os.environ.get(self._variable, "").split()
        if not secrets:
            return f"the environment variable {self._variable} is not set"
        for secret in secrets:
            try:
                decoded = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
            except (binascii.Error, ValueError):
                decoded = b""
            if len(decoded) < _MIN_SECRET_BYTES:
                return f"{self._variable} is not base64 of {_MIN_SECRET_BYTES} bytes or more"
        return None

    def headers(self, message_id: str, content: str, feature: str, extra: str) -> dict[str, str]:
        """Return the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`.

        Args:
            message_id: Id of the message; all attempts to send it have the same id.
            content: The body, before it is compressed.
            feature: Name of the feature for the error if the packages are not installed.
            extra: The extra with the packages.

        Raises:
            MissingExtraError: standardwebhooks is not installed.
        """
        webhooks = _standardwebhooks(feature, extra)
        # The time of the attempt: receivers compare it with their own clock.
        seconds = get_clock().wall_ns() // 1_000_000_000
        at = datetime.fromtimestamp(seconds, UTC)
        secrets = os.environ.get(self._variable, "").split()
        signatures = [webhooks.Webhook(secret).sign(message_id, at, content) for secret in secrets]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": " ".join(signatures),
        }


def check_signing(feature: str, extra: str) -> None:
    """Raise an error if the packages are not installed.

    Raises:
        MissingExtraError: standardwebhooks is not installed.
    """
    _standardwebhooks(feature, extra)


def _standardwebhooks(feature: str, extra: str) -> Any:
    try:
        import standardwebhooks
    except ModuleNotFoundError as error:
        raise MissingExtraError(feature, extra) from error
    return standardwebhooks
