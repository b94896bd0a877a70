"""The exchanges in order, over any transport of bytes to sites and back."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from fedveil.errors import FederationError
from fedveil.federation.secure_aggregation.codec import malformed
from fedveil.federation.secure_aggregation.masks import Words
from fedveil.federation.secure_aggregation.messages import Announcement, Ready, Recovery, SharesSent
from fedveil.federation.secure_aggregation.server import Aggregation, SecureAggregationServer, SetUpFailed

__all__ = ["Exchange", "establish", "unmask"]

Exchange = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Delivers to each site its message, and returns the answers that arrived."""


class _Signed(Protocol):
    @property
    def site(self) -> str: ...


T = TypeVar("T", bound=_Signed)


def establish(server: SecureAggregationServer, exchange: Exchange) -> None:
    """Set a session up, in three exchanges; raises SetUpFailed, naming sites, if one of them fails.

    A site answers the first message, the session itself, with its announcement once it has checked the
    session, and the others through `SecureAggregationClient.reply`.
    """
    sites = server.session.sites

    def ask(
        messages: Mapping[str, bytes], read: Callable[[bytes], T], check: Callable[[T], None]
    ) -> dict[str, T]:
        answers = exchange(messages)
        found, invalid = _read(answers, read, check)
        silent = tuple(site for site in sites if site not in answers)
        if silent or invalid:
            raise SetUpFailed(silent, invalid)
        return found

    opening = dict.fromkeys(sites, server.session.to_bytes())
    announced = ask(opening, Announcement.from_bytes, server.check_announcement)
    roster = server.roster(announced.values()).to_bytes()
    sent = ask(dict.fromkeys(sites, roster), SharesSent.from_bytes, server.check_shares)
    boxes = server.deliver(sent.values())
    ready = ask(
        {site: delivered.to_bytes() for site, delivered in boxes.items()},
        Ready.from_bytes,
        server.check_ready,
    )
    disputes = frozenset((site, other) for site, one in ready.items() for other in one.unreadable)
    if disputes:
        raise SetUpFailed(disputes=disputes)


def unmask(
    aggregation: Aggregation,
    exchange: Exchange,
    refuse: Callable[[str, str], None] = lambda *_: None,
) -> Words:
    """The second exchange of a round: ask the survivors for their shares and open the sum.

    Raises RoundAbandoned if too few remain. A survivor with an unusable answer counts as silent, and ``refuse``
    receives it with the reason.
    """
    request = aggregation.request().to_bytes()
    answers = exchange(dict.fromkeys(aggregation.survivors, request))
    _, invalid = _read(answers, Recovery.from_bytes, aggregation.reveal)
    for site, why in invalid.items():
        refuse(site, why)
    return aggregation.total()


def _read(
    answers: Mapping[str, bytes], read: Callable[[bytes], T], check: Callable[[T], None]
) -> tuple[dict[str, T], dict[str, str]]:
    """Each site's usable message, and the errors of the others."""
    found, invalid = dict[str, T](), dict[str, str]()
    for site, answer in answers.items():
        try:
            one = read(answer)
            if one.site != site:
                raise malformed()
            check(one)
        except FederationError as error:
            invalid[site] = str(error)
        else:
            found[site] = one
    return found, invalid
