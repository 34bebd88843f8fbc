"""What `medsaga demo` comes to, and the CPU time that it takes.

    OMP_NUM_THREADS=1 python -m benchmarks.demo.run

The command is run once, in a process of its own: CPU seconds of user and system from its start to its end, which other
work on the machine prolongs little. Writes results.json beside this file.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files, run_folder

RECORD = Path(__file__).with_name("results.json")


def main() -> None:
    """Run the demo and write the record."""
    described(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        subprocess.run([sys.executable, "-m", "medsaga", "demo", "--out", out], check=True, stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = files.read_json(out / "run" / run_folder.RESULT)
    record = {
        "machine": machine(),
        "cases_tested": result["case_count"],
        "dice_mean": round(result["dice_mean"], 4),
        "dice": {name: round(value, 4) for name, value in result["dice"].items()},
        "dice_of_the_worst_case": round(min(case["dice_mean"] for case in result["cases"]), 4),
        "peak_memory_bytes": result["peak_memory_bytes"],
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }
    files.write_json(RECORD, record)
    print(record)


if __name__ == "__main__":
    main()
