"""How long a test may wait for what takes a known time on an idle machine."""

import os


def patience(seconds: float) -> float:
    """That time with a margin of three for a slower machine, and in proportion where processes wait for a core."""
    return seconds * 3 * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
