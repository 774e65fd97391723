"""OpenMP's threads wait asleep: it has to know before it is imported."""

import os

# By default they spin, where each process of the tests has as many as there are processors: at
# each small operation one waits for another that has none to run on, which was half of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
