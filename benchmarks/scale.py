"""What size costs: reading, features, memory and the next run on many images; one JSON line a figure.

    python benchmarks/scale.py                                  # 30,000 images for features, 100,000 for a study
    python benchmarks/scale.py --features 1000 --study 2000     # minutes, on a machine with other work

The images are the 5,840 chest X-rays of 224 px in FEDVEIL_DATA (default ../shared/data), multiplied: each file is one
of them, drawn with `--seed`, with a comment of its own in the JPEG. So all files differ, and each costs what a real one
costs to read and decode. CPU seconds are given beside elapsed ones: they hold on a machine that is not idle.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedveil.privacy import Guarantee, calibrate, calibrate_integer

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SIZE, PER_PATIENT = 224, 2


def figure(name: str, value: float, unit: str, **more: float) -> None:
    print(json.dumps({"figure": name, "value": round(value, 6), "unit": unit} | more), flush=True)


def multiply(folder: Path, count: int, seed: int) -> Path:
    """`count` different JPEG files in `folder`, and their manifest; a fifth of the patients is held out."""
    chest = DATA / "kermany_cxr"
    with (chest / "index.csv").open() as file:
        index = list(csv.DictReader(file))
    with zipfile.ZipFile(chest / "kermany_cxr_224_jpeg.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        originals = [archive.read(members[Path(row["file"]).name]) for row in index]
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    manifest = io.StringIO()
    rows = csv.writer(manifest)
    rows.writerow(["path", "label", "patient", "split"])
    for number in range(count):
        chosen = int(generator.integers(len(index)))
        comment = generator.bytes(16)
        start, rest = originals[chosen][:2], originals[chosen][2:]
        part = folder / f"{number // 1000:04}"
        part.mkdir(exist_ok=True)
        path = part / f"{number}.jpg"
        path.write_bytes(start + b"\xff\xfe" + (2 + len(comment)).to_bytes(2) + comment + rest)
        patient = number // PER_PATIENT
        label = "normal" if index[chosen]["class"].lower() == "normal" else "pneumonia"
        split = "test" if patient % 5 == 0 else "train"
        rows.writerow([path.relative_to(folder), label, f"p{patient}", split])
    (folder / "index.csv").write_text(manifest.getvalue())
    return folder / "index.csv"


def study_of(source: Path, **tables: dict[str, object]) -> dict[str, object]:
    data = {"source": str(source), "image_size": SIZE, "channels": 1, "sites": {"count": 5}}
    return {"data": data, "training": {"rounds": 30}, "privacy": {"delta": 1e-6}} | tables


PARTS = """
import json, sys, time, resource
from pathlib import Path
import numpy as np
from fedveil.study import Silent, Study
from fedveil.study.prepare import prepare
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.simulation import run
what, where, text = sys.argv[1:4]
study = Study(**json.loads(text))
before, cpu = time.perf_counter(), time.process_time()
if what == "run":
    run(RunDirectory.create(Path(where), study))
else:
    prepared = prepare(study)
    from fedveil.learning.degrade import degraded
    from fedveil.study.pipeline import _extractor, make_task
    images, rows = prepared.dataset.images, np.arange(len(prepared.dataset))
    batches = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    extractor = _extractor(prepared.study, prepared.dataset)
    some = images.read(batches[0])
    extractor(some)
    before, cpu = time.perf_counter(), time.process_time()
    if what == "decode":
        for batch in batches:
            images.read(batch)
    elif what == "network":
        for batch in batches:
            extractor(some[: len(batch)])
            extractor(degraded(some[: len(batch)]))
    else:
        make_task(prepared.study, prepared.dataset, Silent())
wall, used = time.perf_counter() - before, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": wall, "cpu": used, "gib": peak}))
"""


def part(what: str, study: dict[str, object], where: Path, cache: Path) -> dict[str, float]:
    """One part in a process of its own: seconds, CPU seconds, peak memory."""
    environment = os.environ | {"FEDVEIL_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PARTS, what, str(where), json.dumps(study)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def features(folder: Path, count: int, seed: int) -> None:
    """Features of a first run against decoding alone and the network alone, in processes of the same kind."""
    study = study_of(multiply(folder / "features", count, seed))
    found = {
        what: part(what, study, folder, folder / f"cache-{what}")
        for what in ("decode", "network", "features")
    }
    limit = max(found["decode"]["seconds"], found["network"]["seconds"])
    more = {f"cpu_ms_{what}": round(1000 * one["cpu"] / count, 3) for what, one in found.items()}
    figure("seconds_features_over_limit", found["features"]["seconds"] / limit, "ratio", images=count, **more)
    alone = found["decode"]["cpu"] + found["network"]["cpu"]
    figure("cpu_features_over_decode_and_network", found["features"]["cpu"] / alone, "ratio")


def whole(folder: Path, count: int, seed: int) -> None:
    """A study on a twentieth of the images and on all of them, and again on cached features."""
    found = {}
    for some in (count // 20, count):
        place = folder / f"study-{some}"
        study, cache = study_of(multiply(place / "images", some, seed)), place / "cache"
        found[some] = part("run", study, place / "run", cache)
        again = part("run", study, place / "again", cache)
        cnn = (
            part(
                "run", study | {"model": {"network": "cnn"}, "training": {"rounds": 1}}, place / "cnn", cache
            )
            if some < count
            else None
        )
        if cnn:
            figure("seconds_cnn_of_one_round", cnn["seconds"], "s", images=some, gib=round(cnn["gib"], 2))
        figure("seconds_rerun_cached", again["seconds"], "s", images=some, cpu=round(again["cpu"], 2))
        figure("peak_rss_gib", found[some]["gib"], "GiB", images=some, rerun=round(again["gib"], 2))
    few, many = found[count // 20], found[count]
    growth = many["cpu"] / count / (few["cpu"] / (count // 20))
    figure("cpu_per_image_growth", growth, "ratio", images=count)


def noise() -> None:
    """Noise of integer sums relative to the continuous Gaussian's."""
    for name, sites, parameters, epsilon in (
        ("200_sites", 200, 100_000, 8.0),
        ("100_sites_cnn", 100, 93_000, 1.0),
        ("50_sites_resnet18", 50, 11_200_000, 1.0),
    ):
        target = Guarantee(epsilon, 1e-5, "patient", "secure-aggregation")
        size = {"dimension": parameters, "sites": sites, "shares": 2 * sites // 3, "units": 100_000}
        made = calibrate_integer(target, steps=60, **size)
        plain = calibrate(target, steps=60)
        ratio = made.mechanism.noise_multiplier / plain.noise_multiplier
        figure(f"noise_over_gaussian_{name}", ratio, "ratio", bits=made.bits)


def files(folder: Path, count: int, seed: int) -> None:
    """The first blocks of EfficientNet-Lite0 at 224 px as an ONNX file and as an exported program, against torch.

    torch runs in this process, one image at a time, as the files do in theirs. Elapsed times hold on an idle machine
    only. Writing ONNX needs onnxscript.
    """
    import torch

    from fedveil.learning.encoders.efficientnet import folded_network
    from fedveil.learning.encoders.external import EncoderSpec, External, Store, examine

    os.environ["FEDVEIL_ENCODERS"] = str(folder / "encoders")
    torch.set_num_threads(1)
    module = folded_network(0, 10, SIZE, 3, torch.device("cpu")).to(memory_format=torch.contiguous_format)
    example = torch.zeros(1, 3, SIZE, SIZE)
    program = torch.export.export(module, (example,)).run_decompositions({})
    written = {"onnx": io.BytesIO(), "exported": io.BytesIO()}
    torch.export.save(program, written["exported"])
    torch.onnx.export(module, (example,), folder / "it.onnx", dynamo=True, external_data=False, verbose=False)
    written["onnx"].write((folder / "it.onnx").read_bytes())
    images = np.random.default_rng(seed).random((count, 3, SIZE, SIZE), np.float32)
    encoders = {}
    for kind, file in written.items():
        spec = EncoderSpec(kind=kind, name="it", sha256=Store().add(file.getvalue()), mean=(0.0,), std=(1.0,))
        encoders[kind] = External(examine(file.getvalue(), spec)[0], 3)

    def by_torch(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            deviations, means = torch.std_mean(module(torch.from_numpy(image)), dim=(2, 3), correction=0)
        return torch.cat([means, deviations], 1).numpy()

    ways = {"torch": by_torch} | encoders
    expected, cpu, elapsed = by_torch(images), {}, {}
    for name, way in ways.items():
        way(images[:1])
        before, start = cpu_of_all(), time.perf_counter()
        features = np.concatenate([way(image[None]) for image in images])
        cpu[name], elapsed[name] = cpu_of_all() - before, time.perf_counter() - start
        more = {
            "elapsed": elapsed[name] / elapsed["torch"],
            "difference": float(np.abs(features - expected).max()),
        }
        if name != "torch":
            figure(f"cpu_{name}_over_torch", cpu[name] / cpu["torch"], "ratio", images=count, **more)


def cpu_of_all() -> float:
    """CPU seconds of this process and of all that it started and their children; Linux only."""
    waiting, total = [os.getpid()], 0.0
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        times = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
        total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        for task in (place / "task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return total


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=30_000)
    parser.add_argument("--study", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="for the images, about 10 kB each; default: temporary files"
    )
    chosen = parser.parse_args()
    noise()
    with scratch(chosen.folder) as folder:
        if chosen.files:
            files(folder, chosen.files, chosen.seed)
        if chosen.features:
            features(folder, chosen.features, chosen.seed)
        if chosen.study:
            whole(folder, chosen.study, chosen.seed)


if __name__ == "__main__":
    main()
