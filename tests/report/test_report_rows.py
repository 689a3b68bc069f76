"""Reading rows: what counts, and what is refused with the place named."""

import dataclasses
import json

import pytest
from made_up_rows import row, write_rows

from mrl.report.rows import FIELDS, RowsError, read_rows


def test_joins_run_directories_results_and_files(tmp_path):
    run, results = tmp_path / "outputs/a", tmp_path / "results"
    write_rows(run / "rows.jsonl", [row(seed=0)])
    write_rows(results / "x/rows_cifar.jsonl", [row(seed=1)])
    extra = write_rows(tmp_path / "other.jsonl", [row(seed=2)])
    write_rows(run / "metrics.jsonl", [{"step": 1}])  # not rows: never opened
    rows = read_rows([run, results, extra, run / "rows.jsonl"])
    assert rows["seed"].tolist() == [0, 1, 2]
    assert rows["source"].tolist()[2] == str(extra)


def test_latest_row_of_a_key_wins(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [row(value=1.0), row(value=2.0, n=7, commit="new")])
    rows = read_rows([file])
    assert len(rows) == 1
    assert rows.loc[0, ["value", "n", "commit"]].tolist() == [2.0, 7, "new"]


def test_files_that_disagree_are_told(tmp_path):
    files = [write_rows(tmp_path / f"{i}.jsonl", [row(value=90.0 + i)]) for i in range(2)]
    with pytest.warns(UserWarning, match=r"1 measurements .*0\.jsonl.*1\.jsonl"):
        rows = read_rows(files)
    assert rows["value"].tolist() == [91.0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"run": "a", "exp', "not JSON"),
        ("[1, 2]", "must be a JSON object"),
        (json.dumps({"run": "a"}), "missing .*experiment"),
        (json.dumps(row(shots=5)), "unknown .*shots"),
        (json.dumps(row(value="90")), "value must be float"),
        (json.dumps(row(value=float("nan"))), "value is nan"),
        (json.dumps(row(value=10**400)), "value is out of range"),
        (json.dumps(row(value=None)), "value must be float"),
        (json.dumps(row(value=[9.0])), "value must be float"),
        (json.dumps(row(seed=True)), "seed must be int"),
        (json.dumps(row(seed=-(2**70))), "seed is out of range"),
        (json.dumps(row(n=2**70)), "n is out of range"),
        (json.dumps(row(method=3)), "method must be str"),
        ("null", "must be a JSON object"),
        ("7", "must be a JSON object"),
        ("[" * 100_000, "not JSON"),
        (json.dumps(row(granularity=0)), "granularity must be at least 1"),
    ],
)
def test_bad_line_is_named(tmp_path, line, reason):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n\n" + line + "\n")
    with pytest.raises(RowsError, match=rf"rows\.jsonl, line 3: .*{reason}"):
        read_rows([file])


def test_nothing_found_is_an_error_that_helps(tmp_path):
    with pytest.raises(RowsError, match=r"eval\.py run="):
        read_rows([tmp_path])
    with pytest.raises(RowsError, match="does not exist"):
        read_rows([tmp_path / "missing"])
    with pytest.raises(RowsError, match="no rows"):
        read_rows([write_rows(tmp_path / "rows.jsonl", [])])
    with pytest.raises(RowsError, match="name at least one"):
        read_rows([])


def test_fields_are_those_that_evaluations_write():
    from mrl.evaluation import Row

    assert list(FIELDS) == [field.name for field in dataclasses.fields(Row)]
