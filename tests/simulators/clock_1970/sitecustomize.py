"""Sets the clock of a Python process back to 1970, as on a board without a battery; a test puts this on PYTHONPATH."""

import time

_real, _start = time.time, time.time()
time.time = lambda: _real() - _start + 30.0
