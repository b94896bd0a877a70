"""A hospital's signed statement about one study: what was approved by whom, what it cost, and with what software.

The statement is one HTML file. Everything in it comes from this hospital: its ledger, its decisions, the offer that it
received. The last line holds the hospital's public key and its signature (Ed25519) on that key and on all bytes before.
"""

import hashlib
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedveil.deploy.identity import Identity, check_public_key, fingerprint, signing_key
from fedveil.deploy.records.facts import Fact
from fedveil.deploy.records.handover import HandOver, in_utc
from fedveil.deploy.records.inventory import bill_of_materials, document, versions
from fedveil.deploy.records.printed import need_pdf, printed
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.models import Models
from fedveil.deploy.site.review import Review, review
from fedveil.errors import FedveilError, InvalidValue, Refused
from fedveil.federation import release_of
from fedveil.installed import code_hash
from fedveil.io import write_private
from fedveil.names import SITE_NAME
from fedveil.privacy import Decision, LedgerState, delta_at, is_mixture
from fedveil.schema import explain

__all__ = ["Signed", "Stated", "verify_statement", "write_statement"]

_PURPOSE = b"fedveil statement 1\0"
_LAST = re.compile(rb"<!-- fedveil signature key=([0-9a-f]{128}) signature=([0-9a-f]{128}) -->\n")
_TITLE = re.compile(rb"<title>([^<]*)</title>")
_STATED = re.compile(rb'<meta name="fedveil-statement" content="([^"]*)">')
_CURVE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TRUST = {
    "site": "each hospital adds all of the noise itself: nobody else has to be trusted",
    "secure-aggregation": "sums are masked: nobody sees a hospital's own sum, and enough hospitals have to be honest",
    "server": "the coordinator sees each hospital's exact sum and adds the noise: it has to be trusted",
    "none": "no noise is added: nothing bounds what is revealed",
}
_MOST = 2**53  # JSON numbers up to here are exact in every program


def _utc(text: str) -> str:
    return in_utc(text).isoformat(timespec="seconds")


Total = Annotated[int, Field(ge=0, le=_MOST)]
Epsilon = Annotated[float, Field(ge=0)]


class Stated(BaseModel):
    """What a statement says of the hospital's ledger, for programs; a person reads the same on the page.

    ``line`` and ``hash`` are those of the ledger's last line, ``charges`` and ``epsilon`` those of the study, ``spent``
    epsilon of all studies, ``decision`` the last act on the study; an unlimited budget is null. Every other number is
    finite, and ``made`` is in UTC.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    site: str = Field(pattern=f"^{SITE_NAME}$")
    study: str = Field(pattern="^[0-9a-f]{64}$")
    made: Annotated[str, Field(max_length=40), AfterValidator(_utc)]
    decision: str = Field(pattern="^(approved|declined|withdrawn)$")
    charges: Total
    epsilon: Epsilon | None
    spent: Epsilon | None
    budget: Epsilon | None
    delta: float = Field(ge=0, lt=1)
    line: Total
    hash: str = Field(pattern="^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement whose signature is valid.

    Attributes:
        signer: the public key of whoever signed it.
        title: of the document.
        content: the part of the page that programs read, still as text.
    """

    signer: str
    title: str
    content: str

    @property
    def stated(self) -> Stated:
        """What the statement says, for programs.

        Raises:
            InvalidValue: an earlier version wrote it, without that part; or a value in that part cannot be.
        """
        try:
            return Stated.model_validate_json(html.unescape(self.content))
        except ValidationError as error:
            remedy = "have the hospital make it again with this version: fedveil site statement"
            if self.content:
                raise explain(error, self.title, InvalidValue, remedy, Stated) from None
            raise InvalidValue(
                f"{self.title} has no part that programs read, or one of another version",
                "a statement is taken in by what it states to programs",
                remedy,
            ) from None


def write_statement(
    config: SiteConfig, identity: Identity, digest: str, out: Path, *, pdf: bool = False
) -> tuple[Path, ...]:
    """Write the statement of a study, the bill of materials that it quotes, and a printout as PDF; return the paths.

    Raises:
        Refused: nothing was decided about the study, or a file is there already.
        InvalidValue: a PDF is asked for, and the package that writes it is not installed.
        LedgerError: the ledger is damaged.
    """
    if pdf:
        need_pdf()
    listed = Studies(config.folder / "studies").read(digest)
    found = review(config, listed)
    name = f"statement-{config.site.name}-{digest[:12]}"
    page, materials, paper = (out / f"{name}{end}" for end in (".html", ".sbom.json", ".pdf"))
    paths = (page, materials, paper) if pdf else (page, materials)
    for path in paths:
        if path.exists():
            raise Refused(
                f"{path} exists", "a statement is never overwritten", "choose another folder with --out"
            )
    bill = document(bill_of_materials())
    values = _values(config, identity, listed, found, bill)
    body = _template().render(**values).encode()
    signed = body + _signature(body, identity)
    contents = [signed, bill]
    if pdf:
        contents.append(printed(values, page.name, hashlib.sha256(signed).hexdigest()))
    # Every file is complete before the first is written: a statement is never half there.
    out.mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, contents, strict=True):
        write_private(path, content)
    return paths


def _values(
    config: SiteConfig, identity: Identity, listed: Listed, found: Review, bill: bytes
) -> dict[str, Any]:
    """What page and printout show."""
    return {
        "site": config.site.name,
        "fingerprint": fingerprint(identity.public),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": listed.agreement.name,
        "digest": listed.digest,
        "rows": found.rows,
        "trust": TRUST[listed.agreement.trust],
        "decisions": _decisions(config, listed),
        "curve": _curve(found),
        "charged": _charged(found.state, listed),
        "budget": _budget(found.state),
        "software": [*versions().items(), *_hashes(config, listed.digest, bill)],
        "study": listed.offer.study.to_toml(),
        "stated": _stated(config, listed, found.state).model_dump_json(),
    }


def _stated(config: SiteConfig, listed: Listed, state: LedgerState) -> Stated:
    charges = [charge for charge in state.charges if listed.agreement.charged_to(charge)]
    study = state.spent(*{charge.study for charge in charges}) if charges else 0.0
    epsilons = (study, state.spent(), state.budget.epsilon)
    limited = [None if math.isinf(one) else one for one in epsilons]
    return Stated(
        site=config.site.name,
        study=listed.digest,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        decision=listed.state,
        charges=len(charges),
        epsilon=limited[0],
        spent=limited[1],
        budget=limited[2],
        delta=state.delta,
        line=state.head.seq,
        hash=state.head.hash,
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fedveil.deploy.records"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("statement.html.j2")


def _decisions(config: SiteConfig, listed: Listed) -> list[Decision]:
    found = [
        one for one in Studies(config.folder / "studies").decisions.all() if one.subject == listed.digest
    ]
    if not found and listed.legacy is None:
        raise Refused(
            f"nothing was decided about study {listed.digest[:12]}",
            "a statement is about a decision",
            "approve or decline the study first",
        )
    return found


def _curve(found: Review) -> list[tuple[float, float]]:
    """Delta of the whole study by epsilon: every row is a guarantee that holds, and all of them hold at once.

    No rows for a mixture of which some releases sample: they would hold for a fixed sequence of requests only.
    """
    if found.guarantee is None or is_mixture(found.listed.agreement.mechanisms):
        return []
    return [(epsilon, delta_at(found.listed.agreement.mechanisms, epsilon)) for epsilon in _CURVE]


def _charged(state: LedgerState, listed: Listed) -> list[tuple[str, int, str, str]]:
    """By release: how often it was charged, first and last time."""
    charges = [charge for charge in state.charges if listed.agreement.charged_to(charge)]
    found = []
    for label in dict.fromkeys(release_of(charge.label) for charge in charges):
        times = [charge.time for charge in charges if release_of(charge.label) == label]
        found.append((label, len(times), times[0], times[-1]))
    return found


def _budget(state: LedgerState) -> list[Fact]:
    by_study = [
        (study.rpartition(" ")[0] or study, f"epsilon {state.spent(study):.4g}") for study in state.studies
    ]
    return [
        ("budget", str(state.budget)),
        *by_study,
        ("all studies", f"epsilon {state.spent():.4g} at delta {state.delta:.4g}"),
        ("alone", f"epsilon {state.spent_alone():.4g} if everyone else colludes"),
        ("ledger", f"line {state.head.seq} with hash {state.head.hash}"),
    ]


def _hashes(config: SiteConfig, digest: str, bill: bytes) -> list[Fact]:
    rows = [("code of fedveil", code_hash()), ("bill of materials", hashlib.sha256(bill).hexdigest())]
    model = Models(config.folder / "models").of(digest).folder / "model.safetensors"
    if model.exists():
        rows.append(("finished model", hashlib.sha256(model.read_bytes()).hexdigest()))
    return rows


def _signature(body: bytes, identity: Identity) -> bytes:
    made = identity.key.sign(_signed(body, identity.public)).hex()
    return f"<!-- fedveil signature key={identity.public} signature={made} -->\n".encode()


def _signed(body: bytes, signer: str) -> bytes:
    """The signed bytes: the whole public key is among them, since only its first half checks the signature."""
    return _PURPOSE + bytes.fromhex(signer) + hashlib.sha256(body).digest()


def verify_statement(path: Path, expected: str | None = None, handed: Sequence[HandOver] = ()) -> Signed:
    """Check a statement's signature.

    Args:
        path: the HTML file.
        expected: the hospital's fingerprint, as it read it, or its public key; None leaves that to a person.
        handed: hand-overs of the hospital's keys, oldest first: a statement may be signed with an earlier key.

    Raises:
        InvalidValue: the file is no statement.
        Refused: it was changed after it was signed, or somebody else signed it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidValue(
            f"{path} cannot be read ({error.strerror})", "a statement is one HTML file", "check the path"
        ) from None
    start = content.rfind(b"<!-- fedveil signature")
    last = _LAST.fullmatch(content[start:]) if start >= 0 else None
    title = _TITLE.search(content)
    if last is None or title is None:
        raise InvalidValue(
            f"{path} is not a signed statement",
            "its last line must be the hospital's signature",
            "ask the hospital for the file that `fedveil site statement` wrote",
        )
    signer = last[1].decode()
    try:
        verify = Ed25519PublicKey.from_public_bytes(signing_key(check_public_key(signer))).verify
        verify(bytes.fromhex(last[2].decode()), _signed(content[:start], signer))
    except (InvalidSignature, FedveilError):
        raise Refused(
            f"{path} was changed after {fingerprint(signer)} signed it, or that key did not sign it",
            "a statement is valid as a whole or not at all",
            "ask the hospital for the original",
        ) from None
    keys = [signer]
    for one in handed:
        if one.old == keys[-1]:
            keys.append(one.new)
    if expected is not None and not any(_is_of(key, expected) for key in keys):
        raise Refused(
            f"{path} is signed by {fingerprint(signer)}",
            f"{expected[:100]} was expected",
            "compare the fingerprint by telephone",
        )
    stated = _STATED.search(content[:start])
    return Signed(
        signer, title[1].decode("utf-8", "replace"), stated[1].decode("utf-8", "replace") if stated else ""
    )


def _is_of(signer: str, expected: str) -> bool:
    digits = re.sub(r"[\s:-]", "", expected.lower())
    return digits in (signer, fingerprint(signer).replace("-", ""))
