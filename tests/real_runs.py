"""Real training processes, to send signals to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = ["backbone.widths=[8,16]", "backbone.blocks=[1,1]", "head.granularities=[2,16]"]
TINY += ["optim.epochs=9999", "tracking.log_every=1", "device=cpu"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def write_pictures(root: Path, per_class: int = 300) -> list[str]:
    """Two classes of noisy JPEGs; returns overrides that let two workers decode them."""
    random = np.random.default_rng(0)
    for split, count in (("train", per_class), ("test", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    options = ["data=imagefolder", f"data.root={root}", "data.image_size=32", "data.workers=2"]
    return [*options, "optim.batch_size=8"]


class RealRun:
    """``train.py`` in a process group of its own, under torchrun if ``ranks`` > 1."""

    def __init__(self, folder: Path, *overrides: str, ranks: int = 1) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*launcher, "train.py", *TINY, *overrides, f"run_dir={folder}"],
                cwd=ROOT,
                env=ENV,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_logged(self, steps: int, seconds: float = 100) -> None:
        metrics, deadline = self.folder / "metrics.jsonl", time.monotonic() + seconds
        while not metrics.exists() or len(metrics.read_bytes().splitlines()) < steps:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_children(self, count: int) -> list[int]:
        """The processes that it has started; workers are started anew for each epoch."""
        while len(found := self.children()) < count:
            assert self.process.poll() is None, self.output()
            time.sleep(0.01)
        return found

    def signal_all(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self, seconds: float = 60) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        finally:
            self.clear()

    def clear(self) -> None:
        try:
            self.signal_all(signal.SIGKILL)
        except ProcessLookupError:
            return

    def output(self) -> str:
        return self.log.read_text(errors="replace")
