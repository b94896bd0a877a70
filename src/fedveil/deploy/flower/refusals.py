"""Errors between a SuperLink and a node that fail to authenticate each other, with remedies."""

import time
from email.utils import parsedate_to_datetime

import httpx

from fedveil.errors import FederationError

__all__ = ["is_certificate", "line_trouble", "refusal"]


def is_certificate(error: Exception) -> bool:
    """Whether a connection failed because the other end was not authenticated: a retry will not help."""
    return "CERTIFICATE" in str(error).upper()


def line_trouble(superlink: str, error: Exception) -> str:
    """Why there is no connection to the SuperLink, and what to check; the node keeps trying."""
    reason = str(error) or type(error).__name__
    if "SSL" in reason.upper() or isinstance(error, httpx.RemoteProtocolError):
        return (
            f"something other than a SuperLink answers at {superlink} ({reason}): check the address in node.toml, "
            "and look for a proxy in between"
        )
    return (
        f"no connection to {superlink} ({reason}): the coordinator may not be running; otherwise check the address in "
        "node.toml, and that the firewall allows outgoing connections to that port"
    )


def refusal(response: httpx.Response) -> FederationError:
    """Why the SuperLink rejects this node's signature: its clock, or its key."""
    skew = _clock_skew(response)
    if skew is not None and abs(skew) > 4:
        return FederationError(
            f"this machine's clock differs from the coordinator's by {skew:+.0f} s",
            "signatures include the time, and 5 s ahead or 5 minutes behind is refused",
            "synchronise both clocks by NTP",
        )
    return FederationError(
        "the SuperLink does not know this node's key",
        "only registered nodes may connect",
        "give the coordinator this kit's node.pub, or use the kit that belongs to this hospital",
    )


def _clock_skew(response: httpx.Response) -> float | None:
    """Seconds by which this machine's clock is ahead of the SuperLink's."""
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None
