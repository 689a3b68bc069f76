"""What class folders mean, and the accuracy of images whose classes are some of the model's."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrl.config import ClassifyConfig, KnnConfig
from mrl.data import DataError
from mrl.evaluation import classify, knn
from mrl.evaluation.class_matching import match_classes, read_classes_map
from mrl.evaluation.contract import Features
from mrl.evaluation.queries import load_queries
from mrl.heads import TiedHead

WNIDS = [f"n{i:08d}" for i in range(12)]


def meanings(folders: list[str], classes: list[str], classes_map=None) -> list[list[int]]:
    match = match_classes(folders, classes, classes_map)
    assert match is not None
    return [row.nonzero().flatten().tolist() for row in match.accepted]


def test_the_same_list_needs_no_match():
    assert match_classes(WNIDS, WNIDS) is None


def test_a_subset_is_found_by_name():
    assert meanings([WNIDS[7], WNIDS[2]], WNIDS) == [[7], [2]]
    assert meanings(WNIDS[::-1], WNIDS) == [[c] for c in range(11, -1, -1)]


def test_numbered_folders_are_places_in_the_class_list():
    folders = sorted(str(c) for c in range(12))  # as strings: 0, 1, 10, 11, 2, ...
    assert meanings(folders, WNIDS) == [[int(folder)] for folder in folders]
    # unless the classes have such names themselves
    assert meanings(["3", "10"], ["10", "2", "3"]) == [[2], [0]]


def test_a_map_may_give_several_classes():
    classes_map = {"clock": [WNIDS[1], WNIDS[4]], "chair": [WNIDS[0]]}
    assert meanings(["chair", "clock"], WNIDS, classes_map) == [[0], [1, 4]]


@pytest.mark.parametrize(
    "folders",
    [["cat", WNIDS[0]], ["0", "1"], [*map(str, range(1, 13))], [f"{i:02d}" for i in range(12)]],
    ids=["name", "too-few", "from-1", "padded"],
)
def test_unknown_folders_are_named(folders):
    with pytest.raises(ValueError, match=r"class folders are none of the 12 classes") as error:
        match_classes(folders, WNIDS)
    assert folders[0] in str(error.value) and "classes_map" in str(error.value)


def test_a_map_of_unknown_classes_is_refused():
    with pytest.raises(ValueError, match="the classes map names tiger, which the class list lacks"):
        match_classes(["cat"], WNIDS, {"cat": [WNIDS[0], "tiger"]})


def test_composed_and_decomposed_letters_are_the_same():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert match_classes([composed], [decomposed]) is None
    assert meanings([decomposed], ["a", composed]) == [[1]]
    assert meanings(["x", composed], ["a", composed], {decomposed: ["a"], "x": [decomposed]}) == [
        [1],
        [0],
    ]


def test_a_name_that_two_classes_have_is_refused_where_it_is_used():
    """ImageNet's classes in words have two cranes."""
    classes = ["crane", "dog", "crane"]
    assert match_classes(classes, classes) is None
    assert meanings(["dog"], classes) == [[1]]
    for folders, classes_map in ((["crane"], None), (["bird"], {"bird": ["crane"]})):
        with pytest.raises(ValueError, match="the class list has crane more than once"):
            match_classes(folders, classes, classes_map)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ('{"a": ["x"], "b": ["x"], "a": ["y"]}', "names a more than once"),
        ('{"caf\u00e9": ["x"], "cafe\u0301": ["y"]}', "names café more than once"),
        ("[]", "one JSON object"),
        ('{"a": []}', "a need"),
        ('{"a": [1]}', "a need"),
    ],
    ids=["broken", "twice", "forms", "list", "empty", "number"],
)
def test_unusable_maps(tmp_path: Path, content: str, message: str):
    file = tmp_path / "map.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_classes_map(file)


def folder_of_pictures(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


def test_queries_are_found_below_the_folders_of_the_map(tmp_path: Path, capsys):
    root = folder_of_pictures(tmp_path / "q", {"b": 2, "a": 1, "c": 3})
    (root / "README.txt").touch()
    (root / "a" / "._0.png").touch()  # as some archives bring along
    found = load_queries(root)
    assert (found.classes, found.labels.tolist()) == (["a", "b", "c"], [0, 1, 1, 2, 2, 2])
    some = load_queries(root, {"c": ["x"], "a": ["y"]})
    assert (some.classes, some.labels.tolist()) == (["a", "c"], [0, 1, 1, 1])
    assert "1 folders are not in the map and left out" in capsys.readouterr().out
    with pytest.raises(DataError, match="the classes map names folders that .* lacks: d"):
        load_queries(root, {"d": ["x"]})


def test_queries_without_images_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is not a folder"):
        load_queries(tmp_path / "none")
    with pytest.raises(DataError, match="has no class folders"):
        load_queries(tmp_path)
    root = folder_of_pictures(tmp_path / "q", {"a": 1, "b": 0})
    with pytest.raises(DataError, match=r"class folders without images.*b"):
        load_queries(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # as Windows' editors save it
def test_map_file_with_a_single_name(tmp_path: Path, encoding: str):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"a": "x", "b": ["x", "y"]}), encoding=encoding)
    assert read_classes_map(file) == {"a": ["x"], "b": ["x", "y"]}


def random_features(count: int, num_classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 6, generator=generator)
    return Features(z, torch.randint(num_classes, (count,), generator=generator))


def test_logits_are_restricted_and_any_accepted_class_is_right():
    accepted = {"x": [WNIDS[1], WNIDS[4]], "y": [WNIDS[9]], "z": [WNIDS[4]]}
    match = match_classes(["x", "y", "z"], WNIDS, accepted)
    plain = random_features(50, 3, seed=1)
    head = TiedHead(6, 12, [2, 6])
    right = {2: 0, 6: 0}
    head.requires_grad_(False)
    for z, label in zip(plain.z, plain.labels.tolist(), strict=True):
        for m, logits in head(z[None]).items():
            best = max((1, 4, 9), key=lambda c: float(logits[0, c]))
            right[m] += WNIDS[best] in accepted["xyz"[label]]
    queries = Features(plain.z, plain.labels, in_head=match)
    scores = {s.granularity: s.value for s in classify.run(None, queries, head, ClassifyConfig())}
    assert scores == pytest.approx({m: 2 * r for m, r in right.items()})
    assert 0 < right[6] < 50


def test_neighbours_vote_in_the_classes_of_the_bank():
    bank = random_features(40, 12, seed=2)
    plain = random_features(30, 2, seed=3)
    match = match_classes(["p", "q"], WNIDS, {"p": WNIDS[:5], "q": [WNIDS[5], WNIDS[6]]})
    queries = Features(plain.z, plain.labels, in_bank=match)
    score = next(iter(knn.run(bank, queries, TiedHead(6, 12, [6]), KnnConfig(k=[1]))))
    similarity = torch.nn.functional.cosine_similarity(plain.z[:, None], bank.z[None], dim=2)
    found = bank.labels[similarity.argmax(1)].tolist()
    wanted = [range(5), (5, 6)]
    right = sum(f in wanted[y] for f, y in zip(found, plain.labels.tolist(), strict=True))
    assert score.value == pytest.approx(100 * right / 30)
    assert score.n == 30
