"""A hospital's service in this process, and what a coordinator gets from it, without what is drawn at random."""

from pathlib import Path

from tests.deploy.hospital import SITES, edit, record_approval
from tests.neighbours.cohorts import Cohort
from tests.neighbours.harness import Hospital, make_offer

from fedveil import __version__
from fedveil.deploy.identity import Identity
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, new_id, seal, unseal
from fedveil.deploy.site.service import open_service
from fedveil.federation import Declined, Reply, Request
from fedveil.federation.wire import Frame, decode, encode, pack, unpack
from fedveil.privacy import Ledger
from fedveil.study import Study


class Served:
    """A hospital's service in this process, and what a coordinator gets from it, without what is drawn at random."""

    def __init__(self, folder: Path, study: Study, write, images: Cohort, **settings: object) -> None:
        folder.mkdir(parents=True)
        site = Hospital(folder, write, study.privacy.unit, **settings)
        site.cohorts(images)
        self.coordinator = Identity.create(folder.parent / "coordinator.key")
        edit(folder / "site.toml", coordinator=f'"{self.coordinator.public}"')
        offer = make_offer(study)
        self.agreement = offer.agreement()
        self.service = open_service(folder, Ledger(folder / "ledger.jsonl"))
        self._send(encode(Frame("offer", {**offer.to_dict(), "nonce": "n"})))
        record_approval(self.service, self.agreement.digest)

    def _send(self, message: bytes) -> Frame:
        site = self.service.identity.public
        sealed = seal(message, self.coordinator, to=site, purpose=FROM_COORDINATOR, message=new_id())
        answer = unseal(self.service.answer(sealed), self.coordinator, sender=site, purpose=FROM_SITE)
        assert answer.body is not None
        return decode(answer.body)

    def status(self) -> str:
        """How the study stands here, once the service has looked at its images."""
        head = {"study": self.agreement.digest, "nonce": "n", "receipt": None, "version": __version__}
        self._send(encode(Frame("hello", head)))
        self.service._opening[self.agreement.digest].join()
        return self._send(encode(Frame("hello", head))).head["status"]

    def ask(self, release: str, attempt: int, parameters) -> tuple[object, ...]:
        """Kind, fields and code of an answer, and the shape of its vector."""
        request = Request(
            study=self.agreement.digest,
            release=release,
            round=1,
            attempt=attempt,
            participants=SITES,
            parameters=parameters,
        )
        frame = self._send(pack(request))
        answer = unpack(frame.blobs["answer"], Reply | Declined)
        if isinstance(answer, Declined):
            return "Declined", answer.release, answer.round, answer.attempt, answer.code
        receipt = {
            key: value for key, value in frame.head["receipt"].items() if key not in ("answer", "hash")
        }
        assert receipt["cost"]["steps"] == self.agreement.release(release).steps_per_round
        shape, kind = answer.vector.shape, str(answer.vector.dtype)
        return "Reply", answer.release, answer.round, answer.attempt, shape, kind
