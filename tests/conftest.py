"""What all tests share."""

import signal


def pytest_configure() -> None:
    """Take Ctrl-C also where a shell started the tests in the background, which ignores it: programs inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
