"""Compare runs: tables in the terminal, and a folder with one HTML page, tables and figures.

python scripts/report.py outputs/quickstart --out outputs/quickstart
python scripts/report.py results/fashion_mnist --out outputs/report --readme README.md --name main
"""

import argparse
import sys
from pathlib import Path

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.report.html import DEFAULT_TITLE
from mrl.report.readme import update_readme
from mrl.report.rows import read_rows
from mrl.report.summary import split_sections
from mrl.report.tables import markdown_report, section_tables
from mrl.report.write import write_report


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a usage message if it is wrong."""
    parser = argparse.ArgumentParser(
        description="Join the rows of runs into tables, figures and one HTML page."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="RUN_OR_RESULTS",
        help="run directory, directory of results (searched for rows*.jsonl), or .jsonl file",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--title", default=DEFAULT_TITLE, help="title of the page")
    parser.add_argument("--readme", type=Path, help="Markdown file to put the tables into ...")
    parser.add_argument(
        "--name", help="... between <!-- results:NAME --> and <!-- /results:NAME -->"
    )
    options = parser.parse_args(arguments)
    if (options.readme is None) != (options.name is None):
        parser.error("--readme and --name go together")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Read rows, write the report, print the comparison."""
    options = parse_arguments(arguments)
    rows = read_rows(options.sources)
    sections = split_sections(rows)
    # Written before anything is printed: a closed pipe (| head) may end the printing, not the work.
    written = write_report(rows, options.out, options.title)
    tables = [table for section in sections for table in section_tables(section)]
    print("\n\n".join(table.terminal() for table in tables), end="\n\n")
    for path in written:
        print(f"wrote {path}")
    if options.readme is not None:
        update_readme(options.readme, options.name, markdown_report(sections))
        print(f"updated {options.readme}")


if __name__ == "__main__":
    # A terminal that lacks a sign such as the plus-minus shows "?" and does not stop the report.
    sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
