"""Name the cheapest search that loses little: chosen on one split, reported on the others, too.

python eval.py run=outputs/mine/seed0 'evals=[retrieval]' split=holdout
python eval.py run=outputs/mine/seed0 'evals=[retrieval]'
python scripts/pick_search.py outputs/mine/seed0 --max-loss 0.1
"""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.report.rows import read_rows
from mrl.report.searches import Search, cheapest, exact_of, searches_of
from mrl.report.summary import Section, split_sections
from mrl.row_names import MFLOPS, MILLISECONDS, plan_text

COSTS = {"mflops": MFLOPS, "ms": MILLISECONDS}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a usage message if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="RUN_OR_RESULTS",
        help="run directory, directory of results (searched for rows*.jsonl), or .jsonl file",
    )
    parser.add_argument("--split", default="holdout", help="to choose on (default: holdout)")
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.1,
        metavar="POINTS",
        help="of mAP@10 against exact search at the full width (default: 0.1)",
    )
    parser.add_argument("--cost", choices=COSTS, default="mflops", help="per query")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read rows, choose, print how the choice does on every split."""
    options = parse_arguments(arguments)
    cost = COSTS[options.cost]
    sections = [s for s in split_sections(read_rows(options.sources)) if searches_of(s)]
    chosen_on = [s for s in sections if s.split == options.split]
    if not chosen_on:
        there = ", ".join(sorted({s.split for s in sections})) or "none"
        raise ValueError(
            f"no retrieval rows of the split {options.split!r} to choose on (there are: {there}): "
            f"run eval.py 'evals=[retrieval]' split={options.split}, or choose with --split"
        )
    lines = []
    for section in chosen_on:
        for series, searches in searches_of(section).items():
            choice = cheapest(searches, cost, options.max_loss)
            lines += report(choice, series, section, sections, cost)
    header = ["Data", "Model", "Widths", "Shortlists", section.retrieval_metric]
    header += ["Exact", "Loss", cost, "of exact"]
    print(tabulate(lines, headers=header, disable_numparse=True, stralign="right"))
    print(f"\nChosen on {options.split}: the least {cost} within {options.max_loss:g} points.")


def report(
    choice: Search, series: str, chosen_on: Section, sections: list[Section], cost: str
) -> list[list[str]]:
    """A line for every split of the data set on which the chosen plan was measured."""
    lines = []
    others = [s for s in sections if s.dataset == chosen_on.dataset and s is not chosen_on]
    for section in (chosen_on, *others):
        searches = searches_of(section).get(series, [])
        found = [s for s in searches if s.plan == choice.plan and cost in s.costs]
        if not found:
            continue
        search, exact = found[0], exact_of(searches)
        share = search.costs[cost] / exact.costs[cost] if cost in exact.costs else float("nan")
        numbers = [search.quality, exact.quality, exact.quality - search.quality]
        lists = ", ".join(map(str, search.plan.shortlists)) or "none"
        lines.append(
            [
                section.title,
                series,
                plan_text(search.plan),
                lists,
                *(f"{number:.2f}" for number in numbers),
                f"{search.costs[cost]:.3g}",
                f"{share:.1%}",
            ]
        )
    return lines


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
