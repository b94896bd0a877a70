"""The command by which a person at a hospital approves a study, after reviewing it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.encoders.device import with_encoders_of
from fedveil.cli.output.console import console, speak_plainly
from fedveil.deploy.approval import image_problems, match_keys
from fedveil.deploy.identity import Identity, fingerprint, private_files
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers
from fedveil.deploy.site.offline import offline
from fedveil.deploy.site.review import Review, review
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import DataError, Refused

__all__ = ["Folder", "approve", "show"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Folder = Annotated[Path, typer.Argument(help="The site's folder, with its site.toml.")]


def approve(
    study: Annotated[
        str, typer.Argument(help="An offered study: its digest, the digest's beginning, or its name.")
    ],
    folder: Folder = Path("site"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; the study must be given by its full digest.")
    ] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FINGERPRINT, as that hospital read it to you; once for each new key."),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Approve even though some images here will not be used.")
    ] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Withdraw an approval.")] = False,
) -> None:
    """Approve one offered study, after showing what it would cost here.

    Example: fedveil site approve 3f2a91 site
    """
    with speak_plainly(), offline(), with_encoders_of(folder):
        config, studies = SiteConfig.load(folder), Studies(folder / "studies")
        listed = studies.find(study)
        if withdraw:
            studies.withdraw(listed.digest)
            console.print(f"{listed.agreement.name} is no longer approved")
            return
        if yes and study != listed.digest:
            raise Refused(
                f"{study} is not a full digest",
                "names repeat, and prefixes of digests can be forged: with --yes the full digest is required",
                f"read the study, then give its digest; the one offered now has {listed.digest}",
            )
        found = review(config, listed)
        show(found)
        if found.objection:
            raise Refused(
                f"{listed.agreement.name} is outside this site's policy or budget",
                "what the policy forbids cannot be approved",
                "change site.toml or the study",
            )
        _say_images(config, listed, leave_out=leave_out)
        peers, new = Peers(folder / "peers"), {}
        if listed.agreement.trust == "secure-aggregation":
            new = peers.unconfirmed(listed.agreement.sites, listed.offer.keys, config.site.name)
        _compare_keys(match_keys(new, key or []), ask=not yes)
        if not yes:
            typer.confirm("Approve it?", abort=True)
        with private_files():
            peers.confirm(new)
            studies.approve(listed.digest)
        console.print(f"approved {listed.digest}", soft_wrap=True)


def _say_images(config: SiteConfig, listed: Listed, *, leave_out: bool) -> None:
    """Name every image that the study cannot use; refuse if there are any, unless they may be left out."""
    problems = image_problems(Cohorts(config, Identity.load(config.folder / "identity.key")), listed)
    for problem in problems:
        console.print(f"problem    {problem}", soft_wrap=True, markup=False)
    if problems and not leave_out:
        raise DataError(
            f"{config.data.source} has {len(problems)} problems for {listed.agreement.name}",
            "what cannot be used is left out silently once a study is approved",
            "correct what is named above, or approve without it: --leave-out",
        )


def _compare_keys(new: Mapping[str, str], *, ask: bool) -> None:
    """Ask a person to confirm that each new key's owner read the same fingerprint; refuse if nobody can be asked."""
    for hospital, public in new.items():
        console.print(f"{hospital} has the fingerprint {fingerprint(public)}", soft_wrap=True, markup=False)
        if not ask:
            raise Refused(
                f"nobody here has confirmed the key of {hospital}",
                "a coordinator that may choose the hospitals' keys can read their sums",
                f"have {hospital} read its fingerprint by telephone and give it: --key {hospital}=FINGERPRINT",
            )
        typer.confirm(f"Did {hospital} read you exactly this fingerprint by telephone?", abort=True)


def show(found: Review) -> None:
    """Print what a study would cost here."""
    for line in found.sentences:
        console.print(line, soft_wrap=True, markup=False)
