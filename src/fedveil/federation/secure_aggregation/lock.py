"""The lock on what a site reveals: it opens only if `threshold` sites agree on who survived the round.

A site must not help to unmask one site in one list of survivors and another in another list, so Bonawitz et
al. (2017, section 6) have the sites sign the list in an exchange of its own before they reveal anything. Here
both happen in one exchange. Site j encrypts what it reveals under a fresh key and shares the key (Shamir)
among itself and the survivors l on its list, with j's own share in the clear and the share of l added to a
pad that only j and l can derive, and that depends on the list. Along with it, j sends the pads with which the
others' shares for j are opened, *for the list that j was shown*. So a share of j's key can be read exactly if
j and l were shown the same list.

With n sites, c of them colluding, a key opens if threshold - c honest sites or more have seen its list. Two
different lists would take 2 (threshold - c) <= n - c honest sites: as 2 threshold > n + c, there is at most
one list for which anything opens, and it names at least `threshold` survivors.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedveil.federation.secure_aggregation.keys import KEY_BYTES, derive, seal, unseal
from fedveil.federation.secure_aggregation.shamir import combine, field_for, split

__all__ = ["CHECK_BYTES", "PAD_BYTES", "Lock", "View", "close"]

CHECK_BYTES = 16
PAD_BYTES = KEY_BYTES + CHECK_BYTES


@dataclass(frozen=True, slots=True)
class View:
    """What a site was shown when it was asked to reveal: whose pads apply, and for which list.

    `roster` and `survivors` are digests.
    """

    roster: bytes
    round_number: int
    survivors: bytes

    def pad(self, channel: bytes, owner: str, holder: str) -> bytes:
        """The pad of the share that `holder` has of `owner`'s key; its last bytes tell whether it fits."""
        purpose = ("survivors", owner, holder, self.round_number, self.survivors)
        return derive(channel, self.roster, *purpose, length=PAD_BYTES)


@dataclass(frozen=True, slots=True)
class Lock:
    """A closed lock, as its owner sends it.

    Attributes:
        box: the text under the fresh key.
        own: the owner's share of that key.
        padded: by holder, the holder's share plus its pad, and the check bytes of the pad.
    """

    box: bytes
    own: bytes
    padded: Mapping[str, bytes]

    def open(
        self, view: View, numbers: Mapping[str, int], owner: str, pads: Mapping[str, bytes], threshold: int
    ) -> bytes | None:
        """The text, with pads from enough holders who saw the same list; None without.

        `numbers` are the points at which holders have their shares, `pads` what holders revealed for this
        owner.
        """
        shares = [
            (numbers[holder], _add(self.padded[holder][:KEY_BYTES], given[:KEY_BYTES]))
            for holder, given in pads.items()
            if self.takes(holder, given)
        ]
        if len(shares) < threshold - 1:
            return None
        for start in range(max(1, len(shares))):  # one wrong pad is in all of these but some
            some = (shares[start:] + shares[:start])[: threshold - 1]
            key = combine({numbers[owner]: self.own, **dict(some)}, field_for(len(numbers)))
            text = unseal(key, self.box, view.survivors)
            if text is not None or len(shares) == threshold - 1:
                return text
        return None

    def takes(self, holder: str, pad: bytes) -> bool:
        """Whether the check bytes of a pad are those of the share that was padded for its holder."""
        padded = self.padded.get(holder)
        return padded is not None and padded[KEY_BYTES:] == pad[KEY_BYTES:]


def close(
    text: bytes,
    view: View,
    numbers: Mapping[str, int],
    owner: str,
    channels: Mapping[str, bytes],
    threshold: int,
) -> Lock:
    """Lock `text` for the holders in `channels`, the other survivors' shared secrets with `owner`."""
    key = os.urandom(KEY_BYTES)
    points = [numbers[owner], *(numbers[holder] for holder in channels)]
    shares = split(key, points, threshold, field_for(len(numbers)))
    padded = {}
    for holder, channel in channels.items():
        pad = view.pad(channel, owner, holder)
        padded[holder] = _add(shares[numbers[holder]], pad[:KEY_BYTES]) + pad[KEY_BYTES:]
    return Lock(seal(key, text, view.survivors), shares[numbers[owner]], padded)


def _add(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))
