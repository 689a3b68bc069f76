"""Being told to stop: Ctrl-C, and the signals by which a scheduler takes a machine back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from mrl.distributed import TIMEOUT, RankLostError, Ranks

# SIGTERM: preemption, or torchrun's own end. SIGUSR1: SLURM's --signal, some time before the end.
# SIGUSR2: the same from submitit, whose handler then puts the job back into the queue.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# One stop arrives twice where it goes to all processes and a launcher hands it on, too.
TWICE = 2  # seconds within which it is one
GRACE = 10  # seconds that a second stop leaves the step at hand

Handler = Callable[[int, FrameType | None], Any] | int | None


class StoppedError(KeyboardInterrupt):
    """A scheduler's signal stopped the run; ``signal_number`` says which.

    Not an Exception, as Ctrl-C is none: who takes every Exception for a damaged file lets it pass.
    """

    def __init__(self, number: int, when: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.signal_number = number


class StopRequest:
    """Whether a signal came, to this rank or any other; see :func:`stop_request`."""

    def __init__(self, ranks: Ranks) -> None:
        self.number = 0  # of the first signal that came; 0: none
        self.former: Mapping[int, Handler] = {}
        self._ctrl_c = 0  # times
        # Its own gloo group: on GPUs, nccl would make every step wait for the device.
        self._group: Any = None
        if ranks.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self.number = self.number or number
        self._ctrl_c += number == signal.SIGINT
        if number == signal.SIGINT and self._ctrl_c == 2:  # a third must not disturb the end
            raise KeyboardInterrupt

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
        if callable(former) and _is_foreign(former):
            former(number, None)
        raise StoppedError(number, f"after step {step}, and saved")


@contextmanager
def stop_request(ranks: Ranks) -> Iterator[StopRequest]:
    """Lets the step at hand finish when a signal comes, so that its state can be saved.

    A second Ctrl-C stops at once.
    """
    request = StopRequest(ranks)
    numbers = set(SIGNALS)
    if _is_foreign(signal.getsignal(signal.SIGTERM)):
        # submitit lets SIGTERM pass: SLURM then ends the job and queues it again, which it would
        # not do for a job that ended by itself.
        numbers.remove(signal.SIGTERM)
    request.former = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in request.former.items():
            if isinstance(handler, _Ending):
                handler.under_way |= request.number > 0
            signal.signal(number, handler)


class _Ending:
    """The handler of a program's signals while no step is at hand: the first ends it.

    Further ones change nothing, or they would tear up the end that is under way.
    """

    def __init__(self) -> None:
        self.under_way = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.under_way:
            return
        self.under_way = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise StoppedError(number, "while no step was at hand")


@contextmanager
def orderly_end(advice: str, *, ctrl_c: int = 1) -> Iterator[None]:
    """For a program's main: a signal ends it with one line, before and after the loop, too.

    A second SIGTERM or Ctrl-C, some seconds later, also ends a program that waits inside of a
    library, where Python's handlers are not heard: for a rank that hangs, say.

    Args:
        advice: what to do then, the end of that line.
        ctrl_c: exit status after Ctrl-C.
    """
    ending = _take_signals(advice)
    try:
        yield
    except StoppedError as stopped:
        if isinstance(stopped.__context__, RankLostError):  # a launcher stops those that are left
            sys.exit(f"error: {stopped.__context__}")
        print(f"{stopped}; {advice}", file=sys.stderr)
        # torchrun would start a failed run again at once, on a machine that is to be left.
        sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else 128 + stopped.signal_number)
    except KeyboardInterrupt:
        print(f"interrupted; {advice}", file=sys.stderr)
        sys.exit(ctrl_c)
    except BaseException:  # an error, which a signal must not keep from being told
        ending.under_way = True
        raise


def _take_signals(advice: str) -> _Ending:
    """For good: the handlers stay while the process ends."""
    former = signal.getsignal(signal.SIGTERM)
    if isinstance(former, _Ending):
        return former  # a sweep in one process calls main for each of its runs
    ending = _Ending()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler != signal.SIG_IGN and not _is_foreign(handler):
            signal.signal(number, ending)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_what_hangs, args=(reader, advice), daemon=True).start()
    return ending


def _end_what_hangs(reader: int, advice: str) -> None:
    """Reads the numbers of signals from a pipe, into which they come even if the program hangs."""
    first = 0.0
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        first = first or time.monotonic()
        if time.monotonic() - first > TWICE:
            break
    time.sleep(GRACE)
    name = signal.Signals(number[0]).name
    os.write(2, f"\nended at a second {name}, in the middle of a step; {advice}\n".encode())
    os._exit(128 + number[0])


def _is_foreign(handler: Handler) -> bool:
    """Whether a launcher has installed it."""
    ours = isinstance(handler, _Ending) or handler is signal.default_int_handler
    return callable(handler) and not ours
