"""A folder with one sub-folder a class (`root/cat/1.jpg`), or such folders per split (`root/train/cat/1.jpg`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from vlmtune.data.read.source import LeftOut, Source, some
from vlmtune.data.split_names import SPLIT_ROLES
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource, clean_label

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff",
     ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga", ".ico")
)  # fmt: skip
LAYOUT = (
    "Expected one sub-folder a class with images in it (ROOT/cat/1.jpg), "
    "or the same inside train/, validation/ and test/ (ROOT/train/cat/1.jpg)."
)


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's suffix, in any case. Hidden files (`._1.jpg` of macOS) are not images."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: Path) -> bool:
    """Whether a name is one that tools leave behind: `.ipynb_checkpoints`, `.DS_Store`, `__MACOSX`."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def sub_folders(root: Path) -> list[Path]:
    """Visible folders (links to folders included) in a fixed order."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry))


def class_folders(root: Path) -> list[Path]:
    """Sub-folders that hold at least one image at any depth."""
    return [folder for folder in sub_folders(root) if any(is_image_name(path.name) for path in _files(folder))]


def read_image_folder(root: Path, split_names: Collection[str] = ()) -> Source:
    """Open a folder of class folders, inside split folders if they have usual names or those of ``split_names``.

    Raises DataError on an empty class folder or another layout.
    """
    folders = sub_folders(root)
    if not folders:
        raise DataError(f"{root}: there are no class folders in it{_loose_images(root)}. {LAYOUT}")
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_ROLES or folder.name in split_names]
    # A folder named "test" or "train" that directly holds images is a class (say, of locomotives), not a split.
    if not splits or not all(sub_folders(folder) for folder in splits):
        splits = []

    source = Source(str(root), "image folder", {})
    other_files: Counter[str] = Counter()
    loose: list[str] = []
    for folder in splits or [root]:
        rows = _read_classes(root, folder, other_files, loose)
        source.splits[folder.name if splits else "all"] = partial(list, rows)
    if splits:
        strays = [folder.name for folder in folders if folder not in splits]
        if strays:
            source.left_out.append(
                LeftOut("folders beside the split folders, not a split by name", len(strays), tuple(strays[:5]))
            )
    for file in sorted(root.iterdir()) if splits else []:
        _count_file(file, root, other_files, loose)
    if other_files:
        kinds = tuple(f"{suffix} ({count})" for suffix, count in other_files.most_common(8))
        source.left_out.append(LeftOut("files that are not images by name", sum(other_files.values()), kinds))
    if loose:
        source.left_out.append(LeftOut("images outside any class folder", len(loose), tuple(loose[:5])))
    return source


def _read_classes(root: Path, folder: Path, other_files: Counter[str], loose: list[str]) -> list[Example]:
    rows: list[Example] = []
    labels: dict[str, Path] = {}
    classes = sub_folders(folder)
    for class_folder in classes:
        label = clean_label(class_folder.name)
        if label in labels:
            raise DataError(
                f"{class_folder} and {labels[label]}: two folders are the same class '{label}' after white space "
                f"and Unicode composition are evened out. Merge them, or rename one."
            )
        labels[label] = class_folder
        before = len(rows)
        others: Counter[str] = Counter()
        for path in _files(class_folder):
            if not is_image_name(path.name):
                others[path.suffix.lower() or path.name] += 1
                continue
            name = path.relative_to(root).as_posix()
            rows.append(Example(name, ImageSource(path=path, name=str(path)), (label,), origin=str(path)))
        if len(rows) == before:
            held = f"it holds only {some([f'{k} ({n})' for k, n in others.items()])}" if others else "it is empty"
            raise DataError(
                f"{class_folder}: this class folder has no images ({held}). "
                f"Put images in it ({', '.join(sorted(IMAGE_SUFFIXES)[:8])}…), or remove the folder."
            )
        other_files.update(others)
    for file in sorted(folder.iterdir()):
        _count_file(file, root, other_files, loose)
    return rows


def _count_file(file: Path, root: Path, other_files: Counter[str], loose: list[str]) -> None:
    if file.is_dir():
        return
    if is_image_name(file.name):
        loose.append(file.relative_to(root).as_posix())
    else:
        other_files[file.suffix.lower() or file.name] += 1


def _loose_images(root: Path) -> str:
    count = sum(is_image_name(file.name) for file in root.iterdir())
    return f", but {count} images without a label" if count else ""


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted by path, links followed once (a link to a parent would never end)."""
    seen: set[tuple[int, int]] = set()
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        stat = Path(parent).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [name for name in sorted(folders) if not is_hidden(Path(name))]
        paths.extend(Path(parent) / name for name in files)
    # A broken link has an image's name and stays: it is counted as unreadable, not skipped.
    yield from sorted(paths, key=lambda path: path.relative_to(folder).as_posix())
