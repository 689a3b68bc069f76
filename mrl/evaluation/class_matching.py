"""Which classes of a model (or of a bank) the class folders of another data set mean.

Shapes: F class folders, C classes, N images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrl.data.class_folders import repeated, same_name
from mrl.data.errors import some


@dataclass(slots=True, frozen=True)
class ClassMatch:
    """``accepted[f, c]``: whether class c is a right answer for an image in folder f."""

    accepted: Tensor  # bool (F, C)

    def predicted(self, logits_NC: Tensor) -> Tensor:
        """The best class (N,) among those that some folder means (the paper's way with A and R)."""
        outside_C = ~self.accepted.any(0)
        return logits_NC.masked_fill(outside_C, -torch.inf).argmax(1)

    def to(self, device: torch.device) -> "ClassMatch":
        return ClassMatch(self.accepted.to(device))


def is_right(predicted_N: Tensor, labels_N: Tensor, match: ClassMatch | None) -> Tensor:
    """Bool (N,); without a match labels and predictions count the same classes."""
    if match is None:
        return predicted_N == labels_N
    return match.accepted[labels_N, predicted_N]


def match_classes(
    folders: Sequence[str],
    classes: Sequence[str],
    classes_map: Mapping[str, Sequence[str]] | None = None,
) -> ClassMatch | None:
    """What each folder means: by ``classes_map``, or by name, or by number.

    The same names in the same order need no match (None).  Folders called 0..C-1 are places in the
    class list (ImageNet-V2's), unless the classes themselves have such names.  Composed and
    decomposed letters (macOS's) are the same.

    Args:
        folders: class folders of the images to judge; labels are places in this list.
        classes: of the model's head, or of the bank of neighbours.
        classes_map: folder -> names of the classes of which each is right.

    Raises:
        ValueError: naming the folders, or the classes in the map, that are not known or could be
            two of the classes.
    """
    folders, classes = [*map(same_name, folders)], [*map(same_name, classes)]
    if classes_map is None and folders == classes:
        return None
    place = {name: c for c, name in enumerate(classes)}
    if classes_map is None:
        classes_map = {folder: [folder] for folder in folders}
        if not place.keys() >= classes_map.keys():
            place = {str(c): c for c in range(len(classes))}
            if place.keys() != classes_map.keys():
                raise ValueError(_unknown(folders, classes))
    meant = {same_name(folder): [*map(same_name, v)] for folder, v in classes_map.items()}
    names = [name for folder in folders for name in meant[folder]]
    if unknown := [name for name in names if name not in place]:
        raise ValueError(f"the classes map names {some(unknown)}, which the class list lacks")
    if len(place) < len(classes) and (twice := sorted({*names} & {*repeated(classes)})):
        raise ValueError(
            f"the class list has {some(twice)} more than once: folders of that name could mean "
            "either. Give the classes other names"
        )
    accepted_FC = torch.zeros(len(folders), len(classes), dtype=torch.bool)
    for f, folder in enumerate(folders):
        accepted_FC[f, [place[name] for name in meant[folder]]] = True
    return ClassMatch(accepted_FC)


def shared_labels(
    bank_labels_B: Tensor, query_labels_Q: Tensor, match: ClassMatch | None
) -> tuple[Tensor, Tensor]:
    """Both sets of labels, renumbered so that an item is a right answer where they are equal.

    Raises:
        ValueError: if two folders share some of their classes and not all: then no numbers do that.
    """
    if match is None:
        return bank_labels_B, query_labels_Q
    meanings_EC, meaning_F = match.accepted.unique(dim=0, return_inverse=True)
    if bool((meanings_EC.sum(0) > 1).any()):
        raise ValueError(
            "two class folders of the queries mean partly the same classes, so retrieval has no "
            "relevant items to count: 'evals=[classify,knn]' can do with such folders"
        )
    of_class_C = torch.where(meanings_EC.any(0), meanings_EC.int().argmax(0), len(meanings_EC))
    return of_class_C[bank_labels_B], meaning_F[query_labels_Q]


def read_classes_map(path: str | Path) -> dict[str, list[str]]:
    """The JSON object in ``path``: folder name -> a class name, or a list of them.

    Raises:
        ValueError: if it is no such object.
        OSError: if it cannot be read.
    """
    try:
        # A byte order mark, with which Windows' editors begin a file, is no part of the JSON.
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        values = json.loads(text, object_pairs_hook=_object)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object: folder name -> list of class names")
    read = {folder: [v] if isinstance(v, str) else v for folder, v in values.items()}
    wrong = [f for f, v in read.items() if not isinstance(v, list) or not _are_names(v)]
    if wrong:
        raise ValueError(f"{path}: {some(wrong)} need a list of at least one class name each")
    return read


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """JSON itself would take the last of several values."""
    if twice := repeated(same_name(name) for name, _ in pairs):
        raise ValueError(f"it names {some(twice)} more than once: give each folder one list")
    return dict(pairs)


def _are_names(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _unknown(folders: Sequence[str], classes: Sequence[str]) -> str:
    known = set(classes)
    unknown = [folder for folder in folders if folder not in known]
    return (
        f"{len(unknown)} of {len(folders)} class folders are none of the {len(classes)} classes "
        f"({some(list(classes))}): {some(unknown)}. queries.classes_map=FILE.json says which "
        "classes they mean"
    )
