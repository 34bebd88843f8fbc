"""What earlier calls wrote of a label map that is replaced: beside a new one it would tell of the old."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from medsaga import files
from medsaga.data.sources import files_of
from medsaga.prediction.measure import read_csv, write_csv
from medsaga.prediction.record import Written
from medsaga.prediction.targets import OVERLAY, Target

FLAGS = {"measurements": "--measure", "overlays": "--overlay", "probabilities": "--probabilities"}
"""What there is of a label map, in the order in which it is said, and what makes it."""


class Leftovers:
    """Removes what this call does not make anew; what others wrote or changed stays.

    Args:
        targets: of all images of the call; none of their files is a leftover, nor is an input.
        record: of what medsaga wrote into the folder.
        table: the measurements, if this call makes none.

    Attributes:
        gone: keys of `FLAGS`, of what has been removed.
    """

    def __init__(self, targets: Sequence[Target], record: Written, table: Path | None) -> None:
        self._record, self._table = record, table
        inputs = (file for target in targets for image in target.item.images for file in files_of(image))
        self._kept = {path.resolve() for path in inputs} | {path.resolve() for each in targets for path in each.paths}
        self.gone: set[str] = set()

    def remove(self, target: Target, made: Path) -> None:
        """Remove what there is of an earlier label map, unless the one that takes its place is the same.

        Args:
            target: whose label map is about to be replaced.
            made: the file that will be.
        """
        if not target.labels.is_file() or files.sha256(target.labels) == files.sha256(made):
            return
        for path in target.not_wanted:
            if path.resolve() not in self._kept and self._record.has(path):
                path.unlink()
                self.gone.add("overlays" if path.name.endswith(OVERLAY) else "probabilities")
        if self._table is not None and self._table.is_file():
            with files.one_at_a_time(self._table.parent):
                self._drop_rows(self._table, target.item.name)

    def _drop_rows(self, table: Path, case: str) -> None:
        if not self._record.has_by_now(table):
            return
        lines = read_csv(table)
        others = [line for line in lines if line[0] != case]
        if len(others) == len(lines):
            return
        self.gone.add("measurements")
        if not others:
            table.unlink()
            return
        with self._record.replacing(table) as path:
            write_csv(path, [], others)


def said_of(gone: Collection[str]) -> str:
    """Return a warning of what has been removed."""
    names = [name for name in FLAGS if name in gone]
    what = " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
    return (
        f"warning: {what} of earlier label maps were removed: add {' '.join(FLAGS[name] for name in names)} to make "
        "new ones"
    )
