"""Fetch and verify Fashion-MNIST ahead of training: ``python scripts/get_data.py --root data``."""

import argparse
import logging
import os
import sys
from pathlib import Path

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.data import DataError, fashion_mnist


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("MRL_DATA", "data")))
    parser.add_argument("--no-download", action="store_true", help="only look for it and verify it")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        splits = fashion_mnist.load(args.root, download=not args.no_download)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{len(labels)} {split}" for split, (_, labels) in splits.items())
    print(f"Fashion-MNIST is complete in {fashion_mnist.find(args.root)}: {sizes} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
