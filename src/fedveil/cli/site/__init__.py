"""The commands of a hospital, each imported when it is run."""

import typer

from fedveil.cli.lazy import LazyCommand, lazy_group

__all__ = ["SITE_COMMANDS", "site"]

_HERE = "fedveil.cli.site"

SITE_COMMANDS = (
    LazyCommand(
        "init",
        f"{_HERE}.setup:site_init",
        "Make a site's signing key and ledger; with --name, a commented site.toml first.",
    ),
    LazyCommand(
        "check",
        f"{_HERE}.setup:site_check",
        "Check a site's settings, keys, images and ledger, and print what is left of its budget.",
    ),
    LazyCommand(
        "serve",
        f"{_HERE}.serve:site_serve",
        "Answer approved studies until stopped; on SIGTERM it stops after the current request.",
    ),
    LazyCommand(
        "connect",
        f"{_HERE}.serve:site_connect",
        "Carry messages between the coordinator and this hospital's site service, until stopped.",
    ),
    LazyCommand(
        "studies",
        f"{_HERE}.studies:site_studies",
        "List the offered studies, what each would cost, and which are approved.",
    ),
    LazyCommand(
        "approve",
        f"{_HERE}.decide:approve_study",
        "Approve one offered study, after showing what it would cost here.",
    ),
    LazyCommand("decline", f"{_HERE}.decide:decline_study", "Decline an offered study, with a reason."),
    LazyCommand(
        "withdraw",
        f"{_HERE}.decide:withdraw_study",
        "Withdraw an approval: nothing more is answered, and what was released stays charged.",
    ),
    LazyCommand(
        "desk",
        f"{_HERE}.desk:site_desk",
        "Open a page on this machine for the person who decides about studies, until stopped.",
    ),
    LazyCommand(
        "forget",
        f"{_HERE}.forget:forget_patient",
        "Leave out a patient who withdraws, delete what was computed, and say what they took part in.",
    ),
    LazyCommand(
        "renew",
        f"{_HERE}.renew:site_renew",
        "Replace the identity key of a site, or the key of a node if its folder is given.",
    ),
    LazyCommand(
        "confirm",
        f"{_HERE}.renew:confirm_peer",
        "Use another hospital's new identity key, once its fingerprint was compared by telephone.",
    ),
    LazyCommand(
        "statement",
        f"{_HERE}.statement:site_statement",
        "Write a signed statement on a study: decisions, guarantee, charges, software.",
    ),
    LazyCommand(
        "status",
        f"{_HERE}.status:site_status",
        "Report in one look whether the site is in order: budget, studies, refusals, certificates.",
    ),
    LazyCommand(
        "describe",
        f"{_HERE}.describe:describe_cohort",
        "Release noisy counts of patients per class, age band and sex, charged to the site's ledger.",
    ),
)

site = typer.Typer(cls=lazy_group(*SITE_COMMANDS), no_args_is_help=True, rich_markup_mode=None)


@site.callback()
def _site() -> None:
    """Run a hospital's side of a federation."""
