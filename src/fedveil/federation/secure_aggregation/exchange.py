"""The exchanges in order, over anything that carries bytes to sites and back."""

from collections.abc import Callable, Mapping

from fedveil.errors import FederationError
from fedveil.federation.secure_aggregation.masks import Words
from fedveil.federation.secure_aggregation.messages import Announcement, Recovery, SharesSent
from fedveil.federation.secure_aggregation.server import Aggregation, SecureAggregationServer

__all__ = ["Exchange", "establish", "unmask"]

Exchange = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Delivers to each site its message, and returns the answers of those who answered."""


def establish(server: SecureAggregationServer, exchange: Exchange) -> None:
    """Set a session up, in three exchanges; raises FederationError, naming sites, where one of them fails.

    A site answers the first message, the session itself, with its announcement once it has checked the
    session, and the others through `SecureAggregationClient.reply`.
    """
    sites = server.session.sites
    announced = exchange(dict.fromkeys(sites, server.session.to_bytes()))
    roster = server.roster(Announcement.from_bytes(answer) for answer in announced.values())
    sent = exchange(dict.fromkeys(sites, roster.to_bytes()))
    boxes = server.deliver(SharesSent.from_bytes(answer) for answer in sent.values())
    ready = exchange({site: delivered.to_bytes() for site, delivered in boxes.items()})
    missing = [site for site in sites if site not in ready]
    if missing:
        raise FederationError(
            f"{', '.join(missing)} did not take its shares",
            "every site of a session takes part in its set-up",
            "open a session with the sites that answer",
        )


def unmask(aggregation: Aggregation, exchange: Exchange) -> Words:
    """The second exchange of a round: ask the survivors for their shares and open the sum.

    Raises RoundAbandoned where too few are left. A survivor whose answer cannot be read counts as silent.
    """
    request = aggregation.request().to_bytes()
    answers = exchange(dict.fromkeys(aggregation.survivors, request))
    for answer in answers.values():
        try:
            aggregation.reveal(Recovery.from_bytes(answer))
        except FederationError:
            continue
    return aggregation.total()
