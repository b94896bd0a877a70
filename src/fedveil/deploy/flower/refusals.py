"""Why a SuperLink and a node do not believe each other, in sentences that say what to do."""

import time
from email.utils import parsedate_to_datetime

import httpx

from fedveil.errors import FederationError

__all__ = ["is_certificate", "line_trouble", "refusal", "wrong_certificate"]


def is_certificate(error: Exception) -> bool:
    """Whether a connection failed because the other end could not prove who it is: asking again will not help."""
    return "CERTIFICATE" in str(error).upper()


def wrong_certificate(superlink: str, error: Exception) -> FederationError:
    """The SuperLink's certificate is not valid now, is not of the kit's authority, or names another address."""
    reason, now = str(error), time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if "not yet valid" in reason or "has expired" in reason:
        expired = "has expired" in reason
        return FederationError(
            f"by this machine's clock ({now} UTC) the certificate of {superlink} "
            + ("has expired" if expired else "is not valid yet"),
            "a certificate holds between two dates",
            "set the clock by NTP"
            + ("; if it is right, have the coordinator run `fedveil federation renew`" if expired else ""),
        )
    return FederationError(
        f"the certificate of {superlink} is not trusted ({reason})",
        "it must be signed by the kit's ca.pem and name this address",
        "check the address in node.toml; if it is right, ask the coordinator for the current ca.pem, or for a "
        "certificate that names this address",
    )


def line_trouble(superlink: str, error: Exception) -> str:
    """Why there is no line to the SuperLink, and what to look at; the node keeps trying."""
    reason = str(error) or type(error).__name__
    if "SSL" in reason.upper() or isinstance(error, httpx.RemoteProtocolError):
        return (
            f"something else than a SuperLink answers at {superlink} ({reason}): check the address in node.toml, "
            "and for a proxy in between"
        )
    return (
        f"no line to {superlink} ({reason}): the coordinator may not be running; otherwise check the address in "
        "node.toml, and that the firewall lets this machine dial out to that port"
    )


def refusal(response: httpx.Response) -> FederationError:
    """Why the SuperLink does not believe this node's signature: its clock, or its key."""
    skew = _clock_skew(response)
    if skew is not None and abs(skew) > 4:
        return FederationError(
            f"this machine's clock differs from the coordinator's by {skew:+.0f} s",
            "signatures carry the time, and 5 s ahead or 5 minutes behind is refused",
            "set both clocks by NTP",
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
