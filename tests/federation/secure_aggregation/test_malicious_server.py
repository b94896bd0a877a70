"""Everything that a server may try in order to see more than a sum, and what it gets."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats

from fedveil.errors import Refused
from fedveil.federation.secure_aggregation import (
    Announcement,
    RecoveryRequest,
    Roster,
    RoundAbandoned,
    SecureAggregationClient,
    SharesDelivered,
    unmask,
)
from fedveil.federation.secure_aggregation import server as server_module
from fedveil.federation.secure_aggregation.keys import agree, private_key, public_bytes, sign
from fedveil.federation.secure_aggregation.masks import apply_masks, pair_mask_key, self_mask_key
from fedveil.federation.secure_aggregation.shamir import combine


def announced(box):
    return [box.clients[site].announce() for site in box.sites]


def forged(box, site, identity):
    """An announcement in a site's name with keys that the forger knows."""
    key = public_bytes(private_key(bytes(32)))
    keys = (key,) * box.session.rounds
    return Announcement(
        site, key, keys, sign(identity, *Announcement.statement(box.session.digest, site, key, keys))
    )


# Keys


def test_swapped_keys_are_caught(federation):
    """The server puts itself in the middle: keys of its own in another site's name."""
    box = federation(4, ready=False)
    honest = announced(box)
    own_identity = forged(box, "site-2", Ed25519PrivateKey.generate())
    old_signature = dataclasses.replace(own_identity, signature=honest[1].signature)
    for fake in (own_identity, old_signature):
        with pytest.raises(Refused, match="site-2 are not signed by the identity"):
            box.clients["site-1"].share(Roster((honest[0], fake, *honest[2:])))


def test_a_site_notices_that_its_own_keys_were_replaced(federation):
    """Even with its own signature: an announcement of before a restart, say."""
    box = federation(4, ready=False)
    before = box.client("site-1").announce()
    with pytest.raises(Refused, match="other keys for site-1 than it announced"):
        box.clients["site-1"].share(Roster((before, *announced(box)[1:])))


def test_keys_of_another_session_are_caught(federation):
    box = federation(4, ready=False)
    other = dataclasses.replace(box, session=dataclasses.replace(box.session, first_round=50), clients={})
    mixed = Roster((*announced(box)[:3], other.clients["site-4"].announce()))
    with pytest.raises(Refused, match="site-4 are not signed"):
        box.clients["site-1"].share(mixed)


def test_a_roster_without_a_site_or_in_another_order_is_refused(federation):
    box = federation(4, ready=False)
    honest = announced(box)
    for roster in (honest[:3], honest[::-1], [*honest, honest[0]]):
        with pytest.raises(Refused, match="other sites than the session"):
            box.clients["site-1"].share(Roster(tuple(roster)))


def test_a_site_needs_the_identities_of_all_others(federation):
    box = federation(4, ready=False)
    pinned = {site: key for site, key in box.pinned.items() if site != "site-3"}
    with pytest.raises(Refused, match="add the keys of site-3"):
        SecureAggregationClient(
            box.session, "site-1", identity=box.identities["site-1"], pinned=pinned, claim=lambda number: None
        )


def test_keys_that_everyone_can_guess_are_refused(federation):
    """A colluding site announces a point of small order; its channel would be open to the server."""
    box = federation(4, ready=False)
    honest = announced(box)
    keys, zero = honest[3].round_keys, bytes(32)
    statement = Announcement.statement(box.session.digest, "site-4", zero, keys)
    weak = Announcement("site-4", zero, keys, sign(box.identities["site-4"], *statement))
    with pytest.raises(Refused, match="key announced by site-4"):
        box.clients["site-1"].share(Roster((*honest[:3], weak)))


# Shares


def sent(box):
    roster = Roster(tuple(announced(box)))
    box.server.roster(roster.announcements)
    return {site: box.clients[site].share(roster) for site in box.sites}


def altered(sent):
    box = sent["site-2"].boxes["site-1"]
    return {"site-2": bytes([box[0] ^ 1]) + box[1:]}


def exchanged(sent):
    return {"site-2": sent["site-3"].boxes["site-1"], "site-3": sent["site-2"].boxes["site-1"]}


def reflected(sent):
    return {"site-2": sent["site-1"].boxes["site-2"]}


def readdressed(sent):
    return {"site-2": sent["site-2"].boxes["site-3"]}


@pytest.mark.parametrize("tamper", [altered, exchanged, reflected, readdressed])
def test_shares_that_were_tampered_with_are_refused(federation, tamper):
    box = federation(4, ready=False)
    given = sent(box)
    right = {site: given[site].boxes["site-1"] for site in box.sites[1:]}
    client = box.clients["site-1"]
    with pytest.raises(Refused, match="missing or cannot be decrypted"):
        client.receive(SharesDelivered({**right, **tamper(given)}))
    with pytest.raises(Refused, match="shares from site-4 are missing"):
        client.receive(SharesDelivered({site: right[site] for site in ("site-2", "site-3")}))
    client.receive(SharesDelivered(right))


def test_sites_that_saw_different_rosters_cannot_read_each_other(federation):
    """A colluding site announces twice, and the server splits the federation between the two."""
    box = federation(4, ready=False)
    honest = announced(box)[:3]
    rosters = [Roster((*honest, box.client("site-4").announce())) for _ in range(2)]
    shared = {
        site: box.clients[site].share(rosters[number % 2])
        for number, site in enumerate(("site-1", "site-2", "site-3"))
    }
    boxes = {other: shared[other].boxes["site-1"] for other in ("site-2", "site-3")}
    with pytest.raises(Refused, match="must have seen the same roster"):
        box.clients["site-1"].receive(SharesDelivered(boxes))


def test_set_up_steps_happen_once_and_in_order(federation):
    box = federation(4, ready=False)
    client = box.clients["site-1"]
    with pytest.raises(Refused, match="out of order"):
        client.share(Roster(()))
    with pytest.raises(Refused, match="out of order"):
        client.receive(SharesDelivered({}))
    boxes = box.server.deliver(sent(box).values())["site-1"]
    with pytest.raises(Refused, match="out of order"):
        client.share(Roster(tuple(announced(box))))
    with pytest.raises(Refused, match="it is not set up"):
        client.masked_input(1, np.zeros(3, dtype=np.uint32))
    client.receive(boxes)
    with pytest.raises(Refused, match="out of order"):
        client.receive(boxes)


# Rounds


def test_a_round_run_twice_is_refused(federation, words):
    """Two masked inputs of one round would differ by the contributions alone."""
    box = federation(4)
    own = words(box.sites)
    box.masked("site-1", 2, own["site-1"])
    for round_number in (2, 1):
        with pytest.raises(Refused, match="may take part in rounds 3 to 3"):
            box.masked("site-1", round_number, own["site-1"])


def test_a_round_run_twice_is_refused_after_a_restart_too(federation, words):
    """The client's memory is gone; the ledger's high-water mark is not."""
    box = federation(4)
    own = words(box.sites)
    box.run(2, own)
    for site in box.sites:
        box.clients[site] = box.client(site)
    box.establish()
    with pytest.raises(Refused, match="claimed before"):
        box.masked("site-1", 2, own["site-1"])
    box.masked("site-1", 3, own["site-1"])


def test_nothing_is_revealed_without_or_before_a_round(federation, words):
    box = federation(4)
    for round_number in (0, 1, 2**62):
        with pytest.raises(Refused, match="shares are asked for in round"):
            box.clients["site-1"].recover(RecoveryRequest(round_number, box.sites))
    box.masked("site-1", 2, words(box.sites)["site-1"])
    for round_number in (1, 3):
        with pytest.raises(Refused, match="shares are asked for in round"):
            box.clients["site-1"].recover(RecoveryRequest(round_number, box.sites))


@pytest.mark.parametrize(
    ("survivors", "message"),
    [
        ((), "site-1 with them"),
        (("site-1", "site-2", "site-3"), "with fewer than 4 nothing is revealed"),
        (("site-2", "site-3", "site-4", "site-5"), "site-1 with them"),
        (("site-1", "site-1", "site-1", "site-2", "site-3"), "must be sites of the session, in its order"),
        (("site-5", "site-4", "site-3", "site-2", "site-1"), "must be sites of the session, in its order"),
        (("site-1", "site-2", "site-3", "stranger"), "must be sites of the session, in its order"),
    ],
)
def test_lists_of_survivors_that_say_too_much_are_refused(federation, words, survivors, message):
    box = federation(5)
    box.collect(1, words(box.sites))
    with pytest.raises(Refused, match=message):
        box.clients["site-1"].recover(RecoveryRequest(1, survivors))


def test_asking_for_both_secrets_of_a_site_is_refused(federation, words):
    """First as if site-5 had survived, for its seed; then as if it were lost, for its private key."""
    box = federation(5)
    box.collect(1, words(box.sites))
    both = [RecoveryRequest(1, box.sites), RecoveryRequest(1, box.sites[:4])]
    for first, second in (both, both[::-1]):
        for site in box.sites[:4]:
            answer = box.clients[site].recover(first)
            assert box.clients[site].recover(first) == answer
            with pytest.raises(Refused, match="once per round, for one list of survivors"):
                box.clients[site].recover(second)
        box = federation(5)
        box.collect(1, words(box.sites))


def opened_locks(box, answers, request):
    """All answers that a server can read with all pads that it got, however few shares it tries to make do with."""
    numbers = {site: number for number, site in enumerate(box.sites, start=1)}
    view = request.view(box.server._roster)
    readable = set()
    for site, answer in answers.items():
        pads = {other: given.pads[site] for other, given in answers.items() if site in given.pads}
        for threshold in range(1, len(box.sites) + 1):
            if answer.lock.open(view, numbers, site, pads, threshold) is not None:
                readable.add(site)
    return readable


@pytest.mark.parametrize("told_all", [3, 4, 5, 6])
def test_sites_that_are_told_different_survivors_reveal_nothing(federation, words, told_all):
    """Of seven sites some hear that all survived, the others that site-7 is lost: one list opens at most."""
    box = federation(7)
    aggregation = box.collect(1, words(box.sites))
    everyone, without = RecoveryRequest(1, box.sites), RecoveryRequest(1, box.sites[:6])
    answers = {
        site: box.clients[site].recover(everyone if number < told_all else without)
        for number, site in enumerate(box.sites[:6])
    }
    enough = told_all >= box.session.threshold
    assert opened_locks(box, answers, everyone) == (set(box.sites[:told_all]) if enough else set())
    assert opened_locks(box, answers, without) == set()
    aggregation.request()
    for answer in answers.values():
        aggregation.reveal(answer)
    if not enough:
        with pytest.raises(RoundAbandoned):
            aggregation.total()


def test_fewer_sites_than_the_threshold_hold_nothing_of_a_secret(federation):
    box = federation(5)
    secrets = bytes(box.clients["site-1"]._secrets)
    shares = {number: bytes(box.clients[site]._shares["site-1"]) for number, site in enumerate(box.sites, 1)}
    assert combine({holder: shares[holder] for holder in (2, 3, 4, 5)}) == secrets
    for holders in combinations(shares, 3):
        guess = combine({holder: shares[holder] for holder in holders})
        assert not any(guess[i : i + 32] == secrets[i : i + 32] for i in range(0, len(secrets), 32))


def test_a_round_with_too_few_honest_shares_is_not_opened_even_if_it_could_be(federation, words):
    """Five of seven sites could open a sum, but the noise was sized for six that do not collude."""
    box = federation(7, min_honest=6)
    own = words(box.sites)
    aggregation = box.collect(1, {site: own[site] for site in box.sites[:6]})
    with pytest.raises(RoundAbandoned, match="opens only with 7 sites or more"):
        aggregation.request()
    with pytest.raises(Refused, match="with fewer than 7 nothing is revealed"):
        box.clients["site-1"].recover(RecoveryRequest(1, box.sites[:6]))


def late_words(box, own):
    """Round 1 without site-1, whose words arrive after the sum was opened; and all that was revealed."""
    late = box.masked("site-1", 1, own["site-1"])
    aggregation = box.collect(1, {site: own[site] for site in box.sites[1:]})
    request = aggregation.request()
    for site in request.survivors:
        aggregation.reveal(box.clients[site].recover(request))
    aggregation.total()
    return late.words, aggregation._open_locks(request)


def bytes_look_uniform(words):
    return stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-7


def test_a_late_message_is_never_unmasked(federation):
    """The server knows its pair masks by then; the self mask stays on, and the survivors keep it so."""
    box = federation(5)
    words, opened = late_words(box, {site: np.zeros(20_000, dtype=np.uint32) for site in box.sites})
    shares = {number: opened[site]["site-1"] for number, site in enumerate(box.sites, 1) if site in opened}
    private, roster = private_key(combine(shares)), box.server._roster
    left = words.copy()
    for other in box.sites[1:]:
        secret = agree(private, box.clients[other].announce().round_keys[0])
        apply_masks(left, [], [pair_mask_key(secret, roster, "site-1", other, 1)])
    assert bytes_look_uniform(left)
    for site in box.sites[1:]:
        with pytest.raises(Refused):
            box.clients[site].recover(RecoveryRequest(1, box.sites))
    # The test has teeth: with the seed, which site-1 alone has, the plain words appear.
    seed = bytes(box.clients["site-1"]._secrets[:32])
    apply_masks(left, [], [self_mask_key(seed, roster, "site-1", 1)])
    assert not left.any()


def test_a_secret_recovered_in_one_round_says_nothing_about_another(federation, words):
    """The private key of a site lost to round 1 is not its key of round 2, nor are its seeds related."""
    box = federation(4)
    client = box.clients["site-1"]
    secrets = {bytes(client._secrets[i : i + 32]) for i in range(0, len(client._secrets), 32)}
    assert len(secrets) == 2 * box.session.rounds
    assert len(set(client.announce().round_keys)) == box.session.rounds


def test_refusals_happen_over_bytes_too(federation, words):
    box = federation(4)
    box.collect(1, words(box.sites))
    with pytest.raises(Refused, match="nothing is revealed"):
        box.clients["site-1"].reply(RecoveryRequest(1, box.sites[:2]).to_bytes())


def test_sites_that_are_asked_for_different_things_sum_to_noise(federation, words, monkeypatch):
    """One site is asked for one release, the others for another, whose noise shares are smaller: nothing opens.

    The server knows what it asked each site for, so each one's own mask comes off; those between sites do not cancel.
    """
    box = federation(5)
    own = words(box.sites, length=4000)
    honest = sum(own[site].astype(np.uint64) for site in box.sites).astype(np.uint32)
    for round_number, others in ((1, "statistics"), (2, "training")):
        asked = {site: others if number else "training" for number, site in enumerate(box.sites)}

        def own_mask(seed, roster, site, number, _, asked=asked):
            return self_mask_key(seed, roster, site, number, asked[site])

        monkeypatch.setattr(server_module, "self_mask_key", own_mask)
        aggregation = box.server.open(round_number, "training")
        for site in box.sites:
            aggregation.add(box.clients[site].masked_input(round_number, own[site].copy(), asked[site]))
        off = unmask(aggregation, box.exchange) - honest
        if others == "training":
            assert not off.any()
        else:
            assert len(np.unique(off)) > 3990
            assert stats.kstest(off / 2**32, "uniform").pvalue > 1e-6
