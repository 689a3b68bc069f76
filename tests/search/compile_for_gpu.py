"""Prints what the kernel of the scan becomes on a GPU, without having one.

``python tests/search/compile_for_gpu.py cosine 90``: the assembly for compute capability 9.0,
and what it needs of the chip.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mrl.search import fused_scan

TYPES = {"q32": "*fp32", "x32": "*fp32", "weight": "*fp32", "top": "*fp32", "widths": "*i32"}
TYPES |= {"q16": "*bf16", "x16": "*bf16"}


def main(metric: str, capability: int) -> None:
    kernel = fused_scan._group_maxima
    constants = {
        "IS_L2": metric == "l2",
        "MEMBERS": 32,
        "TILE_Q": fused_scan.TILE_QUERIES,
        "TILE_B": fused_scan.TILE_ROWS,
        "FLOAT_STEP": fused_scan.FLOAT_STEP,
        "HALF_STEP": fused_scan.HALF_STEP,
        "TILES_DOWN": fused_scan.TILES_DOWN,
    }
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    # What torch's allocator and rows of a multiple of 16 numbers give.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in TYPES or name.endswith("_stride")
    }
    source = ASTSource(
        kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned
    )
    options = {"num_warps": fused_scan.WARPS, "num_stages": fused_scan.STAGES}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    print(compiled.asm["ptx"])
    print("shared memory:", compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
