"""A run directory names patients: other users of the machine cannot read it, and the report does not repeat it."""

import csv
import stat

import numpy as np
from PIL import Image

from fedveil import report
from fedveil.study import RunDirectory, Study, run


def test_names_of_patients_stay_in_files_that_only_their_owner_can_read(tmp_path):
    generator = np.random.default_rng(0)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "patient", "split"])
        for number in range(40):
            name = f"Jane_Doe_{number}.png"
            pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
            rows.writerow(
                [name, ["ill", "well"][number % 2], f"Jane_Doe_{number}", "test" if number < 8 else "train"]
            )
    study = Study(
        source=str(tmp_path / "manifest.csv"),
        sites={"count": 2, "scheme": "iid"},
        image_size=8,
        features="pixels",
        rounds=1,
        trust="site",
        delta=1e-3,
        examples=4,
    )
    directory = RunDirectory.create(tmp_path / "run", study)
    run(directory)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    predictions = directory.path / "predictions.csv"
    assert stat.S_IMODE(predictions.stat().st_mode) == 0o600
    assert "Jane_Doe" in predictions.read_text()
    page = report.write_report(directory.path).read_text()
    assert "test image 1" in page
    assert "Jane_Doe" not in page
