"""Time and memory of ``head.loss`` against one plain fixed-feature head with its loss, on the CPU.

    python benchmarks/head_loss.py                # both, as Markdown tables
    python benchmarks/head_loss.py --clock cpu --threads 1 --rounds 45    # on a busy machine

A step is forward and backward, down to the embeddings.  The cases take turns in one process, so
that a busy machine slows all of them; a ratio is the median, over the rounds, of a case's time
divided by FF's in the same round.  ``--clock cpu`` counts processor time instead of time passed:
other programs disturb it less.  Memory is the peak of the resident set over one step, less what was
there before it, in a process of its own for each case (Linux); the gradients are part of it.

Shapes: N examples, C classes, D embedding width, M prefix width.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import forget_peak, resident_bytes
from benchmarks.turns import CLOCKS, median_ratio, seconds_of_steps, take_turns
from mrl.heads import NestedHead, TiedHead
from mrl.losses import nested_cross_entropy, weighted_sum
from mrl.nesting import log_spaced
from mrl.tracking import device_name

CPU = torch.device("cpu")
D = 2048
WIDTHS = log_spaced(D)
TIME_SHAPE = (512, 1000)  # N, C
MEMORY_SHAPE = (1024, 21841)
TARGETS = {"MRL-E": (1.4, 1.5), "MRL": (2.1, 1.5)}  # of FF's time and memory, at most


def plain_sum(logits: dict[int, Tensor], labels: Tensor) -> Tensor:
    return weighted_sum(nested_cross_entropy(logits, labels), [1.0] * len(logits))


def tied_loop(head: TiedHead, z_ND: Tensor) -> dict[int, Tensor]:
    return {m: head.logits_at(z_ND, m) for m in WIDTHS}


# name -> (the head's class, its loss from head, z and labels)
CASES: dict[str, tuple[Callable[..., nn.Module], Callable[..., Tensor]]] = {
    "FF": (lambda d, c, _: nn.Linear(d, c), lambda head, z, y: F.cross_entropy(head(z), y)),
    "MRL-E": (TiedHead, lambda head, z, y: head.loss(z, y)[0]),
    "MRL": (NestedHead, lambda head, z, y: head.loss(z, y)[0]),
    "MRL-E, plain loop": (TiedHead, lambda head, z, y: plain_sum(tied_loop(head, z), y)),
    "MRL, plain loop": (NestedHead, lambda head, z, y: plain_sum(head(z), y)),
}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print(peak_bytes(args.memory_of))
        return
    print(f"{device_name(CPU)}, threads: {args.threads}, torch {torch.__version__}, float32")
    print(f"D {D}, {len(WIDTHS)} widths, {args.clock} time, {args.rounds} rounds\n")
    steps = {name: make_step(name, *TIME_SHAPE) for name in CASES}
    cases = seconds_of_steps(steps, args.clock, CPU)
    seconds = take_turns(cases, args.rounds, warmup=2)
    ratios = {name: median_ratio(values, seconds["FF"]) for name, values in seconds.items()}
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    show("N {}, C {}: ms".format(*TIME_SHAPE), medians, ratios, 0)
    memory = {name: peak_in_a_process(name, args.threads) / 2**20 for name in CASES}
    ratios = {name: value / memory["FF"] for name, value in memory.items()}
    show("N {}, C {}: peak MiB".format(*MEMORY_SHAPE), memory, ratios, 1)


def make_step(name: str, N: int, C: int) -> Callable[[], None]:
    make_head, loss = CASES[name]
    head = make_head(D, C, WIDTHS)
    z_ND, labels = torch.randn(N, D, requires_grad=True), torch.randint(C, (N,))

    def step() -> None:
        z_ND.grad = None
        head.zero_grad(set_to_none=True)
        loss(head, z_ND, labels).backward()

    return step


def peak_in_a_process(name: str, threads: int) -> int:
    command = [sys.executable, __file__, "--memory-of", name, "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes(name: str) -> int:
    make_step(name, 64, 10)()  # threads and the libraries' own buffers
    step = make_step(name, *MEMORY_SHAPE)
    before = resident_bytes("VmRSS")
    forget_peak()
    step()
    return resident_bytes("VmHWM") - before


def show(unit: str, values: dict[str, float], ratios: dict[str, float], column: int) -> None:
    print(f"| case | {unit} | of FF | at most |\n| --- | ---: | ---: | ---: |")
    for name, value in values.items():
        target = TARGETS.get(name, ("", ""))[column]
        print(f"| {name} | {value:.1f} | {ratios[name]:.2f} | {target} |")
    print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--memory-of", choices=CASES, help="print the peak bytes of one case only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
