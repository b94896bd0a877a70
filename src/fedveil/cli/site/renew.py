"""The commands for a new key: of this hospital, of its node, and of another hospital."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import By, Folder, Reason, Role, asked, load_site

__all__ = ["File", "Keys", "confirm_peer", "site_renew"]

File = Annotated[Path, typer.Argument(help="The file handover-NAME-....json that the hospital sent.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FINGERPRINT, the new one, as that hospital read it to you by telephone."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def site_renew(
    folder: Folder = Path("site"), by: By = None, role: Role = None, reason: Reason = None, yes: Yes = False
) -> None:
    """Replace the identity key of a site, or the key of a node if its folder is given.

    A site's new key is signed over by the old one, so receipts and statements of both stay verifiable. Refused while
    an approved study is not finished, or the site service runs. After an interruption, repeat it.

    Example: fedveil site renew site --reason "yearly"
    """
    with speak_plainly():
        if (folder / "node.toml").exists() and not (folder / "site.toml").exists():
            _renew_node(folder)
            return
        from fedveil.deploy.identity import fingerprint
        from fedveil.deploy.provisioning.renewal import renew_identity

        load_site(folder)
        name, place = asked(by, "Your name", ask=not yes), asked(role, "Your role", ask=not yes)
        why = asked(reason, "The reason", ask=not yes)
        if not yes:
            typer.confirm("Replace the identity key?", abort=True)
        one, path = renew_identity(folder, by=name, role=place, reason=why)
        console.print(f"new fingerprint of this site: {fingerprint(one.new)}")
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
        for earlier in sorted(set(folder.glob("handover-*.json")) - {path}):
            console.print(f"who has not confirmed {earlier} needs it first", soft_wrap=True, markup=False)
        console.print(
            "next: start the site service; send that file to the coordinator and to every hospital,"
        )
        console.print(
            "read them the new fingerprint by telephone, and have them run `fedveil federation confirm`"
        )
        console.print("and `fedveil site confirm`; back up identity.key and patients.key")


def _renew_node(folder: Path) -> None:
    from fedveil.deploy.provisioning.renewal import renew_node

    path = renew_node(folder)
    console.print(f"wrote {path}", soft_wrap=True, markup=False)
    console.print(
        "next: give that file to the coordinator as nodes/NAME.pub of its folder, then restart the node;"
    )
    console.print("a study that runs loses this hospital until its coordinator resumes it")


def confirm_peer(handover: File, folder: Folder = Path("site"), key: Keys = None, yes: Yes = False) -> None:
    """Use another hospital's new identity key, once its fingerprint was compared by telephone.

    Example: fedveil site confirm handover-south-163b4f2cd210.json site
    """
    from fedveil.cli.site.decide import compare_keys
    from fedveil.deploy.approval import check_hand_over, confirm_key, is_confirmed, match_keys
    from fedveil.deploy.records.handover import read_hand_over

    with speak_plainly():
        config, one = load_site(folder), read_hand_over(handover)
        if is_confirmed(config, one):
            console.print(f"the new key of {one.site} is used already", soft_wrap=True, markup=False)
            return
        check_hand_over(config, one)
        compare_keys(match_keys({one.site: one.new}, key or [], "the one in the file"), ask=not yes)
        confirm_key(config, one)
        console.print(f"the new key of {one.site} is used from now on", soft_wrap=True, markup=False)
