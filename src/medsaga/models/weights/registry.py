"""The weights that medsaga knows by name: what they are, under which licence, and where their file is.

Each is a TOML file in ``pretrained/``; to add one, write the file. Only what lies beside its TOML file comes with the
package; the other files are in the user's cache once `medsaga weights fetch` or the user has put them there.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from medsaga import files
from medsaga.errors import InputError
from medsaga.models.weights.costs import training_costs

RANDOM = "random"
"""What a run's settings call a start from random numbers."""
STARTER = "starter"
"""The weights that come with the package; a run of their architecture starts from them unless told otherwise."""
FOLDER = Path(__file__).parent / "pretrained"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Images that weights were trained on, with what their licence asks to be said.

    Attributes:
        name: of the dataset.
        modality: and what is labelled.
        images: how many; None where they are generated as training goes on.
        licence: its name.
        licence_url: its text.
        authors: of the dataset.
        reference: the publication.
        source: where the images come from.
        changes: what was done to them.
    """

    name: str
    modality: str
    images: int | None = None
    licence: str
    licence_url: str
    authors: str
    reference: str
    source: str
    changes: str


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Weights with a name.

    Attributes:
        name: what ``--model`` takes.
        description: what they are.
        author: who made them.
        licence: theirs.
        architecture: key of ``ENCODERS``.
        image_size: side in pixels that they were made for.
        megabytes: approximate size of the file.
        file: its name.
        sha256: of the file.
        url: where the file can be had; None where it comes with the package.
        data: what they were trained on, where that has to be said.
    """

    name: str
    description: str
    author: str
    licence: str
    architecture: str
    image_size: int
    megabytes: int
    file: str
    sha256: str
    url: str | None = None
    data: tuple[DataSource, ...] = ()

    @property
    def path(self) -> Path:
        """The place of the file on this machine; it need not be there."""
        return (FOLDER if self.url is None else cache_folder()) / self.file

    @property
    def release(self) -> str:
        """Name, author and licence in a line."""
        return f"{self.name} ({self.author}, {self.licence})"

    def located(self) -> Path:
        """Return the place of the file.

        Raises:
            InputError: it is not there.
        """
        if self.path.is_file():
            return self.path
        if self.url is None:
            raise InputError(
                self.name, expected=f"{self.file} in the package", found="no such file", do="Install medsaga again."
            )
        raise InputError(
            self.name,
            expected=f"its file, {self.path}",
            found="no such file",
            do=f"With internet: medsaga weights fetch {self.name}. Without: copy {self.url} there.",
        )

    def check(self, sha256: str) -> None:
        """Raise InputError unless this is the SHA-256 of the file."""
        if sha256 == self.sha256:
            return
        again = "Install medsaga again." if self.url is None else f"Remove it: medsaga weights fetch {self.name}."
        raise InputError(self.path, expected=f"SHA-256 {self.sha256}, {self.name}", found=sha256, do=again)


@cache
def known_weights() -> dict[str, KnownWeights]:
    """Return all weights that have a name, the package's own first, then from the smallest to the largest."""
    found = [_read(path) for path in FOLDER.glob("*.toml")]
    return {known.name: known for known in sorted(found, key=lambda known: (known.url is not None, known.megabytes))}


def known_as(source: str | Path) -> KnownWeights | None:
    """Return the weights that a source of weights names; None if it is a path or a hub id.

    A name means the same weights whatever lies in the current folder: a path, or a text such as ``./starter``, is what
    means a file or folder of that name.
    """
    return known_weights().get(source) if isinstance(source, str) else None


def weights_named(name: str) -> KnownWeights:
    """Return the weights of a name.

    Raises:
        InputError: there are none.
    """
    known = known_as(name)
    if known is None:
        raise InputError(
            name, expected=f"one of {', '.join(known_weights())}", found="another name", do="Choose one of them."
        )
    return known


def release_of(sha256: str) -> str | None:
    """Return the release that a file of this SHA-256 is; None if it is not known."""
    return next((known.release for known in known_weights().values() if known.sha256 == sha256), None)


def cache_folder() -> Path:
    """Return the folder for fetched files, in the place that the platform has for caches; it need not exist."""
    return platformdirs.user_cache_path("medsaga", appauthor=False) / "weights"


def describe(known: KnownWeights) -> dict[str, Any]:
    """Return what `medsaga weights list` says of weights, as JSON has it, with the fields of ``TrainingCost``.

    ``status`` is ``packaged``, ``fetched`` or ``not fetched``. The content of the file is not checked.
    """
    status = "packaged" if known.url is None else "fetched" if known.path.is_file() else "not fetched"
    cost = dataclasses.asdict(training_costs()[known.architecture])
    return dataclasses.asdict(known) | cost | {"status": status, "path": str(known.path)}


def checked_sha256(source: str | Path, path: Path) -> str:
    """Return the SHA-256 of the file that a source of weights was found to be.

    Raises:
        InputError: the source is a known name, and the file is damaged or another one.
    """
    digest = files.sha256(path)
    if known := known_as(source):
        known.check(digest)
    return digest


def _read(path: Path) -> KnownWeights:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    data = tuple(DataSource(**source) for source in document.pop("data", ()))
    return KnownWeights(**document, data=data)
