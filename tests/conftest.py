"""Settings of every test process."""

from __future__ import annotations

import os

# Two test processes share two cores. With a thread per core in each of them, torch's threads wait for one another:
# a test of two seconds then takes minutes. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
