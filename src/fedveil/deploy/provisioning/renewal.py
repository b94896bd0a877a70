"""New keys and certificates in place of old ones; after an interruption, the same call does what is missing.

What others have to know of first is refused while it would break a study, and takes two steps where both sides would
otherwise have to change at the same moment.
"""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from fedveil.deploy.identity import Identity, check_private, private_files
from fedveil.deploy.locks import is_locked, locked_alone, release, turn
from fedveil.deploy.provisioning.certificates import Authority, names_of, node_keys
from fedveil.deploy.records.handover import HandOver, keep_hand_over, kept_hand_overs
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import HAND_OVERS, PATIENTS, patients_identity
from fedveil.deploy.site.models import Models
from fedveil.errors import InvalidValue, LedgerError, Refused
from fedveil.io import write_atomic, write_json, write_private
from fedveil.privacy import Decision, Ledger

if TYPE_CHECKING:  # a hospital that renews its key needs no Flower
    from fedveil.deploy.flower.process import LinkSettings

__all__ = [
    "finish_authority",
    "prepare_authority",
    "renew_certificate",
    "renew_identity",
    "renew_node",
    "renew_secret",
]

_NEXT_KEY, _NEXT = "ca.next.key", "ca.next.pem"


def renew_certificate(home: Path) -> list[str]:
    """Give the SuperLink a new key and certificate, for the addresses in the old one; return the addresses.

    Nothing changes for the hospitals: they trust the authority, which is unchanged.

    Raises:
        InvalidValue: the folder is not a coordinator's, or its files are damaged.
    """
    return _certify(home, _authority(home, "ca.key", "ca.pem"))


def prepare_authority(home: Path, name: str) -> Path:
    """Make a new certificate authority beside the old one; return the file that every hospital's node needs.

    That file, ``ca.pem``, holds both certificates from now on. The SuperLink keeps its certificate of the old
    authority, so nodes with the old file and with the new one are served.

    Raises:
        Refused: a new authority was prepared before and is not in force yet.
    """
    old = _authority(home, "ca.key", "ca.pem").certificate
    if (home / _NEXT_KEY).exists():
        raise Refused(
            f"{home / _NEXT_KEY} exists: a new authority is prepared",
            "hospitals are given one new authority at a time",
            "put it in force with --authority --finish once every hospital's node has the new ca.pem",
        )
    fresh = Authority.create(name)
    _write(home / _NEXT, fresh.certificate)
    _write(home / "ca.pem", old + fresh.certificate)
    write_private(home / _NEXT_KEY, fresh.key)
    return home / "ca.pem"


def finish_authority(home: Path, link: "LinkSettings") -> list[str]:
    """Put the new authority in force: the SuperLink gets a certificate of it, and the old one is trusted no more.

    Raises:
        Refused: none is prepared, or the SuperLink is in use.
    """
    if not (home / _NEXT_KEY).exists():
        raise Refused(
            "no new authority is prepared",
            "hospitals need its certificate before it is in force",
            "run `fedveil federation renew --authority` first, and give every hospital the new ca.pem",
        )
    _check_unused(link)
    fresh = _authority(home, _NEXT_KEY, _NEXT)
    hosts = _certify(home, fresh)
    _write(home / "ca.pem", fresh.certificate)
    (home / _NEXT_KEY).replace(home / "ca.key")
    (home / _NEXT).unlink(missing_ok=True)
    return hosts


def renew_secret(home: Path, link: "LinkSettings") -> None:
    """Give the SuperLink a new secret; hospitals never had it.

    Raises:
        Refused: the SuperLink is in use.
    """
    check_private(home / "superlink.secret")
    _check_unused(link)
    write_private(home / "superlink.secret", secrets.token_bytes(32))


def renew_node(folder: Path) -> Path:
    """Give a node of Flower a new key; return its public key's file, which the coordinator needs.

    Raises:
        Refused: the node has a certificate, which only the federation's authority can renew.
    """
    check_private(folder / "node.key")
    if (folder / "node.pem").exists():
        raise Refused(
            f"{folder} holds a certificate, node.pem",
            "the coordinator's authority signs it",
            "ask the coordinator for a new node/ folder",
        )
    private, public = node_keys()
    write_private(folder / "node.key", private)
    _write(folder / "node.pub", public)
    return folder / "node.pub"


def renew_identity(folder: Path, *, by: str, role: str, reason: str) -> tuple[HandOver, Path]:
    """Give a site a new identity key, signed over by the old one; return the hand-over and the file that holds it.

    The hand-over is a line of the ledger, by its hash, and of ``handovers.jsonl``. The first key is kept as
    ``patients.key``: under it patients' names stay hashed, so that the same are held out and left out.

    Raises:
        Refused: an approved study is not finished.
        LedgerError: the site service runs.
        InvalidValue: name, role or reason is missing; or a file of an earlier renewal is lost or damaged.
    """
    config = SiteConfig.load(folder)
    old = Identity.load(folder / "identity.key")
    Decision(
        act="renewed", subject="identity key", by=by, role=role, reason=reason
    )  # refused before anything is made
    _check_finished(folder)
    patients_identity(folder, old)  # refused before a later key is taken for the first one
    with private_files(), _own_ledger(folder) as ledger:
        handed = kept_hand_overs(folder / HAND_OVERS)
        fresh = folder / "identity.next.key"
        new = _next_identity(fresh, named=any(one.old == old.public for one in handed))
        begun = [one for one in handed if (one.old, one.new) == (old.public, new.public)]
        one = begun[0] if begun else HandOver.make(config.site.name, old, new)
        keep_hand_over(folder / HAND_OVERS, one)
        decisions = Studies(folder / "studies").decisions
        if decisions.last(one.subject) is None:
            decisions.record(Decision(act="renewed", subject=one.subject, by=by, role=role, reason=reason))
        decisions.copy_to(ledger)
        if not (folder / PATIENTS).exists():
            write_private(folder / PATIENTS, (folder / "identity.key").read_bytes())
        path = folder / f"handover-{config.site.name}-{one.new[:12]}.json"
        write_json(path, one.to_dict())
        fresh.replace(folder / "identity.key")
        fresh.with_suffix(".pub").unlink(missing_ok=True)
        _write(folder / "identity.pub", f"{new.public}\n".encode())
    return one, path


def _next_identity(fresh: Path, *, named: bool) -> Identity:
    """The key that an interrupted renewal made, or else a new one; an unusable one stays only if a hand-over names it.

    Raises:
        InvalidValue: a hand-over names the key, and it cannot be used.
    """
    if fresh.exists():
        try:
            return Identity.load(fresh)
        except InvalidValue as error:
            if named:
                raise InvalidValue(
                    error.found, "a hand-over names the key in this file", "restore it from a backup"
                ) from None
            fresh.unlink()
    return Identity.create(fresh)


def _own_ledger(folder: Path) -> Ledger:
    try:
        return Ledger(folder / "ledger.jsonl")
    except LedgerError as error:
        if "held by" not in error.found:
            raise
        raise LedgerError(
            error.found, "a running site service has the old key", "stop `fedveil site serve` first"
        ) from None


def _check_finished(folder: Path) -> None:
    models = Models(folder / "models")
    for listed in Studies(folder / "studies").all():
        if listed.state == "approved" and not models.of(listed.digest).exists():
            raise Refused(
                f"study {listed.agreement.name} ({listed.digest[:12]}) is approved and not finished",
                "a study's answers are sealed and signed with one key",
                f"wait for its end, or end it here: fedveil site withdraw {listed.digest} {folder}",
            )


def _check_unused(link: "LinkSettings") -> None:
    """Refuse while a SuperLink runs, or a coordinator uses one."""
    with turn(link.turn):
        alone = locked_alone(link.users)
        if alone is not None:
            release(alone)
        if alone is None or is_locked(link.standing):
            raise Refused(
                f"the SuperLink of {link.folder} is in use",
                "what authenticates it is not replaced while studies run",
                "wait for the studies' end, and stop `fedveil federation serve`",
            )


def _authority(home: Path, key: str, certificate: str) -> Authority:
    check_private(home / key)
    try:
        return Authority.load((home / key).read_bytes(), (home / certificate).read_bytes())
    except OSError as error:
        raise InvalidValue(
            f"{error.filename} cannot be read ({error.strerror})",
            "the certificate authority of the federation is needed",
            "restore it from a backup",
        ) from None


def _certify(home: Path, authority: Authority) -> list[str]:
    hosts = names_of((home / "superlink.pem").read_bytes())
    key, certificate = authority.certify(hosts)
    write_private(home / "superlink.key", key)
    _write(home / "superlink.pem", certificate)
    return hosts


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda file: file.write(content))
