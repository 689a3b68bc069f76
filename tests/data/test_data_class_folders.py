"""Which files are pictures of which class: hidden, linked, foreign and oddly named ones."""

import errno
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from mrl.data import DataError
from mrl.data.class_folders import class_folders, find_pictures
from mrl.data.image_folder import read_classes, scan
from mrl.evaluation.queries import load_queries

Spoil = Callable[[Path], object]
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ and val/ of cat, dog: three pictures each, one of them a folder deeper."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in ("0.png", "1.JPG", "more/2.png"):
                path = tmp_path / "tree" / split / name / number
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
    return tmp_path / "tree"


def counts(tree: Path) -> tuple[list[int], list[int]]:
    """Pictures of each class, as training and as queries see them."""
    _, labels, classes = scan(tree)[0]
    queries = load_queries(tree / "train")
    assert classes == queries.classes
    assert sorted(scan(tree)[0][0].tolist()) == sorted(queries.images.tolist())
    return labels.bincount().tolist(), queries.labels.bincount().tolist()


def copy(tree: Path, folder: str) -> None:
    shutil.copytree(tree / "train/cat/more", tree / "train" / folder)


def outside(tree: Path, name: str) -> Path:
    """A picture beside the tree."""
    path = tree.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    return path


def store(tree: Path) -> None:
    """Links as git-annex makes them: what they lead to has another name, in a hidden folder."""
    (tree / "train/cat/.store").mkdir()
    (tree / "train/cat/0.png").rename(tree / "train/cat/.store/SHA256")
    (tree / "train/cat/0.png").symlink_to(".store/SHA256")


def linked_class(tree: Path) -> None:
    (tree / "train/cat").rename(tree.parent / "felines")
    (tree / "train/cat").symlink_to("../../felines")


def all_links(tree: Path) -> None:
    """A subset made of links: relative ones, absolute ones, and links to links."""
    for number, name in enumerate(("0.png", "1.JPG", "more/2.png")):
        path = tree / "train/cat" / name
        real = path.rename(tree.parent / f"{number}.png")
        second = tree.parent / f"link{number}"
        second.symlink_to(real.name)
        relative = os.path.relpath(second, path.parent)
        path.symlink_to([relative, real, second][number])


UNCHANGED: dict[str, Spoil] = {
    "notebook": lambda t: copy(t, "cat/.ipynb_checkpoints"),
    "thumbnails": lambda t: copy(t, "cat/more/.thumbnails"),
    "synology": lambda t: copy(t, "cat/@eaDir/0.png"),
    "qnap": lambda t: copy(t, "cat/.@__thumb"),
    "qnap, no dot": lambda t: copy(t, "cat/@__thumb"),
    "snapshot": lambda t: copy(t, "cat/~snapshot"),
    "server's class": lambda t: copy(t, "@SynoFinder-log"),
    "archive": lambda t: copy(t, "__MACOSX/cat"),
    "bin": lambda t: copy(t, "$RECYCLE.BIN/x"),
    "found": lambda t: copy(t, "lost+found"),
    "fork": lambda t: (t / "train/cat/._0.png").touch(),
    "itself": lambda t: (t / "train/cat/again").symlink_to("."),
    "up": lambda t: (t / "train/cat/all").symlink_to(".."),
    "far up": lambda t: (t / "train/cat/all").symlink_to(t.parent),
    "up from below": lambda t: (t / "train/cat/more/back").symlink_to(t / "train/cat"),
    "class up": lambda t: (t / "train/all").symlink_to("."),
    "twice": lambda t: (t / "train/cat/again").symlink_to("more"),
    "file twice": lambda t: (t / "train/cat/9.png").symlink_to("0.png"),
    "file twice, sorted first": lambda t: (t / "train/cat/+.png").symlink_to("more/2.png"),
    "pipe": lambda t: os.mkfifo(t / "train/cat/pipe.png"),
    "pipe, linked": lambda t: (os.mkfifo(t / "x"), (t / "train/cat/x.png").symlink_to(t / "x")),
    "folder like a picture": lambda t: (t / "train/cat/x.png").mkdir(),
    "class folder is a link": linked_class,
    "all are links": all_links,
    "store": store,
}


@pytest.mark.parametrize("kind", UNCHANGED)
def test_a_picture_counts_once_and_in_its_class(tree: Path, kind: str) -> None:
    UNCHANGED[kind](tree)
    assert counts(tree) == ([3, 3], [3, 3])


def more(tree: Path, link: str, target: str = "a/9.png") -> None:
    (tree / "train" / link).symlink_to(outside(tree, target))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: more(t, "cat/9.png"),
        lambda t: more(t, "cat/9.png", "a/blob"),
        lambda t: (t / "train/cat/far").symlink_to(outside(t, "a/9.png").parent),
        lambda t: [more(t, f"cat/{name}.png") for name in "xyz"],
        lambda t: [
            (t / "train/cat" / name).symlink_to(outside(t, "a/9.png").parent) for name in "xy"
        ],
        lambda t: (more(t, "cat/9.png"), (t / "train/cat/far").symlink_to(t.parent / "a")),
    ],
    ids=["file", "no ending", "folder", "file thrice", "folder twice", "both"],
)
def test_what_lies_elsewhere_counts_through_links(tree: Path, spoil: Spoil) -> None:
    spoil(tree)
    assert counts(tree) == ([4, 3], [4, 3])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: (t / "train/cat/x").symlink_to("../dog"),
        lambda t: (t / "train/cat/x").symlink_to("../dog/more"),
        lambda t: (t / "train/emu").symlink_to("dog"),
        lambda t: (t / "train/cat/x.png").symlink_to("../dog/0.png"),
        lambda t: (t / "train/dog/x.png").symlink_to("../cat/0.png"),
        lambda t: [more(t, f"{name}/9.png") for name in ("cat", "dog")],
        lambda t: [
            (t / "train" / name / "far").symlink_to(outside(t, "a/9.png").parent)
            for name in ("cat", "dog")
        ],
    ],
    ids=["class", "below", "synonym", "file", "file before", "outside", "folder outside"],
)
def test_a_picture_of_two_classes_is_refused(tree: Path, spoil: Spoil) -> None:
    spoil(tree)
    for read in (lambda: scan(tree), lambda: load_queries(tree / "train")):
        with pytest.raises(DataError, match="links make .* part of two classes, through .* and "):
            read()


@pytest.mark.parametrize(
    "link", ["train/cat/x.png", "train/cat/x", "train/emu"], ids=["file", "folder", "class"]
)
@pytest.mark.parametrize("target", ["gone", "x.png"], ids=["nowhere", "circle"])
def test_a_link_that_leads_nowhere_is_refused(tree: Path, link: str, target: str) -> None:
    place = tree / link
    place.symlink_to(place if target == "x.png" else target)
    for read in (lambda: scan(tree), lambda: load_queries(tree / "train")):
        with pytest.raises(DataError, match=f"cannot read {place}, a link to .*delete the link"):
            read()


def test_a_folder_that_may_not_be_read_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def forbid(path: str) -> object:
        if path.endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(DataError, match="cannot read the folder .*more: Permission denied"):
        scan(tree)


def test_what_is_left_out_is_said_in_one_line(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan(tree)
    assert capsys.readouterr().out == ""
    for name in ("a.gif", "b.GIF", "c.heic", "README", ".hidden.gif", "Thumbs.db"):
        (tree / "train/dog" / name).touch()
    UNCHANGED["twice"](tree)
    scan(tree)
    (line,) = capsys.readouterr().out.splitlines()
    told = "left out 2 .gif, 1 .heic, 1 linked once more, 1 without an ending. "
    assert f"{tree}/train: {told}Pictures end in .jpg, " in line


def test_order_is_that_of_paths(tree: Path) -> None:
    for name in ("a/5.png", "z.png", "A.png", "more+.png"):
        path = tree / "train/cat" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (found,) = find_pictures([class_folders(tree / "train")["cat"]])
    names = [
        os.path.relpath(path, tree.as_posix() + "/train/cat") for path in map(os.fsdecode, found)
    ]
    assert names == ["0.png", "1.JPG", "A.png", "a/5.png", "more+.png", "more/2.png", "z.png"]


def rename(tree: Path, split: str, name: str) -> None:
    (tree / split / "cat").rename(tree / split / name)


@pytest.mark.parametrize(("train", "val"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_names_in_other_unicode_forms_are_the_same(tree: Path, train: str, val: str) -> None:
    assert NFC != NFD
    rename(tree, "train", train)
    rename(tree, "val", val)
    listed = tree / "list.txt"
    listed.write_text(f"dog\n{NFD}\n", encoding="utf-8")
    for classes_file, classes in ((None, [NFC, "dog"]), (listed, ["dog", NFC])):
        for paths, labels, names in scan(tree, classes_file):
            assert names == classes
            folders = [Path(os.fsdecode(path)).relative_to(tree).parts[1] for path in paths]
            assert [unicodedata.normalize("NFC", folder) for folder in folders] == [
                classes[label] for label in labels
            ]
    assert load_queries(tree / "train", {NFD: ["x"]}).classes == [NFC]


def test_two_folders_of_the_same_name_are_refused(tree: Path) -> None:
    rename(tree, "train", NFC)
    (tree / "train" / NFD).mkdir()
    with pytest.raises(DataError, match="two folders in .*train have the same name, .*Unicode"):
        scan(tree)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfcat\r\ndog\r\n",
        b"cat\n\xef\xbb\xbfdog",
        b"\xef\xbb\xbf\n cat\t\n\ndog\n",
    ],
    ids=["notepad", "joined", "spaces"],
)
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert read_classes(tmp_path / "list.txt") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog".encode("utf-16"), "It must be a text file in UTF-8"),
        (f"{NFC}\n{NFD}".encode(), "it repeats café"),
        (b"\xef\xbb\xbf\n", "it is empty"),
    ],
)
def test_unusable_lists_of_classes(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "list.txt")


def test_pictures_of_both_splits_are_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan(tree)
    assert not capsys.readouterr().out
    (tree / "train/cat/v").symlink_to(tree / "val/cat")
    assert len(scan(tree)[0][0]) == 9
    said = capsys.readouterr().out
    assert said.startswith("warning: 2 folder(s) are linked into both train and test")
    assert str(tree / "val/cat/more") in said
