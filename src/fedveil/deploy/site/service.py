"""The site service: the only program of a hospital that uses images and budget. It opens no connections.

It answers sealed messages on a local socket. A message that is not signed by the hospital's coordinator, is
malformed, or asks for anything that was not approved here is refused, with one line in the log and nothing charged.
Requests of all studies are answered one at a time under one ledger; greetings are answered at any time. A study's
finished model is received and stored; the answer only confirms that."""

import logging
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.protocol import mismatch, stated
from fedveil.deploy.receipts import Receipt
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, NO_ID, Opened, seal, unseal
from fedveil.deploy.site.answers import Spool
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.models import Kept, Models
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import FederationError, FedveilError, Refused
from fedveil.federation import Declined, Reply, Request, Site
from fedveil.federation.messages import Answer, SecureRequest
from fedveil.federation.wire import Frame, WireError, decode, encode, pack, unpack
from fedveil.names import attempt_words
from fedveil.privacy import Head, Ledger, verify_ledger
from fedveil.study import has_own, own_model

__all__ = ["SiteService", "open_service"]

log = logging.getLogger("fedveil.site")

_SECURE_ANSWERS = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Stale(Refused):
    """A message whose date is too far from this machine's clock: it was delayed, or a clock is wrong."""


class _Open(NamedTuple):
    """An approved study that is ready to answer."""

    site: Site
    listed: Listed


class SiteService:
    """Answers sealed messages for one hospital.

    Args:
        config: the hospital's settings.
        identity: the hospital's signing key.
        ledger: the hospital's open ledger.
    """

    def __init__(self, config: SiteConfig, identity: Identity, ledger: Ledger) -> None:
        self.config, self.identity, self.ledger = config, identity, ledger
        self.studies = Studies(config.folder / "studies")
        self.models = Models(config.folder / "models")
        self._spool = Spool(config.folder / "spool")
        self._cohorts = Cohorts(config, identity)
        self._concluding: list[threading.Thread] = []
        self._limit = config.message_limit
        self._sites: dict[str, _Open] = {}
        self._secure_answers: dict[bytes, bytes] = {}
        self._opening: dict[str, threading.Thread] = {}
        self._busy, self._keeping = threading.RLock(), threading.Lock()
        self._copied: object = None
        self._forgotten = 0
        self._leave_out_forgotten()
        self.copy_decisions()

    def copy_decisions(self) -> None:
        """Record in the ledger what people decided since the last time; nothing may be answered if that fails."""
        lines = self.studies.decisions.lines()
        if lines is not self._copied:
            self.studies.decisions.copy_to(self.ledger)
            self._copied = lines

    def resume(self) -> None:
        """Open every approved study that is not finished, and do what is left to do after those that are."""
        for listed in self.studies.all():
            if listed.state != "approved":
                continue
            if not self.models.of(listed.digest).is_done:
                self.status(listed.digest)
            self.conclude(listed.digest)

    def answer(self, sealed: bytes) -> bytes:
        """The sealed answer to a sealed message. Never raises because of a message's content."""
        asked, coordinator = NO_ID, self.config.site.coordinator
        try:
            opened = unseal(sealed, self.identity, sender=coordinator, purpose=FROM_COORDINATOR)
            asked = opened.id
            reply = self._reply(opened)
        except Stale as error:
            log.warning("refused: %s", error)
            reply = self._frame("stale", clock=round(time.time()))
        except FedveilError as error:
            log.warning("refused: %s", error)
            reply = self._frame("refused")
        except Exception as error:  # noqa: BLE001 - no message may stop the service, no trace may leave it
            log.error("refused: %s: %.200r", type(error).__name__, str(error))
            reply = self._frame("refused")
        return reply if isinstance(reply, bytes) else self._sealed(reply, asked)

    def _reply(self, asked: Opened) -> Frame | bytes:
        """The answer to a message with a valid seal; bytes if it is already sealed."""
        if asked.body is None:
            self._check_fresh(asked)
            return self._frame("introduced")
        frame = decode(asked.body, limit=self._limit)
        match frame.kind:
            case "request":
                return self._request(unpack(asked.body, Request, limit=self._limit), asked)
            case "secure-request":
                return self._secure(unpack(asked.body, SecureRequest, limit=self._limit), asked)
        self._check_fresh(asked)
        match frame.kind:
            case "hello":
                return self._hello(frame.head)
            case "offer":
                return self._offer(frame.head)
            case "model":
                return self._model(frame)
            case other:
                raise WireError(f"a message of kind {other!r} arrived")

    def _check_fresh(self, asked: Opened) -> None:
        """Refuse a delayed message; an already answered one is found, and its answer sent again, before this check."""
        most, age = self.config.policy.max_message_age, asked.age()
        if abs(age) > most:
            raise Stale(
                f"a message arrived that was sent {age:.0f} s ago according to the two clocks",
                f"policy.max_message_age is {most:g} s, in either direction",
                "synchronise the clocks of coordinator and hospital by NTP; if they agree, somebody delays messages",
            )

    def _sealed(self, frame: Frame, asked: bytes) -> bytes:
        """An answer, encrypted to the coordinator; ``asked`` is the id of the request."""
        coordinator = self.config.site.coordinator
        return seal(encode(frame), self.identity, to=coordinator, purpose=FROM_SITE, message=asked)

    def _frame(self, kind: str, **head: Any) -> Frame:
        return Frame(kind, {"site": self.config.site.name, **head})

    def _hello(self, head: Mapping[str, Any]) -> Frame:
        """Report this site's identity and a study's state here; the nonce proves that the answer is fresh."""
        study, nonce, known = head.get("study"), head.get("nonce"), head.get("receipt")
        if (why := mismatch(head)) is not None:
            log.warning("%s", why)
        if not (isinstance(study, str) and _is_digest(study) and isinstance(nonce, str) and len(nonce) <= 64):
            raise WireError("a greeting without study and nonce arrived")
        if known is not None:
            self._check_not_rolled_back(Receipt.from_dict(known))
        self.copy_decisions()
        status = self.status(study)
        return self._frame("hello", nonce=nonce, study=study, status=status, **stated())

    def _check_not_rolled_back(self, receipt: Receipt) -> None:
        """Check for the line that the coordinator's last receipt quotes; a restored old ledger lacks it."""
        if receipt.site == self.config.site.name:
            verify_ledger(self.ledger.path, Head(receipt.seq, receipt.hash))

    def _offer(self, head: Mapping[str, Any]) -> Frame:
        offer = Offer.from_dict({key: value for key, value in head.items() if key != "nonce"})
        if self.config.site.name not in offer.sites:
            raise Refused(
                f"the offered study is between {', '.join(offer.sites)[:200]}",
                f"this site is called {self.config.site.name}",
                "have the coordinator correct the list, or correct site.name",
            )
        digest = self.studies.add(offer)
        status = self.status(digest)
        if status == "pending":
            log.info("study %s (%s) waits for approval", offer.study.study.name, digest[:12])
        return self._frame("offered", study=digest, status=status, nonce=str(head.get("nonce", ""))[:64])

    def _model(self, frame: Frame) -> Frame:
        """Store a finished model. The answer depends only on the message and the approval, which the status also
        reveals.

        It does not depend on what this hospital then does with the model.
        """
        study = str(frame.head.get("study"))
        if not (_is_digest(study) and self.studies.is_approved(study)):
            raise Refused(
                f"a finished model of study {study[:12]!r} arrived",
                "nobody here approved it",
                "see `fedveil site studies`",
            )
        offer = self.studies.read(study).offer
        with self._keeping:
            new = self.models.keep(study, offer, frame.arrays)
        if new:
            log.info(
                "the finished model of study %s is stored in %s", study[:12], self.models.of(study).folder
            )
            self.conclude(study)
        return self._frame("kept", study=study, nonce=str(frame.head.get("nonce", ""))[:64])

    def conclude(self, digest: str) -> None:
        """In the background, do the remaining work after a study's model has arrived; no result is sent."""
        kept = self.models.of(digest)
        if self.studies.is_approved(digest) and kept.exists() and not kept.is_done:
            thread = threading.Thread(target=self._conclude, args=(digest, kept))
            self._concluding.append(thread)
            thread.start()

    def _conclude(self, digest: str, kept: Kept) -> None:
        try:
            with self._busy:
                opened = self._approved(digest)
                if opened is None:
                    return
                wanted = self.config.policy.own_models and has_own(opened.listed.agreement)
                if wanted and kept.own() is None:
                    _make_own(opened, kept)
                kept.judge(opened.listed.offer, self._cohorts.judge)
                self._close(digest)
            log.info("study %s is finished; its results here are in %s", digest[:12], kept.folder)
        except Exception as error:  # noqa: BLE001 - a service goes on; at its next start it tries again
            log.error("the work after study %s cannot be done: %s", digest[:12], error)

    def _leave_out_forgotten(self) -> None:
        """At the start, and once another patient has withdrawn: read all images again without them."""
        if (version := self._cohorts.forgotten.version) != self._forgotten:
            self._sites.clear()
            self._opening.clear()
            self._cohorts.keep([])
            self._cohorts.forgotten.purge()
            self._forgotten = version

    def _close(self, digest: str) -> None:
        """Free what a study holds in memory; it is opened again if the coordinator asks for more."""
        self._sites.pop(digest, None)
        self._opening.pop(digest, None)
        self._cohorts.keep([one.listed.offer for one in list(self._sites.values())])

    def finish(self) -> None:
        """Wait until the background work is done."""
        for thread in self._concluding:
            thread.join()

    def status(self, digest: str) -> str:
        """The state of a study here: unknown, pending, declined, loading, ready or refused.

        It depends only on the offer, the approval, policy and budget. It reveals nothing about the images except the
        time to read them, between loading and ready.
        """
        if not self.studies.is_known(digest):
            return "unknown"
        if not self.studies.is_approved(digest):
            return "declined" if self.studies.is_declined(digest) else "pending"
        if digest in self._sites:
            return "ready"
        if (thread := self._opening.get(digest)) is not None and not thread.is_alive():
            return "ready" if digest in self._sites else "refused"
        if thread is None:
            thread = threading.Thread(target=self._host, args=(digest,), daemon=True)
            self._opening[digest] = thread
            thread.start()
        return "loading"

    def _host(self, digest: str) -> _Open | None:
        """Open the site of an approved study: None if policy or budget forbids it, independent of the images."""
        with self._busy:
            if digest in self._sites:
                return self._sites[digest]
            try:
                listed = self.studies.read(digest)
                site = self._cohorts.open(listed.offer, listed.agreement, self.ledger)
            except Exception as error:  # noqa: BLE001 - policy, budget or this machine; never the images
                log.error("study %s is refused: %s", digest, error)
                return None
            opened = self._sites[digest] = _Open(site, listed)
            log.info("study %s (%s) is ready", listed.agreement.name, digest[:12])
            return opened

    def _request(self, request: Request, asked: Opened) -> bytes:
        with self._busy:
            if not self.studies.is_approved(request.study):
                return self._decline(request, f"study {request.study[:12]} is not approved here", asked)
            if (stored := self._stored(request, asked)) is not None:
                return stored
            self._check_fresh(asked)
            opened = self._approved(request.study)
            if opened is None:
                return self._decline(request, f"study {request.study} is refused here", asked)
            answer = opened.site.handle(request)
            if not isinstance(answer, Reply):
                return self._seal(answer, None, asked)
            receipt = Receipt.of(answer, opened.listed.agreement, self.ledger.head)
            reply = self._seal(answer, receipt, asked)
            self._spool.keep(request, asked.digest, reply)
        log.info("%s round %s, %s answered", request.release, request.round, attempt_words(request.attempt))
        return reply

    def _secure(self, message: SecureRequest, asked: Opened) -> bytes:
        """Answer a set-up or recovery message of secure aggregation; a repeated one gets the same answer."""
        with self._busy:
            opened = self._approved(message.study)
            if opened is None:
                raise Refused(
                    f"a secure aggregation message for study {message.study[:12]!r} arrived",
                    "nobody here approved it",
                    "see `fedveil site studies`",
                )
            if asked.digest not in self._secure_answers:
                self._check_fresh(asked)
                self._secure_answers[asked.digest] = self._seal(opened.site.handle(message), None, asked)
                while len(self._secure_answers) > _SECURE_ANSWERS:
                    self._secure_answers.pop(next(iter(self._secure_answers)))
            return self._secure_answers[asked.digest]

    def _approved(self, study: str) -> _Open | None:
        """The site that answers an approved study; None for other studies.

        The caller holds the lock until it has answered. Opening a site takes time, so whatever people may have decided
        meanwhile is read again after it.
        """
        while _is_digest(study) and self.studies.is_approved(study):
            self.copy_decisions()
            self._leave_out_forgotten()
            if study not in self._sites:
                if self._host(study) is None:
                    return None
            elif self.studies.is_approved(
                study
            ):  # copied, then still approved: no withdrawal precedes the charge
                return self._sites[study]
        self._close(study)
        return None

    def _stored(self, request: Request, asked: Opened) -> bytes | None:
        try:
            stored = self._spool.find(request, asked.digest)
        except Refused as error:
            return self._decline(request, str(error), asked)
        if stored is not None:
            log.info("%s round %s: the stored answer is sent again", request.release, request.round)
        return stored

    def _decline(self, request: Request, reason: str, asked: Opened) -> bytes:
        log.warning("refused: %s", reason)
        declined = Declined(
            site=self.config.site.name,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            code="refused",
        )
        return self._seal(declined, None, asked)

    def _seal(self, answer: Answer, receipt: Receipt | None, asked: Opened) -> bytes:
        head: dict[str, Any] = {"site": answer.site, "receipt": None}
        if receipt is not None:
            head |= {"receipt": receipt.to_dict(), "signature": receipt.signed(self.identity)}
        return self._sealed(Frame("answer", head, {}, {"answer": pack(answer)}), asked.id)


def _make_own(opened: _Open, kept: Kept) -> None:
    """This hospital's own model, charged once; it is lost if the process is killed between charge and file."""
    agreement = opened.listed.agreement
    try:
        kept.keep_own(own_model(opened.site, agreement, kept.common()))
    except FedveilError as error:
        log.warning("study %s: no own model: %s", agreement.digest[:12], error)


def _is_digest(value: str) -> bool:
    return _DIGEST.fullmatch(value) is not None


def open_service(folder: Path, ledger: Ledger) -> SiteService:
    """The service of a site's folder, with its open ledger; refuses a budget whose delta is too large."""
    config = SiteConfig.load(folder)
    if not config.site.coordinator:
        raise FederationError(
            "site.coordinator is not set",
            "a site answers exactly one coordinator, identified by its public key",
            "copy the coordinator's public key into site.toml",
        )
    config.check_delta(ledger.state.budget.delta)
    if conflict := config.budget_conflict(ledger.state.budget):
        log.warning("%s", conflict)
    return SiteService(config, Identity.load(folder / "identity.key"), ledger)
