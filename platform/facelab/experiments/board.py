"""How far a sweep is: a live table in a terminal, lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from facelab.experiments.trials import ENDED, State, Trial, TrialTable
from facelab.reports.terminal import duration

_COLOURS = {
    State.RUNNING: "cyan", State.DONE: "green", State.STOPPED: "yellow", State.DIVERGED: "red",
    State.REFUSED: "red", State.FAILED: "red",
}  # fmt: skip
_SHOWN = 30
"""Trials of a table that is taller."""


class Board:
    """Shows a table of trials."""

    def __init__(self, table: TrialTable, metric: str, mode: str, expected: int, at_once: int):
        """
        Args:
            expected: trials, those that nobody has thought of yet among them.
            at_once: trials at the same time, for the time that is left.
        """
        self._table, self._metric, self._mode = table, metric, mode
        self._expected, self._at_once = expected, at_once
        self._live: Live | None = None
        self._told: dict[str, tuple[State, int]] = {}
        self._console = Console(stderr=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """In this block."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, get_renderable=self._picture, refresh_per_second=1) as self._live:
            yield
        self._live = None

    def changed(self) -> None:
        """Shows it, where nobody looks at a live table."""
        if self._live is not None:
            return
        for trial in self._table.trials:
            now = (trial.state, trial.steps)
            begins = trial.state is State.RUNNING and not trial.curve
            if self._told.get(trial.name, (State.WAITING, 0)) != now and not begins:
                print(self._line(trial), file=sys.stderr, flush=True)
            self._told[trial.name] = now

    def _line(self, trial: Trial) -> str:
        value = trial.best(self._mode)
        number = "" if value is None else f" {self._metric} {value:.5g}"
        reason = f": {trial.reason}" if trial.reason else ""
        step = f"step {_progress_of(trial)}"
        return f"[sweep, {self._progress()}] {trial.name} {trial.state} at {step}{number}{reason}"

    def _progress(self) -> str:
        ended = len(self._table.of(*ENDED, State.FAILED))
        left = self.seconds_left()
        return f"{ended} of {self._expected} trials" + (f", about {duration(left)} left" if left else "")

    def seconds_left(self) -> float | None:
        """From what the trials that ended took; None while none has."""
        took = [trial.seconds for trial in self._table.of(*ENDED) if trial.seconds]
        if not took:
            return None
        ended = len(self._table.of(*ENDED, State.FAILED))
        mean = sum(took) / len(took)
        begun = sum(min(trial.seconds, mean) for trial in self._table.of(State.RUNNING))
        return max(mean * (self._expected - ended) - begun, 0.0) / max(self._at_once, 1)

    def _picture(self) -> Group:
        table = Table(box=None, header_style="bold")
        for name in ("trial", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("step", self._metric, "time"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column()
        ordered = sorted(self._table.trials, key=lambda trial: (trial.state is not State.RUNNING, trial.number))
        for trial in ordered[:_SHOWN]:
            value = trial.best(self._mode)
            table.add_row(
                trial.name, Text(trial.state, style=_COLOURS.get(trial.state, "")), _progress_of(trial),
                "" if value is None else f"{value:.5g}", duration(trial.seconds) if trial.seconds else "",
                Text(trial.reason, style="dim"),
            )  # fmt: skip
        hidden = len(ordered) - _SHOWN
        more = f", {hidden} not shown" if hidden > 0 else ""
        return Group(table, Text(f"{time.strftime('%H:%M:%S')}  {self._progress()}{more}", style="bold"))


def _progress_of(trial: Trial) -> str:
    return f"{trial.steps}/{trial.last_step or '?'}"
