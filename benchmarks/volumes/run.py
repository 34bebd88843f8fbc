"""What large CTs take, with ``medsaga info``, ``train``, ``evaluate`` and ``predict``: process memory and time.

PYTHONPATH=tests:src python -m benchmarks.volumes.run --out benchmarks/volumes
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from dicom_phantoms import write_ct_series
from rich.console import Console

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files
from medsaga.data.phantom import phantom_ct, write_phantom_ct
from medsaga.settings.options import Axis

IN_PLANE, SLICES, PERIOD = 512, 600, 24
"""Voxels along i and j, along k, and slices until the phantom repeats itself."""
LIMIT_BYTES = 2 * 2**30
_CHILD = "from medsaga.cli import main; main(); print(open('/proc/self/status').read())"
AXES: tuple[Axis, ...] = ("axial", "sagittal")


def made_volume(slices: int) -> npt.NDArray[np.int16]:
    """Return HU, ``(i, j, k)``: one phantom again and again, so that its segmentation must repeat itself, too."""
    slab, _ = phantom_ct(np.random.default_rng(0), (IN_PLANE, IN_PLANE, PERIOD))
    return np.tile(slab, (1, 1, -(-slices // PERIOD)))[..., :slices]


def write_inputs(folder: Path, slices: int) -> dict[str, Path]:
    """Write the phantom in each format and return the files by the names that the record has for them."""
    volume, affine = made_volume(slices), np.diag([-0.75, -0.75, 1.0, 1.0])
    inputs = {name: folder / f"ct{name}" for name in (".nii", ".nii.gz")}
    for path in inputs.values():
        nib.save(nib.Nifti1Image(volume, affine), path)
    inputs["DICOM series"] = folder / "series"
    written = write_ct_series(inputs["DICOM series"], volume, affine)
    assert len(set(written)) == slices == len(list(inputs["DICOM series"].iterdir()))
    return inputs


def write_runs(folder: Path) -> dict[Axis, Path]:
    """Train hardly at all, on small phantoms: memory and time of a prediction do not depend on what was learned."""
    write_phantom_ct(folder / "data", cases=3, shape=(64, 64, 8))
    runs = {axis: folder / f"run-{axis}" for axis in AXES}
    settings = medsaga.Settings(shots=2, steps=20, batch_size=2, device="cpu")
    for axis, run in runs.items():
        medsaga.train(folder / "data", run, dataclasses.replace(settings, axis=axis), console=Console(quiet=True))
    return runs


def predict(run: Path, source: Path, out: Path, *options: str) -> tuple[int, float]:
    """Predict in a process of its own; return the most memory that it had, in bytes, and its seconds."""
    return measured(["predict", run, source, "--out", out, *options, "--device", "cpu"])


def measured(arguments: Sequence[object]) -> tuple[int, float]:
    """Run a command in a process of its own; return the most memory that it had, in bytes, and its seconds.

    The process says itself what it had (VmHWM, Linux): ``ru_maxrss`` of a child counts what its parent had when it was
    started.
    """
    began = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, *(str(each) for each in arguments)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    kibibytes = said.split("VmHWM:")[1].split()[0]
    return int(kibibytes) * 1024, time.perf_counter() - began


def write_labelled(folder: Path, slices: int) -> Path:
    """Write two cases of that size, one to train on and one for the test, in nnU-Net's layout."""
    slab, classes = phantom_ct(np.random.default_rng(0), (IN_PLANE, IN_PLANE, PERIOD))
    repeats, affine = (1, 1, -(-slices // PERIOD)), np.diag([-0.75, -0.75, 1.0, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(2):
        volume = np.tile((slab + case).astype(np.int16), repeats)[..., :slices]
        labels = np.tile(classes.astype(np.uint8), repeats)[..., :slices]
        nib.save(nib.Nifti1Image(volume, affine), folder / "imagesTr" / f"case{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"case{case}.nii.gz")
    names = {"background": 0, **{f"organ {value}": value for value in range(1, int(classes.max()) + 1)}}
    description = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 2, "file_ending": ".nii.gz"}
    files.write_json(folder / "dataset.json", description)
    return folder


def prediction_rows(folder: Path, slices: int) -> Iterator[dict[str, Any]]:
    """Yield what predicting takes: to NIfTI, cut in two ways, and to a DICOM segmentation with measurements."""
    inputs, runs = write_inputs(folder, slices), write_runs(folder)
    pairs: list[tuple[Axis, str]] = [("axial", each) for each in inputs]
    for axis, source in [*pairs, ("sagittal", ".nii.gz")]:
        out = folder / "out" / f"{axis}.nii.gz"
        memory, seconds = predict(runs[axis], inputs[source], out, "--format", "nifti")
        checks = checked(out, inputs[".nii"]) if axis == "axial" else {}
        yield {"input": source, "axis": axis, "peak_bytes": memory, "seconds": round(seconds, 1), **checks}
    source, options = "DICOM series", ("--format", "seg", "--measure", "--overlay")
    memory, seconds = predict(runs["axial"], inputs[source], folder / "out" / "segmentation.dcm", *options)
    yield {"input": source, "options": options, "peak_bytes": memory, "seconds": round(seconds, 1)}


def training_rows(folder: Path, slices: int) -> Iterator[dict[str, Any]]:
    """Yield what describing, training for 5 steps and testing take."""
    data, run = write_labelled(folder / "labelled", slices), folder / "run-large"
    for verb, arguments in (
        ("info", [data]),
        ("train", [data, "--out", run, "--shots", 1, "--steps", 5, "--batch-size", 2, "--device", "cpu"]),
        ("evaluate", [run, "--device", "cpu"]),
    ):
        memory, seconds = measured([verb, *arguments])
        yield {"verb": verb, "input": ".nii.gz", "cases": 2, "peak_bytes": memory, "seconds": round(seconds, 1)}


def checked(labels: Path, like: Path) -> dict[str, Any]:
    """Make sure that a label map lies on its image's grid and repeats itself as the phantom does."""
    found, expected = nib.load(labels), nib.load(like)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    voxels = np.asarray(found.dataobj)
    np.testing.assert_array_equal(voxels[..., PERIOD:], voxels[..., :-PERIOD])
    return {"labelled": round(float((voxels > 0).mean()), 4)}


def _record(out: Path, slices: int, rows: list[dict[str, Any]]) -> None:
    files.write_json(out / "results.json", {"machine": machine(), "shape": [IN_PLANE, IN_PLANE, slices], "rows": rows})


def main() -> None:
    """Measure, and write the record."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=SLICES)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, slices = Path(name), arguments.slices
        for row in chain(prediction_rows(folder, slices), training_rows(folder, slices)):
            rows.append(row)
            print(row, flush=True)
            _record(arguments.out, slices, rows)
    over = [row for row in rows if row["peak_bytes"] > LIMIT_BYTES]
    raise SystemExit(f"more than {LIMIT_BYTES:,} bytes: {over}" if over else 0)


if __name__ == "__main__":
    main()
