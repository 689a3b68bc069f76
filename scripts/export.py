"""Give a trained model to other programs: ``python scripts/export.py RUN --to onnx --out FILE``.

python scripts/export.py outputs/fashion_mnist_mrl/seed0 --to safetensors --out mrl.safetensors
python scripts/export.py r50_mrl1_e0_ff2048.pt --to onnx --out mrl.onnx --widths 64 2048
python scripts/export.py r50_mrl1_e0_ff2048.pt --to onnx --out mrl.onnx --width-input
"""

import argparse
import sys
from pathlib import Path

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.checkpoint import CheckpointError
from mrl.export import export_released, export_safetensors, read_source
from mrl.onnx_export import export_onnx
from mrl.released import KINDS

SUFFIXES = {"released": ".pt", "safetensors": ".safetensors", "onnx": ".onnx"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a usage message if it is wrong."""
    parser = argparse.ArgumentParser(description="Write a trained model for other programs.")
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CKPT",
        help="run directory, checkpoint, .pt of the original authors, or .safetensors of ours",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=SUFFIXES,
        help="released: the original authors' layout; safetensors: with a .json beside it",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write; a new one")
    parser.add_argument(
        "--widths", type=int, nargs="+", metavar="M", help="onnx: prefixes (default: granularities)"
    )
    parser.add_argument(
        "--width-input", action="store_true", help="onnx: the width is an input of the graph"
    )
    parser.add_argument(
        "--kind", choices=KINDS, help="of an authors' .pt whose name and tensors leave it open"
    )
    options = parser.parse_args(arguments)
    if options.to != "onnx" and (options.widths or options.width_input):
        parser.error("--widths and --width-input belong to --to onnx")
    if options.out.suffix != SUFFIXES[options.to]:
        parser.error(f"--out must end in {SUFFIXES[options.to]}, got {options.out}")
    if options.out.exists():
        parser.error(f"--out {options.out} exists: choose another name")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Read the model, write it in the other form, and say how it is used."""
    options = parse_arguments(arguments)
    source = read_source(options.source, kind=options.kind)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.to == "onnx":
        names = export_onnx(
            source, options.out, widths=options.widths, width_input=options.width_input
        )
        print(f"wrote {options.out}: outputs {', '.join(names)}")
        return
    write = export_released if options.to == "released" else export_safetensors
    write(source, options.out)
    print(f'wrote {options.out}: mrl.load_model("{options.out}") reads it')


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
