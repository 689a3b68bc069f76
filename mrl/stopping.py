"""Being told to stop: Ctrl-C, and the signals by which a scheduler takes a machine back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from mrl.distributed import Ranks

# SIGTERM: preemption, or torchrun's own end. SIGUSR1: SLURM's --signal, some time before the end.
# SIGUSR2: the same from submitit, whose handler then puts the job back into the queue.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], Any] | int | None


class StoppedError(RuntimeError):
    """The run was told to stop, and its state is saved; ``signal_number`` says by what."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, and saved")
        self.signal_number = number


class StopRequest:
    """Whether a signal came, to this rank or any other; see :func:`stop_request`."""

    def __init__(self, ranks: Ranks) -> None:
        self.number = 0  # of the first signal that came; 0: none
        self.former: Mapping[int, Handler] = {}
        # Its own gloo group: on GPUs, nccl would make every step wait for the device.
        self._group: Any = dist.new_group(backend="gloo") if ranks.world_size > 1 else None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agreed(self) -> int:
        """The signal's number if any rank has one, else 0; all ranks must call this, and agree."""
        if self._group is None:
            return self.number
        number = torch.tensor(self.number)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def leave(self, number: int, step: int) -> None:
        """End a run whose state after ``step`` is saved.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            StoppedError: after a scheduler's signal, unless the signal's former handler ends the
                process (submitit's does, having asked for the job to be queued again).
        """
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        former = self.former.get(number)
        if callable(former):
            former(number, None)
        raise StoppedError(number, step)


@contextmanager
def stop_request(ranks: Ranks) -> Iterator[StopRequest]:
    """Lets the step at hand finish when a signal comes, so that its state can be saved.

    A second Ctrl-C stops at once.
    """
    request = StopRequest(ranks)
    numbers = set(SIGNALS)
    if callable(signal.getsignal(signal.SIGTERM)):
        # submitit lets SIGTERM pass: SLURM then ends the job and queues it again, which it would
        # not do for a job that ended by itself.
        numbers.remove(signal.SIGTERM)
    request.former = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in request.former.items():
            signal.signal(number, handler)
