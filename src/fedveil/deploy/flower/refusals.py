"""Why a SuperLink and a node do not believe each other, in sentences that say what to do."""

import time
from email.utils import parsedate_to_datetime

import httpx

from fedveil.errors import FederationError

__all__ = ["refusal", "wrong_certificate"]


def wrong_certificate(superlink: str, error: Exception) -> FederationError:
    """The SuperLink's certificate is not of the kit's authority, or names another address."""
    return FederationError(
        f"the certificate of {superlink} is not trusted ({error})",
        "it must be signed by the kit's ca.pem and name this address",
        "check the address; ask the coordinator for a certificate that names it",
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
