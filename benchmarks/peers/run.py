"""medsaga beside nnU-Net v2 and MONAI's U-Net: the same training and test images, CPU minutes and scoring.

    python -m benchmarks.peers.run FOLDER_OF_DATASETS --runs RUNS --nnunet-python PYTHON

medsaga is trained first, with all defaults. What that took in CPU seconds, its test and report included, is what each
peer gets to prepare and to train, or ten times that (``_x10``). All run on one thread. Runs whose record is in RUNS are
not repeated. Linux only. How to make nnU-Net's environment is in the README.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.machine import machine
from benchmarks.peers.costs import Cost, run_counted
from benchmarks.peers.exchange import Task, score, task_of, write_raw
from benchmarks.peers.nnunet import DATASET, NnUNet
from benchmarks.runs import measured_once, parser_for
from medsaga import files, run_folder

SETS = ("spider_lumbar_mr", "kvasir_seg_polyp", "dsb2018_nuclei", "hc18_fetal_us", "axondeepseg_sem")
FEWER = {"axondeepseg_sem": 6}
"""Of this set's 8 animals two are left for the test."""
CONTENDERS = ("medsaga", "nnunet", "nnunet_x10", "monai", "monai_x10")
KEPT = ("dice_mean", "dice_mean_interval", "dice", "hd95", "hd95_unit", "case_count", "metric_protocol")


@dataclass(frozen=True)
class Trained:
    """What a contender has made.

    Attributes:
        train: the cost of preparing and training.
        predict: that of predicting all test images, in commands of its own, start included.
        facts: what else is worth a place in the record.
    """

    train: Cost
    predict: Cost
    facts: dict[str, Any]


Peer = Callable[[Task, Path, float, Path, int], Trained]
"""``(task, home, CPU seconds, predictions, seed)``: makes the folder of predictions, and may use the folder home."""


def medsaga_record(data: Path, place: Path, shots: int, seed: int) -> dict[str, Any]:
    """Train medsaga with all defaults, and predict its test images again in a command of their own."""
    test_cases = 2 if data.name == "axondeepseg_sem" else 20

    def make(home: Path) -> dict[str, Any]:
        home.mkdir(parents=True)
        run, log = home / "run", home / "log.txt"
        program = (sys.executable, "-m", "medsaga")
        asked = ("--shots", str(shots), "--seed", str(seed), "--test-cases", str(test_cases), "--device", "cpu")
        train = run_counted([*program, "train", data, "--out", run, *asked], log=log)
        result, split = files.read_json(run / run_folder.RESULT), files.read_json(run / run_folder.SPLIT)
        images = home / "images"
        images.mkdir()
        for item in task_of(data, split).test:
            (source,) = item.images
            assert isinstance(source, Path)
            (images / source.name).symlink_to(source.resolve())
        predict = run_counted([*program, "predict", run, images, "--out", home / "out", "--device", "cpu"], log=log)
        return {
            **_record(data, "medsaga", shots, seed, Trained(train, predict, {"split": split})),
            "steps": result["steps"],
            "images_predicted": len(result["cases"]),
            **{key: result[key] for key in KEPT},
        }

    return measured_once(place, make)


def peer_record(data: Path, place: Path, contender: str, own: dict[str, Any], peer: Peer, times: int) -> dict[str, Any]:
    """Let a peer learn from the images that medsaga had, and score it on those that medsaga was tested on.

    Args:
        data: the dataset.
        place: of the record.
        contender: its name.
        own: medsaga's record.
        peer: the peer.
        times: how many times medsaga's CPU seconds it gets.
    """
    budget = own["train"]["cpu_seconds"] * times

    def make(home: Path) -> dict[str, Any]:
        task = task_of(data, own["split"])
        home.mkdir(parents=True)
        trained = peer(task, home, budget, home / "out", own["seed"])
        result = score(task, home / "out")
        return {
            **_record(data, contender, own["shots"], own["seed"], trained),
            "cpu_seconds_allowed": budget,
            "images_predicted": len(result["cases"]),
            **{key: result[key] for key in KEPT},
        }

    return measured_once(place, make)


def monai(task: Task, home: Path, cpu_seconds: float, out: Path, seed: int) -> Trained:
    """Run MONAI's recipe in processes of its own."""
    raw, model, log = home / "raw", home / "model.pt", home / "log.txt"
    write_raw(task, raw)
    program = (sys.executable, "-m", "benchmarks.peers.monai_unet")
    train = run_counted(
        [*program, "train", raw, model, "--cpu-seconds", str(cpu_seconds), "--seed", str(seed)], log=log
    )
    predict = run_counted([*program, "predict", raw, model, out], log=log)
    return Trained(train, predict, files.read_json(model.with_suffix(".json")))


def nnunet_at(python: Path) -> Peer:
    """Return nnU-Net in the environment of an interpreter. It takes no seed: nnU-Net has none."""

    def run(task: Task, home: Path, cpu_seconds: float, out: Path, seed: int) -> Trained:
        write_raw(task, home / "raw" / DATASET)
        peer = NnUNet(python, home)
        prepare, plan = peer.prepare()
        train, facts = peer.train(cpu_seconds - prepare.cpu_seconds)
        predict = peer.predict(out)
        facts = {**facts, "prepare": prepare.to_json(), "plan": plan, "versions": peer.versions()}
        return Trained(prepare + train, predict, facts)

    return run


def table(records: Sequence[dict[str, Any]]) -> str:
    """Lay the records out as Markdown: one line per dataset, number of shots and contender, means over seeds."""
    lines = [
        "| dataset | shots | contender | seeds | Dice | Dice per label | steps | CPU min to train | wall min |"
        " peak MiB | CPU s per predicted image |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((record["dataset"], record["shots"], record["contender"]) for record in records)
    for dataset, shots, contender in sorted(keys, key=lambda key: (key[0], key[1], CONTENDERS.index(key[2]))):
        found = [r for r in records if (r["dataset"], r["shots"], r["contender"]) == (dataset, shots, contender)]
        dice = [record["dice_mean"] for record in found]
        spread = f" ± {stdev(dice):.3f}" if len(dice) > 1 else ""
        labels = (f"{label} {_dice_of(found, label)}" for label in found[0]["dice"])
        cells = [
            dataset,
            shots,
            contender,
            len(found),
            f"{mean(dice):.3f}{spread}",
            ", ".join(labels),
            f"{mean(record['steps'] for record in found):.0f}",
            f"{mean(record['train']['cpu_seconds'] for record in found) / 60:.1f}",
            f"{mean(record['train']['wall_seconds'] for record in found) / 60:.1f}",
            f"{max(record['train']['peak_memory_bytes'] for record in found) / 2**20:.0f}",
            f"{mean(record['predict']['cpu_seconds'] / record['images_predicted'] for record in found):.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _dice_of(records: Sequence[dict[str, Any]], label: str) -> str:
    found = [record["dice"][label] for record in records if record["dice"][label] is not None]
    return f"{mean(found):.3f}" if found else "-"


def _record(data: Path, contender: str, shots: int, seed: int, trained: Trained) -> dict[str, Any]:
    return {
        "dataset": data.name,
        "contender": contender,
        "shots": shots,
        "seed": seed,
        "train": trained.train.to_json(),
        "predict": trained.predict.to_json(),
        **trained.facts,
    }


def main() -> None:
    """Do it."""
    parser = parser_for(__doc__, Path(__file__).parent)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shots", default="8", help="numbers of labelled cases; axons have 6 for 8")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--nnunet-python", type=Path, help="the interpreter of nnU-Net's environment")
    arguments = parser.parse_args()
    contenders = arguments.contenders.split(",")
    if unknown := set(contenders) - set(CONTENDERS):
        parser.error(f"--contenders: {', '.join(sorted(unknown))} is none of {', '.join(CONTENDERS)}")
    peers: dict[str, Peer] = {"monai": monai}
    if arguments.nnunet_python is not None:
        peers["nnunet"] = nnunet_at(arguments.nnunet_python.absolute())
    elif any(name.startswith("nnunet") for name in contenders):
        parser.error("--nnunet-python: say where nnU-Net is, or leave it out of --contenders")
    for seed in map(int, arguments.seeds.split(",")):
        for dataset in arguments.sets.split(","):
            for shots in map(int, arguments.shots.split(",")):
                data, shots = arguments.datasets / dataset, min(shots, FEWER.get(dataset, shots))
                place = arguments.runs / f"{dataset}-medsaga-{shots}-{seed}"
                own = medsaga_record(data, place, shots, seed)
                for contender in (name for name in contenders if name != "medsaga"):
                    name, _, ten = contender.partition("_")
                    place = arguments.runs / f"{dataset}-{contender}-{shots}-{seed}"
                    peer_record(data, place, contender, own, peers[name], 10 if ten else 1)
    records = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    files.write_json(arguments.out / "results.json", {"machine": machine(), "runs": records})
    files.write_text(arguments.out / "results.md", table(records))


if __name__ == "__main__":
    main()
