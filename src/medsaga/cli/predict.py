"""The verb `medsaga predict`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.cli.printing import console
from medsaga.cli.runs import run_meant
from medsaga.errors import InputError


@dataclass(kw_only=True)
class Predict:
    """Segment images, volumes, DICOM series, or folders of them."""

    folder: Annotated[Positional[Path], arg("RUN")]
    """Run folder, or a delta file."""
    input: Annotated[Positional[tuple[Path, ...]], arg("INPUT [INPUT ...]")]
    """Image or volume files, DICOM series, or folders of them; @FILE for a file that names them, one a line."""
    out: Annotated[Path, arg("OUT")]
    """Label map to write, its format given by the suffix; a folder when INPUT has several images."""
    overwrite: bool = False
    """Replace files that medsaga did not write, or that were changed since; inputs never are."""
    format: Annotated[str, arg("FORMAT", shown="auto")] = "auto"
    """auto (the input's own; of DICOM a segmentation object), seg, rtstruct, nifti, png or tiff."""
    series: Annotated[str | None, arg("SERIES", shown="the only one")] = None
    """Which DICOM series, where there are several: a part of its description, its number, its UID, or largest."""
    probabilities: bool = False
    """Write the probability of every class too."""
    overlay: bool = False
    """Write a picture of the label map on the image too."""
    measure: bool = False
    """Write measurements.csv too: volume, area, largest diameter, components of every class."""
    tta: Annotated[Literal["auto", "all", "none"], arg("auto|all|none", shown="auto")] = "auto"
    """Average over mirror images: auto as the training masks allow, all four in four times the time, or none."""
    largest_component: bool = False
    """Keep the largest piece of every class only."""
    fill_holes: bool = False
    """Fill what a class encloses."""
    min_size: Annotated[float, arg("SIZE", shown="0")] = 0.0
    """Remove pieces smaller than this, in mm3 (2-D: mm2; without a spacing: voxels)."""
    codes: Annotated[Path | None, arg("FILE", shown="our own codes")] = None
    """JSON file with coded terminology of the labels, for DICOM."""
    base: Annotated[str | None, arg("WEIGHTS", shown="found by their SHA-256")] = None
    """The weights that a delta file belongs to, as --model takes them."""
    device: Annotated[str, arg("DEVICE", shown="a GPU if any")] = "auto"
    """cpu, cuda, cuda:N or mps."""
    devices: Annotated[int, arg("N", shown="1")] = 1
    """GPUs, or CPU processes, that share the images."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there is nothing to segment, or the run and the images are exchanged.
        """
        from medsaga.data.dicom.terminology import read_codes
        from medsaga.distributed.joining import joined
        from medsaga.prediction.files import OutputOptions, predict_files
        from medsaga.prediction.postprocess import PostProcessing

        if not self.input:
            do = "Name the images to segment, or their folder, behind the run folder."
            raise InputError("predict", expected="RUN INPUT", found="RUN alone", do=do)
        inputs = [path for each in self.input for path in _listed(each)]
        run = run_meant(self.folder, inputs, "medsaga predict {run} {data} --out OUT")
        wanted = OutputOptions(
            format=self.format,
            probabilities=self.probabilities,
            overlay=self.overlay,
            measure=self.measure,
            post=PostProcessing(self.largest_component, self.fill_holes, self.min_size),
            codes={} if self.codes is None else read_codes(self.codes),
        )
        with joined() as group:
            predict_files(
                run,
                inputs,
                self.out,
                wanted,
                series=self.series,
                tta=self.tta,
                overwrite=self.overwrite,
                device=self.device,
                base=self.base,
                console=console(quiet=not group.is_first),
                written=lambda path: print(path, flush=True),
                group=group,
            )


def _listed(given: Path) -> list[Path]:
    """Return what ``@FILE`` names, for more images than a command line takes; any other path is itself.

    Raises:
        InputError: the file cannot be read, or names nothing.
    """
    if not str(given).startswith("@") or given.exists():
        return [given]
    file = Path(str(given)[1:])
    do = "Name a file that holds the path of an image in each line."
    try:
        content = file.read_bytes()
    except OSError as error:
        found = error.strerror or "an error"
        raise InputError(file, expected="a list of images", found=found, do=do) from None
    # A name may hold the end of a line: then each ends with a zero, as those of `find -print0` do.
    names = content.split(b"\0") if b"\0" in content else [each.removesuffix(b"\r") for each in content.split(b"\n")]
    paths = [Path(os.fsdecode(each)) for each in names if each]
    if not paths:
        raise InputError(file, expected="a list of images", found="an empty one", do=do)
    return paths
