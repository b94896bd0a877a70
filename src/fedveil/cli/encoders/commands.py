"""The commands for encoders that are not built in, and for choosing one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.encoders.device import DeviceName, on_device
from fedveil.cli.output.console import console, errors, speak_plainly
from fedveil.errors import InvalidValue

if TYPE_CHECKING:
    from fedveil.learning.encoders import EncoderSpec
    from fedveil.learning.encoders.external import Report

__all__ = ["app", "encoders_of"]

app = typer.Typer(
    help="Register, check and choose encoders that are not built in.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[str, typer.Argument(help='"FILE.onnx", "FILE.pt2", or "timm:NAME".')]
Weights = Annotated[
    Path | None, typer.Option(help="Safetensors file of the weights of timm:NAME; default timm's cache.")
]
Site = Annotated[
    Path | None, typer.Option(help="A site's folder, whose studies the encoder is for; default this user's.")
]
Size = Annotated[int | None, typer.Option(help="Pixels along each side, where the file leaves it open.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command("add")
def add(
    file: File, weights: Weights = None, site: Site = None, size: Size = None, as_json: AsJson = False
) -> None:
    """Examine an encoder in a process with limits, and store it under its SHA-256.

    Example: fedveil encoder add rad-dino.onnx --site site
    """
    from fedveil.learning.encoders.external import Store
    from fedveil.learning.encoders.external.register import register

    with speak_plainly():
        store = Store(encoders_of(site))
        spec, report = register(_spec(file, size), weights=weights, store=store)
        _show(spec, report, as_json)
        if not as_json:
            console.print(f"stored     {store.folder / spec.sha256}", soft_wrap=True, markup=False)


@app.command("check")
def check(
    file: File,
    weights: Weights = None,
    size: Size = None,
    device: DeviceName = "cpu",
    as_json: AsJson = False,
) -> None:
    """Print an encoder's length, hash and speed, and whether features depend on other images; nothing is stored.

    Example: fedveil encoder check rad-dino.onnx
    """
    from fedveil.learning.encoders.external import examine_file

    with speak_plainly(), on_device(device):
        _show(*examine_file(_spec(file, size), weights=weights), as_json)


@app.command("scan")
def scan_command(
    data: Annotated[str, typer.Option(help="PUBLIC images, as in a study file: nothing is charged.")],
    candidate: Annotated[
        list[str] | None, typer.Option(help="Features as in a study file; may be repeated. Default: a list.")
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels along each side that images are read at.")] = 64,
    epsilon: Annotated[float, typer.Option(help="The guarantee that candidates are compared under.")] = 1.0,
    seeds: Annotated[int, typer.Option(help="Trainings per half of the patients.")] = 2,
    positive: Annotated[
        list[str] | None, typer.Option(help="A class of the positive group; may be repeated.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The images of --data are public, as a scan needs them to be.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare encoders, layers and sizes by cross-validation on public images, under a guarantee.

    Example: fedveil encoder scan --data phantom --candidate efficientnet-lite0 --candidate scattering
    """
    from fedveil.data import is_path, load
    from fedveil.study import Study
    from fedveil.sweeps.encoders import CANDIDATES, scan

    with speak_plainly():
        if is_path(data) and not public:
            raise InvalidValue(
                f"--data is {data}",
                "a scan looks at images as often as it likes, and nothing is charged: it is for public images",
                "add --public if they are",
            )
        asked = candidate or CANDIDATES
        errors.print(
            f"comparing {len(asked)} encoders, each over {seeds} seeds; every image goes through all of them"
        )
        values = {"source": data, "image_size": size, "positive": tuple(positive or ())}
        study = Study().with_changes({"data": values, "privacy": {"epsilon": epsilon}})
        dataset = load(data, image_size=size, positive=positive or None)
        found = []
        for one in scan(dataset, study, asked, seeds=seeds):
            found.append(one)
            if as_json:
                print(json.dumps(asdict(one)), flush=True)
            else:
                console.print(
                    f"{one.features:<52} AUROC {one.auroc:.4f} (standard error {one.standard_error:.4f}), "
                    f"balanced accuracy {one.balanced_accuracy:.3f}",
                    soft_wrap=True,
                    markup=False,
                )
        best = max(found, key=lambda one: one.auroc)
        if not as_json:
            console.print(f'best       [model] features = "{best.features}"', soft_wrap=True, markup=False)


def encoders_of(site: Path | None) -> Path:
    """Where the encoders of a site are, or of this user."""
    from fedveil.learning.encoders.external import encoder_folder

    return encoder_folder() if site is None else site.resolve() / "encoders"


def _spec(file: str, size: int | None) -> "EncoderSpec":
    from fedveil.learning.encoders import EncoderSpec, is_external

    if is_external(file):
        kind, _, name = file.partition(":")
    else:
        kind, name = {".onnx": "onnx", ".pt2": "exported"}.get(Path(file).suffix, ""), file
    if not kind:
        raise InvalidValue(
            f"the encoder is {file!r}",
            "it must be a .onnx or a .pt2 file, or timm:NAME",
            "name it so, or write onnx:FILE or exported:FILE",
        )
    return EncoderSpec.from_dict({"kind": kind, "name": name, "input_size": size})


def _show(spec: "EncoderSpec", report: "Report", as_json: bool) -> None:
    if as_json:
        print(json.dumps({**spec.to_dict(), **asdict(report)}, indent=2))
        return
    lines = [
        f"encoder    {spec.features}",
        f"sha256     {spec.sha256}",
        *([f"graph      {spec.graph}"] if spec.graph else []),
        f"input      {spec.input_channels} x {spec.input_size} x {spec.input_size}",
        f"features   {report.dimension:,}",
        f"speed      {1000 * report.seconds_per_image:.1f} ms per image, with one thread",
        f"batch      images go through one by one; features computed again are the same "
        f"{'bit for bit' if report.repeatable else 'up to rounding'}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
