"""A CT of 600 slices: how fast it scrolls, and what the server takes for it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from page_server import page_process

SHAPE = (512, 512, 600)
LEAST_PER_SECOND = 20
MOST_BYTES = 2 * 2**30


def peak_of(process: int) -> int:
    """The largest memory that a process had in RAM, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_ct_scrolls_at_twenty_slices_a_second_within_two_gibibytes(tmp_path: Path) -> None:
    root = tmp_path / "ct"
    (root / "images").mkdir(parents=True)
    ramp = np.add.outer(np.arange(512, dtype=np.int16), np.arange(512, dtype=np.int16))
    voxels = (ramp[..., np.newaxis] + np.arange(600, dtype=np.int16) - 1024).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 1.0, 1.0])), root / "images" / "large.nii")
    (root / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    with page_process(root) as (client, server):
        # Not while the data are looked through.
        client.until("/api/state", lambda state: state["project"]["checked"], 120)
        key = client.key("large")
        planes = client.get(f"/api/cases/{key}").json["planes"]
        assert client.paint(key, "axial", (300, 100, 100), (1, 200, 200), 1).status == 200
        for plane in ("axial", "coronal", "sagittal"):
            begun, count = time.perf_counter(), 60
            for index in range(100, 100 + count):
                image = client.get(f"/api/cases/{key}/image?plane={plane}&index={index}&channel=0")
                labels = client.get(f"/api/cases/{key}/labels?plane={plane}&index={index}")
                assert len(image.body) == 2 * len(labels.body) == 2 * planes[plane]["height"] * planes[plane]["width"]
            rate = count / (time.perf_counter() - begun)
            print(f"{plane}: {rate:.0f} slices a second")
            assert rate > LEAST_PER_SECOND, plane
        begun = time.perf_counter()
        for index in range(10):
            assert client.paint(key, "sagittal", (index, 100, 100), (1, 50, 50), 1).status == 200
        assert time.perf_counter() - begun < 5
        print(f"peak {peak_of(server.pid) / 2**20:,.0f} MiB")
        assert peak_of(server.pid) < MOST_BYTES
