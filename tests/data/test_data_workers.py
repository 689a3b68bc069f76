"""Worker processes: signals pass them by, they end with their parent, and a lost one is named."""

import multiprocessing
import os
import signal
from collections.abc import Callable

import pytest
from torch.utils.data import DataLoader, Dataset

from mrl.data import DataError
from mrl.data.workers import WorkerError, from_workers, leave_signals_to_parent
from mrl.stopping import SIGNALS


def signalled(worker: int) -> None:
    """A worker's start to which the signals come before it is prepared for them."""
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    leave_signals_to_parent(worker)


class Numbers(Dataset[int]):
    """The numbers 0..19; ``at_seven`` is called before the 7 is given out."""

    def __init__(self, at_seven: Callable[[], object] | None = None) -> None:
        self.at_seven = at_seven

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == 7 and self.at_seven is not None:
            self.at_seven()
        return index


def signal_oneself() -> None:
    for number in SIGNALS:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_leave_signals_to_their_parent(start_method: str) -> None:
    loader = DataLoader(
        Numbers(signal_oneself),
        num_workers=2,
        worker_init_fn=signalled,
        multiprocessing_context=start_method,
    )
    assert [int(number) for number in from_workers(loader)] == list(range(20))


def test_the_parent_has_its_signals_again() -> None:
    before = signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    next(from_workers(DataLoader(Numbers(), num_workers=1)))
    assert before == (
        signal.getsignal(signal.SIGCHLD),
        signal.pthread_sigmask(signal.SIG_BLOCK, []),
    )


def test_a_worker_ends_at_its_parents_word() -> None:
    batches = from_workers(
        DataLoader(Numbers(), num_workers=1, worker_init_fn=leave_signals_to_parent)
    )
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0
    batches.close()


class Ending:
    """What ends a process, in a form that a worker can be sent."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        os.kill(os.getpid(), self.number)


def exit_with_three() -> None:
    os._exit(3)


# Each takes the 5 s after which torch looks after its workers.
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (Ending(signal.SIGKILL), r"killed by SIGKILL, .*short of memory.*data\.workers=1, now 2"),
        pytest.param(Ending(signal.SIGBUS), "SIGBUS, .*/dev/shm", marks=pytest.mark.slow),
        pytest.param(Ending(signal.SIGSEGV), "SIGSEGV, by a fault", marks=pytest.mark.slow),
        pytest.param(exit_with_three, "exit code 3", marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_is_named(ending: Callable[[], object], message: str) -> None:
    loader = DataLoader(Numbers(ending), num_workers=2, worker_init_fn=leave_signals_to_parent)
    with pytest.raises(WorkerError, match=message):
        list(from_workers(loader))


def fail() -> None:
    raise RuntimeError("seven is not to be had")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_data_stays_what_it_is(workers: int) -> None:
    with pytest.raises(RuntimeError, match="seven is not to be had") as caught:
        list(from_workers(DataLoader(Numbers(fail), num_workers=workers)))
    assert not isinstance(caught.value, DataError)
