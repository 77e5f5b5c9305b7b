"""A process that waits for the others, which never come: argv is the coordinator and its number."""

import sys
import time

from vlm_jax.parallel import processes

processes.start(sys.argv[1], 2, int(sys.argv[2]))
print("met", flush=True)
if "sleep" in sys.argv:
    time.sleep(600)
processes.barrier("here")
