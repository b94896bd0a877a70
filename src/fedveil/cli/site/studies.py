"""The command that lists what a hospital was offered."""

import json
from pathlib import Path

from fedveil.cli.encoders.device import with_encoders_of
from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson, Folder, load_site

__all__ = ["site_studies"]


def site_studies(folder: Folder = Path("site"), as_json: AsJson = False) -> None:
    """List the offered studies, what each would cost, and which are approved.

    Example: fedveil site studies site
    """
    from fedveil.cli.site.decide import show
    from fedveil.deploy.site.approvals import Listed, Studies
    from fedveil.deploy.site.models import Models
    from fedveil.deploy.site.offline import offline
    from fedveil.deploy.site.review import review

    with speak_plainly(), offline(), with_encoders_of(folder):
        config = load_site(folder)
        models = Models(folder / "models")
        survey = list(Studies(folder / "studies").survey())
        if as_json:
            listed = [one for _, one in survey if isinstance(one, Listed)]
            print(json.dumps([review(config, one).to_dict() for one in listed], indent=2))
            return
        if not survey:
            console.print("no study has been offered yet")
        for digest, one in survey:
            if not isinstance(one, Listed):
                console.print(f"problem    study {digest[:12]}: {one}\n", soft_wrap=True, markup=False)
                continue
            show(review(config, one))
            console.print(f"decision     {one.approved or one.decision or 'none yet'}", markup=False)
            kept = models.of(digest)
            if kept.exists():
                console.print(f"own copy     {kept.folder}", soft_wrap=True, markup=False)
            console.print()
