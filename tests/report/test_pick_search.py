"""scripts/pick_search.py: the cheapest search within a stated loss."""

import re
import runpy
from pathlib import Path

import pytest
from made_up_rows import row, write_rows

from mrl.row_names import metric_of
from mrl.search.cost import Plan

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts/pick_search.py"))["main"]
# plan -> mAP@10 on holdout, on test, MFLOPs and ms per query
MEASURED = {
    Plan((8,)): (60.0, 59.0, 1.0, 0.9),
    Plan((2048,)): (65.0, 64.0, 256.0, 9.0),
    Plan((8, 2048), (200,)): (64.2, 63.5, 1.5, 1.4),
    Plan((16, 2048), (200,)): (64.95, 63.7, 2.5, 1.6),
    Plan((16, 32, 2048), (200, 50)): (64.92, 63.8, 2.2, 1.9),
}


def write_measured(folder: Path) -> Path:
    rows = []
    for plan, (holdout, test, mflops, ms) in MEASURED.items():
        for split, quality in (("holdout", holdout), ("test", test)):
            for name, value in (("mAP@10", quality), ("MFLOPs/query", mflops), ("ms/query", ms)):
                place = {"granularity": plan.dims[0], "metric": metric_of(name, plan)}
                rows.append(row(evaluator="retrieval", split=split, value=value, **place))
    write_rows(folder / "rows.jsonl", rows)
    return folder


def chosen(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    """The lines of the table, in cells."""
    main([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]
    return [re.split(r"  +", line.strip()) for line in lines]


def test_chosen_on_holdout_and_reported_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holdout, test = chosen(capsys, write_measured(tmp_path))
    assert holdout[1:4] == ["MRL", "16 > 32 > 2048", "200, 50"]
    assert holdout[4:] == ["64.92", "65.00", "0.08", "2.2", "0.9%"]
    assert test[0] == "Fashion-MNIST, test split"
    assert test[4:7] == ["63.80", "64.00", "0.20"]  # it may lose more there


def test_by_time_and_other_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_measured(tmp_path)
    assert chosen(capsys, tmp_path, "--cost", "ms")[0][2:4] == ["16 > 2048", "200"]
    assert chosen(capsys, tmp_path, "--max-loss", 1)[0][2:4] == ["8 > 2048", "200"]
    assert chosen(capsys, tmp_path, "--max-loss", 0)[0][2:4] == ["2048", "none"]
    assert chosen(capsys, tmp_path, "--split", "test")[0][2] == "2048"  # all others lose too much


def test_nothing_to_choose_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row(split="holdout"), row(split="test")])
    with pytest.raises(ValueError, match="no retrieval rows of the split 'holdout'"):
        main([str(tmp_path)])
    write_measured(tmp_path)
    with pytest.raises(ValueError, match="there are: holdout, test"):
        main([str(tmp_path), "--split", "val"])
