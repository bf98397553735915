"""A link with delay, loss and a rate, in user space: python wire.py TAP TAP DELAY_S LOSS BITS_PER_S

Makes the two TAP devices in its network namespace and passes frames between them until its input ends. Many kernels
come without netem; this needs only /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
MOST_QUEUED_S = 0.2
"""A frame that would wait longer than this for its turn is dropped, as by a switch whose buffer is full."""
LONGEST_FRAME = 65536


class Line:
    """One direction of a link: frames leave one after the other at its rate, and arrive after its delay.

    Parameters
    ----------
    delay_s : float
    loss : float
        Share of the frames that never arrive.
    bits_per_s : float
    seed : int

    Examples
    --------
    >>> line = Line(delay_s=0.5, loss=0.0, bits_per_s=8000.0)
    >>> [line.arrival(0.0, 100), line.arrival(0.0, 50)]
    [0.6, 0.65]
    """

    def __init__(self, delay_s: float, loss: float, bits_per_s: float, seed: int = 0) -> None:
        self._delay_s, self._loss, self._bits_per_s = delay_s, loss, bits_per_s
        self._random = random.Random(seed)
        self._free = 0.0

    def arrival(self, now: float, n_bytes: int) -> float | None:
        """Return when a frame that is sent now arrives, in seconds; None if it never does."""
        begins = max(now, self._free)
        if begins - now > MOST_QUEUED_S or self._random.random() < self._loss:
            return None
        self._free = begins + 8 * n_bytes / self._bits_per_s
        return self._free + self._delay_s


def open_tap(name: str) -> int:
    """Make a TAP device that is gone when its file is closed."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def pass_frames(taps: list[int], lines: list[Line], until: int) -> None:
    """Pass frames from each TAP to the other until the file ``until`` has something to say or ends."""
    under_way: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    while True:
        now = time.monotonic()
        for frames, to in zip(under_way, reversed(taps), strict=True):
            while frames and frames[0][0] <= now:
                with contextlib.suppress(OSError):  # nobody listens: lost
                    os.write(to, frames.popleft()[1])
        due = min((frames[0][0] for frames in under_way if frames), default=None)
        timeout = None if due is None else max(due - time.monotonic(), 0.0)
        ready, _, _ = select.select([*taps, until], [], [], timeout)
        if until in ready:
            return
        for tap, line, frames in zip(taps, lines, under_way, strict=True):
            if tap in ready:
                _take_in(tap, line, frames)


def _take_in(tap: int, line: Line, frames: deque[tuple[float, bytes]]) -> None:
    for _ in range(64):  # then it is the other direction's turn
        try:
            frame = os.read(tap, LONGEST_FRAME)
        except BlockingIOError:
            return
        arrives = line.arrival(time.monotonic(), len(frame))
        if arrives is not None:
            frames.append((arrives, frame))


def main() -> None:
    """Run the link that the command line asks for."""
    delay_s, loss, bits_per_s = (float(word) for word in sys.argv[3:])
    taps = [open_tap(name) for name in sys.argv[1:3]]
    with contextlib.suppress(OSError):
        os.nice(-10)  # it stands for hardware: ranks must not keep it from its frames
    print("ready", flush=True)
    pass_frames(taps, [Line(delay_s, loss, bits_per_s, seed) for seed in (1, 2)], sys.stdin.fileno())


if __name__ == "__main__":
    main()
