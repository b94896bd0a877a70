"""The commands by which a person at a hospital decides about a study, after reviewing it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.encoders.device import with_encoders_of
from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import By, Folder, Reason, Role, asked, load_site
from fedveil.errors import Refused

if TYPE_CHECKING:
    from fedveil.deploy.site.review import Review

__all__ = ["approve_study", "compare_keys", "decline_study", "show", "withdraw_study"]

Named = Annotated[
    str, typer.Argument(help="An offered study: its digest, the digest's beginning, or its name.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; the study must be given by its full digest.")]


def approve_study(
    study: Named,
    folder: Folder = Path("site"),
    by: By = None,
    role: Role = None,
    reason: Reason = None,
    yes: Yes = False,
    key: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FINGERPRINT, as that hospital read it to you; once for each new key."),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Approve even though some images here will not be used.")
    ] = False,
) -> None:
    """Approve one offered study, after showing what it would cost here.

    Example: fedveil site approve 3f2a91 site
    """
    from fedveil.deploy.approval import approve, check_approval, match_keys
    from fedveil.deploy.site.approvals import Studies
    from fedveil.deploy.site.offline import offline
    from fedveil.deploy.site.review import review

    with speak_plainly(), offline(), with_encoders_of(folder):
        config = load_site(folder)
        listed = Studies(folder / "studies").find(study)
        _check_named(study, listed.digest, yes=yes)
        found = review(config, listed)
        show(found)
        checked = check_approval(config, found, leave_out=leave_out)
        for problem in checked.problems:
            console.print(f"left out     {problem}", soft_wrap=True, markup=False)
        compare_keys(match_keys(checked.new, key or []), ask=not yes)
        name = asked(by, "Your name", ask=not yes)
        place = asked(role, "Your role", ask=not yes)
        if not yes:
            typer.confirm("Approve it?", abort=True)
        decision = approve(config, checked, by=name, role=place, reason=reason or "")
        console.print(f"approved {listed.digest}", soft_wrap=True)
        console.print(f"on record: {decision}", soft_wrap=True, markup=False)


def decline_study(
    study: Named,
    folder: Folder = Path("site"),
    by: By = None,
    role: Role = None,
    reason: Reason = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="The coordinator is not told; for it, the study stays pending.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Decline an offered study, with a reason.

    The reason stays here. The coordinator is told that the study is declined, and nothing more.

    Example: fedveil site decline 3f2a91 site --reason "no legal basis"
    """
    from fedveil.deploy.approval import decline

    with speak_plainly():
        config, digest = load_site(folder), _digest(study, folder, yes=yes)
        name, place, why = _who(by, role, reason, ask=not yes)
        decision = decline(config, digest, by=name, role=place, reason=why, told=not quiet)
        console.print(f"on record: {decision}", soft_wrap=True, markup=False)


def withdraw_study(
    study: Named,
    folder: Folder = Path("site"),
    by: By = None,
    role: Role = None,
    reason: Reason = None,
    yes: Yes = False,
) -> None:
    """Withdraw an approval: nothing more is answered, and what was released stays charged.

    Example: fedveil site withdraw 3f2a91 site --reason "the purpose has changed"
    """
    from fedveil.deploy.approval import withdraw

    with speak_plainly():
        config, digest = load_site(folder), _digest(study, folder, yes=yes)
        name, place, why = _who(by, role, reason, ask=not yes)
        decision = withdraw(config, digest, by=name, role=place, reason=why)
        console.print(f"on record: {decision}", soft_wrap=True, markup=False)


def _digest(study: str, folder: Path, *, yes: bool) -> str:
    from fedveil.deploy.site.approvals import Studies

    studies = Studies(folder / "studies")
    digest = study if len(study) == 64 and studies.is_known(study) else studies.find(study).digest
    _check_named(study, digest, yes=yes)
    return digest


def _check_named(study: str, digest: str, *, yes: bool) -> None:
    if yes and study != digest:
        raise Refused(
            f"{study} is not a full digest",
            "names repeat, and prefixes of digests can be forged: with --yes the full digest is required",
            f"read the study, then give its digest; the one offered now has {digest}",
        )


def _who(by: str | None, role: str | None, reason: str | None, *, ask: bool) -> tuple[str, str, str]:
    return (
        asked(by, "Your name", ask=ask),
        asked(role, "Your role", ask=ask),
        asked(reason, "The reason", ask=ask),
    )


def compare_keys(new: Mapping[str, str], *, ask: bool) -> None:
    """Ask a person to confirm that each new key's owner read the same fingerprint; refuse if nobody can be asked."""
    from fedveil.deploy.identity import fingerprint

    for hospital, public in new.items():
        console.print(f"{hospital} has the fingerprint {fingerprint(public)}", soft_wrap=True, markup=False)
        if not ask:
            raise Refused(
                f"nobody here has confirmed the key of {hospital}",
                "a coordinator that may choose the hospitals' keys can read their sums",
                f"have {hospital} read its fingerprint by telephone and give it: --key {hospital}=FINGERPRINT",
            )
        typer.confirm(f"Did {hospital} read you exactly this fingerprint by telephone?", abort=True)


def show(found: "Review") -> None:
    """Print what a study would cost here."""
    for line in found.sentences:
        console.print(line, soft_wrap=True, markup=False)
