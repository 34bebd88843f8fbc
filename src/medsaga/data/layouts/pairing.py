"""Pairing images with masks by their names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from medsaga.errors import InputError

_SEPARATORS = "_-. "
_FORGOTTEN = 0.1
"""Of the images with a mask: so many without, or a single one, were forgotten; more are not labelled yet."""


def are_unlabelled(without: int, labelled: int) -> bool:
    """Whether images without a mask are meant to be: somebody has labelled a few of many, or goes on labelling.

    Args:
        without: how many there are.
        labelled: images with a mask.
    """
    return labelled > 0 and without > max(1, _FORGOTTEN * labelled)


def paired(names: Collection[str], masks: Mapping[str, Path], folder: Path, warnings: list[str]) -> dict[str, Path]:
    """Return masks by the names of their images.

    Masks are named like their images. Where none is, and all of them are once one addition that they share is taken
    off, such as ``_mask`` at the end or ``seg_`` at the beginning, it is taken off, with a warning.

    Args:
        names: of the images.
        masks: of a folder, by name.
        folder: where they are.
        warnings: to add to.
    """
    if not masks or set(masks) & set(names):
        return dict(masks)
    first = min(masks)
    for name in sorted(names, key=len, reverse=True):
        if not name:
            continue
        for addition, is_end in ((first.removeprefix(name), True), (first.removesuffix(name), False)):
            if addition == first or not _is_addition(addition, at_end=is_end):
                continue
            bare = {each: each.removesuffix(addition) if is_end else each.removeprefix(addition) for each in masks}
            if all(short != each and short in names for each, short in bare.items()):
                warnings.append(f"{folder}: masks belong to the images of their names without {addition!r}")
                return {bare[each]: path for each, path in masks.items()}
    return dict(masks)


def pairing_problems(
    names: Collection[str],
    masks: Mapping[str, Path],
    folder: Path,
    *,
    masks_required: bool,
) -> Iterator[InputError]:
    """Yield a problem for each mask without an image and, if masks are required, for each image that lacks one.

    Images that are not labelled yet lack none; see `are_unlabelled`.
    Where no mask has the name of any image there is one problem, not two for each image.
    """
    if names and masks and not set(names) & set(masks):
        yield InputError(
            folder,
            expected=f"masks named exactly like their images, such as {min(names)}",
            found=f"no mask of the name of an image, but such as {min(masks)}",
            do="Rename the masks: only the suffix of a mask's format may differ.",
        )
        return
    # Without any mask the missing folder has been reported already.
    missing = sorted(set(names) - set(masks))
    if masks_required and masks and not are_unlabelled(len(missing), len(names) - len(missing)):
        for name in missing:
            yield InputError(
                folder / name,
                expected="a mask of this name and a lossless suffix",
                found="none",
                do="Add the mask, named exactly like its image, or remove the image.",
            )
    for name in sorted(set(masks) - set(names)):
        yield InputError(
            masks[name],
            expected=f"an image named {name}",
            found="none",
            do="Rename the mask like its image, or remove it.",
        )


def _is_addition(text: str, *, at_end: bool) -> bool:
    """Whether a part of a name can be the word for a mask: set off, and with a letter, so that it is no number."""
    separator = text[:1] if at_end else text[-1:]
    return separator != "" and separator in _SEPARATORS and any(each.isalpha() for each in text)
