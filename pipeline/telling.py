"""Messages that are sent beside the work: whoever asks for one does not wait for a webhook that is slow, or away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pipeline.notify import Notifier

RETRY_SECONDS = 60.0
"""Until those that did not get through are tried again."""
CLOSE_SECONDS = 30.0
"""For what is still to be sent at the end."""


class Teller:
    """Lets notifiers catch up, one after the other, in a thread of its own. `report` is told what went wrong."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._waiting: queue.Queue[Notifier | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def send(self, notifier: Notifier) -> None:
        """Have it catch up, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tell", daemon=True)
            self._thread.start()
        self._waiting.put(notifier)

    def close(self) -> None:
        """Wait until all is sent, for CLOSE_SECONDS at most: what is left is sent with what comes after it."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _run(self) -> None:
        again: list[Notifier] = []
        while True:
            try:
                notifier = self._waiting.get(timeout=RETRY_SECONDS if again else None)
            except queue.Empty:
                again = [notifier for notifier in again if not self._told(notifier)]
                continue
            if notifier is None:
                return
            if not self._told(notifier):
                again.append(notifier)

    def _told(self, notifier: Notifier) -> bool:
        try:
            notifier.catch_up()
        except Exception as error:
            # Whatever it is, the others are told all the same.
            self._report(f"nobody is told what happens: {error}")
            return False
        return True
