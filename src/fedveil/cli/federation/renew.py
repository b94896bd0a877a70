"""``fedveil federation renew``, ``confirm`` and ``certificates``: keys and certificates over the years."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.engines import need_flower
from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson
from fedveil.cli.site.renew import File, Keys, Yes
from fedveil.errors import InvalidValue

__all__ = ["federation_certificates", "federation_confirm", "federation_renew"]

Home = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
_DEFAULT = Path("coordinator")


def federation_renew(
    folder: Home = _DEFAULT,
    authority: Annotated[
        bool, typer.Option("--authority", help="Replace the certificate authority, in two steps.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="The second step: every hospital's node has the new ca.pem.")
    ] = False,
    secret: Annotated[bool, typer.Option("--secret", help="Replace the SuperLink's secret.")] = False,
) -> None:
    """Renew the SuperLink's certificate, which is valid for 825 days; hospitals need not do anything.

    With --authority or --secret, that is replaced instead. The secret, and the authority's second step, are refused
    while the SuperLink is in use.

    Example: fedveil federation renew lungs/coordinator
    """
    with speak_plainly():
        if (authority and secret) or (finish and not authority):
            raise InvalidValue(
                "--authority, --finish and --secret are combined",
                "one thing is renewed at a time, and --finish belongs to --authority",
                "give one of: nothing, --authority, --authority --finish, --secret",
            )
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.provisioning import renewal

        if authority or secret:
            if (engine := Federation.load(folder).table.engine) != "flower":
                raise InvalidValue(
                    f"the engine of this federation is {engine}",
                    "its nodes have certificates of the authority, and it has no SuperLink",
                    "make new kits with `fedveil federation init`, and give each hospital its node/ folder",
                )
            need_flower()
        if secret:
            renewal.renew_secret(folder, Federation.load(folder).link)
            console.print(f"renewed {folder / 'superlink.secret'}", soft_wrap=True)
        elif authority and not finish:
            path = renewal.prepare_authority(folder, Federation.load(folder).table.name)
            console.print(
                f"next: give every hospital {path} for its node's folder; restart the nodes;", soft_wrap=True
            )
            console.print(
                "then `fedveil federation renew --authority --finish`; nothing is broken before that"
            )
        else:
            hosts = (
                renewal.finish_authority(folder, Federation.load(folder).link)
                if finish
                else renewal.renew_certificate(folder)
            )
            console.print(f"renewed {folder / 'superlink.pem'} for {', '.join(hosts)}", soft_wrap=True)
            console.print("a SuperLink that runs uses it once it is restarted")


def federation_confirm(handover: File, folder: Home = _DEFAULT, key: Keys = None, yes: Yes = False) -> None:
    """Use a hospital's new identity key, once its fingerprint was compared by telephone.

    Example: fedveil federation confirm handover-south-163b4f2cd210.json lungs/coordinator
    """
    with speak_plainly():
        from fedveil.cli.site.decide import compare_keys
        from fedveil.deploy.approval import match_keys
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.records.handover import read_hand_over

        one, home = read_hand_over(handover), Federation.load(folder)
        if home.keys().get(one.site) == one.new:
            console.print(f"the new key of {one.site} is used already", soft_wrap=True, markup=False)
            return
        home.check(one)
        compare_keys(match_keys({one.site: one.new}, key or [], "the one in the file"), ask=not yes)
        home.accept(one)
        console.print(f"the new key of {one.site} is used from now on", soft_wrap=True, markup=False)


def federation_certificates(
    folder: Home = _DEFAULT,
    as_json: AsJson = False,
    prometheus_file: Annotated[
        Path | None, typer.Option("--prometheus", help="Also write metrics to this file, for its collector.")
    ] = None,
) -> None:
    """Print how many days the certificates are still valid; exit code 1 within 30 days of the end, 2 after it.

    Example: fedveil federation certificates lungs/coordinator
    """
    from fedveil.deploy.provisioning.expiry import SOON, certificate_days, prometheus, remedy
    from fedveil.io import write_atomic

    with speak_plainly():
        left = certificate_days(folder)
        if prometheus_file is not None:
            metrics = prometheus(folder).encode()
            write_atomic(prometheus_file, lambda file: file.write(metrics))
        if as_json:
            print(json.dumps(left))
        for name, days in () if as_json else left.items():
            todo = f": {remedy(name)}" if days < SOON else ""
            console.print(f"{name} is valid for {days} more days{todo}", soft_wrap=True)
    least = min(left.values())
    raise typer.Exit(2 if least < 0 else 1 if least < SOON else 0)
