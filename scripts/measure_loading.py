"""Measure what starting costs: importing torch, importing audioldm2, loading a model; seconds and resident
memory.

    python scripts/measure_loading.py FOLDER

Every measurement is made in a process of its own; the median of several is told. The file cache is warm: the
first, uncounted run reads the files.
"""

import argparse
import json
import statistics
import subprocess
import sys

PROBE = """
import json, resource, sys, time
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
import audioldm2
import_done, before = time.perf_counter(), peak()
model = audioldm2.load(sys.argv[1], device="cpu", dtype=sys.argv[2])
load_done, after = time.perf_counter(), peak()
weights = sum(t.nbytes for n in model.networks._loaded.values() for t in n.state_dict().values()) / 1e6
print(json.dumps({
    "import torch, s": torch_done - start,
    "import audioldm2 after it, s": import_done - torch_done,
    "load, s": load_done - import_done,
    "peak resident memory before load, MB": before,
    "peak resident memory after load, MB": after,
    "weights, MB": weights,
}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a converted folder or one in the diffusers layout")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    runs = []
    for _ in range(options.runs + 1):
        command = [sys.executable, "-c", PROBE, options.folder, options.dtype]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            print(found.stderr.strip().splitlines()[-1], file=sys.stderr)
            return 2
        runs.append(json.loads(found.stdout))
    for name in runs[0]:
        values = [run[name] for run in runs[1:]]
        print(f"{name:<38} {statistics.median(values):10.3f}   ({min(values):.3f} to {max(values):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
