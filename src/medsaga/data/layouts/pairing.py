"""Pairing images with masks by their names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from medsaga.data.formats import suffix_of
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
    label_maps: bool = False,
) -> Iterator[InputError]:
    """Yield a problem for each mask without an image and, if masks are required, for each image that lacks one.

    Images that are not labelled yet lack none; see `are_unlabelled`.
    Where no mask has the name of any image there is one problem, not two for each image.

    Args:
        names: of the images.
        masks: of a folder, by name.
        folder: where they are.
        masks_required: see above.
        label_maps: whether these are the label maps of the plain layout, which could be in folders by structure.
    """
    if names and masks and not set(names) & set(masks):
        yield InputError(
            folder,
            expected=f"masks named exactly like their images, such as {min(names)}",
            found=f"no mask of the name of an image, but such as {min(masks)}",
            do=(label_maps and _other_layout(names, masks, folder))
            or "Rename the masks: only the suffix of a mask's format may differ.",
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


def _other_layout(names: Collection[str], masks: Mapping[str, Path], folder: Path) -> str | None:
    """Return what to do where an image has several masks, or a mask several images; None where neither is so."""
    for name in sorted(names):
        several = _belonging(masks, name)
        if len(several) > 1:
            path = masks[several[0]]
            to_be = f"{folder.name}/{several[0][len(name) + 1 :]}/{name}{suffix_of(path) or path.suffix}"
            return f"Several masks belong to {name}: put those of each structure into a folder of its own, {to_be}."
    for name in sorted(masks):
        several = _belonging(names, name)
        if len(several) > 1:
            suffix = suffix_of(masks[name]) or masks[name].suffix
            to_be = ", ".join(f"imagesTr/{name}_{number:04d}{suffix}" for number in range(2))
            return (
                f"If {several[0]} and {several[1]} are channels of {name}, use nnU-Net's names: {to_be}, "
                f"labelsTr/{name}{suffix}."
            )
    return None


def _belonging(names: Collection[str], to: str) -> list[str]:
    return sorted(name for name in names if name.startswith((f"{to}_", f"{to}-")) and len(name) > len(to) + 1)


def _is_addition(text: str, *, at_end: bool) -> bool:
    """Whether a part of a name can be the word for a mask: set off, and with a letter, so that it is no number."""
    separator = text[:1] if at_end else text[-1:]
    return separator != "" and separator in _SEPARATORS and any(each.isalpha() for each in text)
