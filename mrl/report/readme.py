"""Put generated text between two markers of a Markdown file, and touch nothing else."""

from pathlib import Path

from mrl.files import write_atomically


def replace_between(text: str, name: str, new: str) -> str:
    """`text`, replaced between `<!-- results:NAME -->` and `<!-- /results:NAME -->`.

    Raises:
        ValueError: a marker is missing, stands there twice, or the two are in the wrong order.
    """
    begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    for marker in (begin, end):
        if text.count(marker) != 1:
            raise ValueError(f"need the line {marker} exactly once, found {text.count(marker)}")
    head, rest = text.split(begin)
    if end not in rest:
        raise ValueError(f"{end} stands before {begin}")
    tail = rest.split(end)[1]
    return f"{head}{begin}\n\n{new.strip()}\n\n{end}{tail}"


def update_readme(path: Path, name: str, new: str) -> None:
    """`replace_between` on a file; ValueError names the file."""
    try:
        text = path.read_text(encoding="utf-8")
        write_atomically(path, replace_between(text, name, new).encode())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
