"""Folders of images to FFCV's format: ``python scripts/write_ffcv.py ROOT``.

Reads ROOT/train/CLASS/* and ROOT/val/CLASS/* (or test/), writes train.beton and val.beton with a
manifest beside each (train.json, val.json); ``data.loader=ffcv`` reads them.
"""

import argparse
import sys
from pathlib import Path

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.data import DataError, image_folder
from mrl.data.ffcv_writer import WriteSettings, write_split
from mrl.stopping import orderly_end


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder with train/ and val/ (or test/)")
    parser.add_argument("--out", type=Path, help="folder for the files; default: ROOT")
    parser.add_argument("--classes", type=Path, help="text file: class folders to use, one a line")
    parser.add_argument("--max-side", type=int, default=500, help="pixels; larger ones are shrunk")
    parser.add_argument("--jpeg-probability", type=float, default=0.5, help="others: plain pixels")
    parser.add_argument("--jpeg-quality", type=int, default=90)
    parser.add_argument("--workers", type=int, default=4, help="processes that decode and encode")
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="leave out pictures that cannot be decoded"
    )
    return parser.parse_args()


@orderly_end("the file at hand was not written", ctrl_c=130)
def main() -> int:
    args = parse_args()
    out = args.out or args.root
    try:
        settings = WriteSettings(
            max_side=args.max_side,
            jpeg_probability=args.jpeg_probability,
            jpeg_quality=args.jpeg_quality,
        )
        out.mkdir(parents=True, exist_ok=True)
        splits = image_folder.scan(args.root, args.classes)
        for name, scanned in zip(("train", "val"), splits, strict=True):
            path = out / f"{name}.beton"
            made = write_split(
                path, scanned, settings, workers=args.workers, skip_corrupt=args.skip_corrupt
            )
            for message in made["skipped"]:
                print(f"left out: {message}", file=sys.stderr)
            print(
                f"{path}: {made['num_images']} images of {len(made['classes'])} classes, "
                f"{made['bytes'] / 1e9:.2f} GB, {len(made['skipped'])} left out"
            )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
