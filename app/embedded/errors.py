"""What can go wrong with the embedded stack: each error says what happened, why, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import SluiceError

if TYPE_CHECKING:
    from pathlib import Path

OWN_CLUSTER = "set KAFKA_BOOTSTRAP_SERVERS to a Kafka of yours (and REDIS_URL to a Redis)"


class EmbeddedError(SluiceError):
    """The embedded stack cannot do what was asked.

    Args:
        cause: what happened and why, without a full stop.
        next_step: what the reader can do about it, in the imperative.

    Example:
        >>> print(EmbeddedError(cause="port 9092 is taken", next_step="give another one"))
        port 9092 is taken. Next: give another one.
    """

    def __init__(self, *, cause: str, next_step: str) -> None:
        """Join cause and next step into the message."""
        super().__init__(f"{cause}. Next: {next_step}.")
        self.cause = cause
        self.next_step = next_step


class PortTaken(EmbeddedError):
    """A port that was asked for is in use by somebody else."""

    def __init__(self, port: int, owner: str | None, flag: str) -> None:
        """Name the port, its owner when it can be told, and the flag that chooses another."""
        self.port = port
        self.owner = owner
        holder = owner or "a process that cannot be named without more rights"
        super().__init__(
            cause=f"port {port} on 127.0.0.1 is taken by {holder}",
            next_step=f"stop that process, give another port with {flag}, or leave {flag} out to get a free one",
        )


class JarsNotAvailable(EmbeddedError):
    """Kafka's jar files are neither cached nor to be downloaded, or are not the bytes that the lock names."""

    def __init__(self, *, cause: str) -> None:
        """Add the ways out to the cause."""
        super().__init__(
            cause=cause,
            next_step=f"connect once so that they are cached, set KAFKA_HOME to an unpacked Kafka 4, or {OWN_CLUSTER}",
        )


class JavaNotUsable(EmbeddedError):
    """No Java of version 17 or later could be found."""


class ProcessDied(EmbeddedError):
    """A process of the stack ended by itself."""

    def __init__(self, name: str, log: Path, how: str, tail: str = "", returncode: int | None = None) -> None:
        """Name the process, how it ended, its log file, the last lines of that file, and the exit status if known."""
        self.name = name
        self.log = log
        self.returncode = returncode
        ending = f"; its last lines:\n{tail}\n" if tail else ""
        super().__init__(
            cause=f"{name} died ({how}), see {log}{ending}",
            next_step="read that log, then `sluice down` and `sluice up` again; the data directory is kept",
        )


class NotReady(EmbeddedError):
    """The stack, or a topic on it, did not become ready in the time allowed."""


class StackConflict(EmbeddedError):
    """What runs, or lies in the data directory, does not fit what was asked for."""
