"""How small is what a run has changed, and does it segment as well? Sizes, errors and Dice of delta files, measured.

    python -m benchmarks.delta.run DATASET --runs RUNS --out benchmarks/delta

DATASET is kvasir_seg_polyp. Four runs of 4 labelled cases are made in RUNS, unless they are there: `lite` from the
starter by GaLore in float32 and in bf16 and by SAMed, and ViT-B from random weights at 224 px, whose Dice is a floor,
but whose change has the shape of a change. Each is exported with several bounds, with factors in int8 and in fp16, and
tested on its test cases. A line of `deltas.json` that is there is not measured again.

Two things are counted without a file: the factors' bytes if c were 1, and the file of ViT-B at its own 1024 px after an
update that is made up: rank 64 in every matrix, with singular values that fall to a tenth, a weight decay of 1 %, and a
change of full rank in the position tables and all small tensors.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files, run_folder
from medsaga.deltas.base import Base, starting_state
from medsaga.deltas.factorise import CODE_ERRORS, CODES, as_matrix, choose_ranks, spectrum
from medsaga.deltas.making import ENCODERS, SMALLEST, RunWeights, compressed, export_delta, run_weights
from medsaga.models.sam import build_sam
from medsaga.settings.run_config import read_config

COMMON: dict[str, Any] = {"shots": 4, "seed": 0, "device": "cpu"}
RUNS: dict[str, dict[str, Any]] = {
    "lite": {"steps": 100},
    "lite_bf16": {"steps": 100, "precision": "bf16"},
    "vit_b": {
        **{"model": "vit_b", "random_weights": True, "image_size": 224, "steps": 40, "batch_size": 2},
        **{"test_cases": 20, "evaluate_every": 40, "checkpointing": "none"},
    },
    "lite_samed": {"steps": 100, "method": "samed"},
}
BOUNDS: dict[str, dict[str, tuple[float, ...]]] = {
    "lite": {"int8": (0.03, 0.1, 0.2, 0.3, 0.5), "fp16": (0.01, 0.1, 0.3)},
    "lite_bf16": {"int8": (0.03, 0.1, 0.2, 0.3, 0.5), "fp16": (0.01, 0.1, 0.3)},
    "vit_b": {"int8": (0.1, 0.3, 0.03), "fp16": (0.1,)},
    "lite_samed": {"int8": (0.1,)},
}


def measured(run: Path, data: Path, codes: str, bound: float) -> dict[str, Any]:
    """Export a run, test the file, and return what came of it."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "delta.safetensors"
        began = time.perf_counter()
        done = export_delta(run, file, error=bound, codes=codes)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        segmenter = medsaga.Segmenter.load(file, "cpu")
        loading = time.perf_counter() - began
        result = medsaga.evaluate(run, data=data, segmenter=segmenter)
    whole = files.read_json(run / run_folder.RESULT)
    return {
        "run": run.name,
        **done,
        "dice_of_run": whole["dice_mean"],
        "dice_of_file": result["dice_mean"],
        "cases": result["case_count"],
        "seconds_to_export": round(seconds, 1),
        "seconds_to_load": round(loading, 1),
    }


def bytes_without_c(run: Path) -> dict[str, int]:
    """Return for each bound of int8 what the factors would take if c were 1 for all matrices, in bytes."""
    config = read_config(run / run_folder.CONFIG)
    trained, (start, _) = run_weights(run / run_folder.MODEL, config), starting_state(config)
    plain, shrunk = [], []
    shapes: list[tuple[int, int]] = []
    for name, make in trained.makers.items():
        weight, first = make().float(), start[name].float()
        if torch.equal(weight, first) or not name.startswith(ENCODERS) or first.dim() < 2 or first.numel() < SMALLEST:
            continue
        weight, first = as_matrix(weight), as_matrix(first)
        share = float((weight * first).sum() / first.square().sum()) if first.any() else 1.0
        plain.append(spectrum(weight - first))
        shrunk.append(spectrum(weight - share * first))
        shapes.append((weight.shape[0], weight.shape[1]))
    # The error that is allowed is the same in both: that of the file which is written.
    changed = sum(float(values.sum()) for values in shrunk)
    found = {}
    for bound in BOUNDS[run.name]["int8"]:
        lost = (bound**2 - CODE_ERRORS["int8"] ** 2) * changed
        ranks = choose_ranks(plain, shapes, lost=lost, code_bytes=CODES["int8"].itemsize)
        sizes = zip(ranks, shapes, strict=True)
        found[f"{bound:g}"] = sum(2 * m * n if r is None else r * (m + n + 8) for r, (m, n) in sizes)
    return found


def made_up(run: Path) -> list[dict[str, Any]]:
    """Return the sizes of a delta of ViT-B at 1024 px, of nine classes, after an update that is made up.

    Args:
        run: any run, for the configuration that a file holds.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_sam("vit_b", classes=9, image_size=1024)
    start = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def changed(name: str) -> Callable[[], Tensor]:
        seed = int(torch.randint(2**31, (1,), generator=generator))

        def make() -> Tensor:
            first, drawn = start[name], torch.Generator().manual_seed(seed)
            is_matrix = first.dim() >= 2 and first.numel() >= SMALLEST and "pos" not in name
            if not (is_matrix and name.startswith(ENCODERS)):
                return first + 0.01 * torch.randn(first.shape, generator=drawn)
            matrix = as_matrix(first)
            rank = min(64, *matrix.shape)
            left = torch.randn(matrix.shape[0], rank, generator=drawn) * torch.logspace(0, -1, rank)
            update = left @ torch.randn(rank, matrix.shape[1], generator=drawn)
            update *= 0.1 * matrix.norm() / update.norm()
            return 0.99 * first + update.view_as(first)

        return make

    model_bytes = sum(tensor.nbytes for tensor in start.values())
    base = Base(name="random", file=None, sha256=None, drawn=None)
    trained = RunWeights((), {name: changed(name) for name in start})
    config = read_config(run / run_folder.CONFIG)
    found = []
    for codes, bound in itertools.product(CODES, (0.1, 0.3)):
        _, tensors, cost = compressed(config, trained, start, base, error=bound, codes=codes)
        size = sum(tensor.nbytes for tensor in tensors.values())
        found.append({"bytes": size, "compression": model_bytes / size, **cost})
    return found


def memory(run: Path) -> dict[str, int]:
    """Return what exporting a run, loading the file and loading the run add to a process's own memory, in bytes.

    Each in a process of its own, which has no memory left over from other work. Pages of files that are mapped do not
    count: the system takes them back when it needs them.
    """
    fresh = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        file = Path(folder) / "delta.safetensors"
        works: dict[str, tuple[Any, ...]] = {
            "export": (export_delta, run, file),
            "load_delta": (medsaga.Segmenter.load, file, "cpu"),
            "load_run": (medsaga.Segmenter.load, run, "cpu"),
        }
        # One after the other: the second loads what the first writes.
        return {"model": (run / run_folder.MODEL).stat().st_size} | {
            name: pool.submit(_peak_of, *work).result() for name, work in works.items()
        }


def _peak_of(work: Callable[..., Any], *arguments: Any) -> int:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    before, peaks, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peaks.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(*arguments)
    finally:
        done.set()
        watcher.join()
    return max(peaks) - before


def table(document: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    lines = [
        "| run | factors | bound | file, MB | of the model | error of the change | of the weights "
        "| rank, median (largest) | stored whole, MB | Dice of the run | of the file |",
        f"|{'---|' * 11}",
    ]
    named = [*document["runs"], *({"run": "ViT-B at 1024 px, made up", **each} for each in document["made_up"])]
    for each in named:
        dice = [f"{100 * each[key]:.2f}" if key in each else "" for key in ("dice_of_run", "dice_of_file")]
        cells = [
            each["run"],
            each["codes"],
            f"{each['bound']:g}",
            f"{each['bytes'] / 1e6:.2f}",
            f"1/{each['compression']:.1f}",
            f"{each['error_of_change']:.4f}",
            f"{each['error_of_weights']:.5f}",
            f"{each['rank_median']:g} ({each['rank_largest']})" if each["factors"] else "-",
            f"{each['bytes_of_whole'] / 1e6:.2f}",
            *dice,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| run | bound | factors, MB | if c were 1 | c, median |", f"|{'---|' * 5}"]
    for each in document["runs"]:
        if each["codes"] == "int8" and each["factors"]:
            without = document["without_c"][each["run"]][f"{each['bound']:g}"]
            stored = each["bytes_of_factors"] + each["bytes_of_matrices_stored_whole"]
            share = each["share_of_base_median"]
            numbers = (f"{each['bound']:g}", f"{stored / 1e6:.2f}", f"{without / 1e6:.2f}", f"{share:.5f}")
            lines.append(f"| {each['run']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    path = arguments.out / "deltas.json"
    before = json.loads(path.read_text()) if path.exists() else {"runs": []}
    document: dict[str, Any] = {"machine": machine(), "common": COMMON, "settings": RUNS, **before}
    document.setdefault("without_c", {})
    document |= {"settings": RUNS}
    known = {(each["run"], each["codes"], each["bound"]) for each in document["runs"]}
    for name, settings in RUNS.items():
        run = arguments.runs / name
        if not (run / run_folder.RESULT).exists():
            medsaga.train(arguments.data, run, medsaga.Settings(**COMMON, **settings))
        for codes, bounds in BOUNDS[name].items():
            for bound in bounds:
                if (name, codes, bound) not in known:
                    document["runs"].append(measured(run, arguments.data, codes, bound))
                    files.write_json(path, document)
        if name not in document["without_c"]:
            document["without_c"][name] = bytes_without_c(run)
    if "made_up" not in document:
        document["made_up"] = made_up(arguments.runs / "lite")
    if "memory_of_vit_b_bytes" not in document:
        document["memory_of_vit_b_bytes"] = memory(arguments.runs / "vit_b")
    files.write_json(path, document)
    print(table(document))


if __name__ == "__main__":
    main()
