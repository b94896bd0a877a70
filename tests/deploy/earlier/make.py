"""Write what this version writes, for the tests of later versions: ``python -m tests.deploy.earlier.make FOLDER``.

Run once for each version of a format, before it changes; the files are never written again.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.deploy.hospital import (
    SITES,
    Hospital,
    make_offer,
    record_approval,
    set_up,
    start_service,
    study_text,
    write_images,
)

from fedveil.deploy.identity import Identity
from fedveil.federation.wire import Frame, encode, pack
from fedveil.study import RunDirectory, Study, run


def wire(folder: Path, base: Path) -> None:
    """A hospital's folder and the messages of its first round, plain and sealed."""
    coordinator = Identity.create(base / "coordinator.key")
    home = set_up(base, coordinator)
    offer = make_offer(base)
    hospital = Hospital(home, coordinator, start_service(home), offer, offer.agreement())
    bodies = {
        "offer": encode(Frame("offer", {**offer.to_dict(), "nonce": "n"})),
        "hello": encode(
            Frame(
                "hello",
                {"study": hospital.agreement.digest, "nonce": "n", "receipt": None, "version": "0.1.0"},
            )
        ),
        "request": pack(hospital.request(release="statistics", parameters=hospital.start("statistics"))),
    }
    for name, body in bodies.items():
        asked = hospital.seal(body)
        answer = hospital.service.answer(asked)
        (folder / f"{name}.frame").write_bytes(body)
        (folder / f"{name}.sealed").write_bytes(asked)
        (folder / f"{name}.answer.frame").write_bytes(encode(hospital.open(answer)))
        (folder / f"{name}.answer.sealed").write_bytes(answer)
        if name == "offer":
            record_approval(hospital.service, hospital.agreement.digest)
            until = time.monotonic() + 60
            while (
                hospital.service.status(hospital.agreement.digest) == "loading" and time.monotonic() < until
            ):
                time.sleep(0.1)
    hospital.service.finish()
    hospital.service.ledger.close()
    for name in ("ledger.jsonl", "ledger.jsonl.head", "decisions.jsonl", "decisions.jsonl.head"):
        source = next(home.rglob(name))
        shutil.copyfile(source, folder / name)
    for name, source in (("north.key", home / "identity.key"), ("coordinator.key", base / "coordinator.key")):
        shutil.copyfile(source, folder / name)


def study(folder: Path, base: Path) -> None:
    """A finished run on one machine."""
    os.chdir(base)
    write_images(base / "images.npz", 60, seed=1)
    made = Study.parse(study_text(source="images.npz", rounds=2, trust="secure-aggregation"))
    made = made.with_changes({"data": {"sites": {"count": len(SITES)}}})
    run(RunDirectory.create(base / "run", made))
    for path in sorted((base / "run").rglob("*")):
        small = path.is_file() and path.suffix in (
            ".toml",
            ".json",
            ".jsonl",
            ".safetensors",
            ".csv",
            ".head",
        )
        if small and "baselines" not in path.parts:
            target = folder / "run" / path.relative_to(base / "run")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    for part in (wire, study):
        with tempfile.TemporaryDirectory() as name:
            part(folder, Path(name))


if __name__ == "__main__":
    main()
