"""Signals that come while a run trains."""

import os
import signal

import pytest

from mrl import train_loop


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal (default: Ctrl-C) while it works on ``step``."""
    rate = train_loop.learning_rate

    def interrupting(at, **kwargs):
        if at == step:
            os.kill(os.getpid(), number)
        return rate(at, **kwargs)

    monkeypatch.setattr(train_loop, "learning_rate", interrupting)
