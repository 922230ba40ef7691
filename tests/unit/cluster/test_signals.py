import os
import signal
import threading

from cluster.signals import kept_handlers


def test_a_library_does_not_keep_the_signals_that_it_took():
    got = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: got.append("ours"))
    try:
        with kept_handlers():
            signal.signal(signal.SIGTERM, lambda number, frame: got.append("theirs"))
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert got == ["theirs", "ours"]


def test_elsewhere_than_in_the_main_thread_nothing_is_touched():
    done = []

    def enter() -> None:
        with kept_handlers():
            done.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert done == [True]
