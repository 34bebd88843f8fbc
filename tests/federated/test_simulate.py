"""The simulation as a user runs it: experiments side by side, one page, the same bits however often it is stopped."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import interrupt_in, write_toy_dataset
from federation import QUIET, TINY, together

from medsaga.cli import main
from medsaga.data.phantom import write_phantom_ct
from medsaga.errors import InputError, Interrupted, RunError
from medsaga.federated import privacy, serving
from medsaga.federated.averaging import Answer
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order
from medsaga.federated.partition import divide
from medsaga.federated.simulate import simulate
from medsaga.files import read_json, sha256
from medsaga.settings.options import Settings
from medsaga.training.loss import segmentation_loss

pytestmark = pytest.mark.xdist_group("simulate")

SHORT = ["--rounds", "2", "--local-steps", "1", "--model", "tiny", "--random-weights", "--image-size", "32"]
SHORT += ["--batch-size", "2", "--rank", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``toy`` and ``out``, a simulation of two experiments; nobody writes there."""
    root = tmp_path_factory.mktemp("simulated")
    data = write_toy_dataset(root / "toy")
    for way in (["--exchange", "shared-basis"], ["--exchange", "pooled"]):
        assert main(["federate", "simulate", str(data), "--out", str(root / "out"), "--sites", "2", *way, *SHORT]) == 0
    return root


def test_an_experiment_is_a_run_that_predict_reads(simulated: Path, tmp_path: Path) -> None:
    run = simulated / "out" / "medsaga-shared-basis"
    result = read_json(run / "result.json")
    assert [site["name"] for site in result["sites"]] == ["site1", "site2"]
    assert result["dice_worst"] <= result["dice_mean"]
    assert result["bytes_first_round"] > result["bytes_per_round"] > 0
    assert len(result["history"]) == 2
    assert result["peak_memory_bytes"] > 0
    assert (
        main(["predict", str(run), str(simulated / "toy" / "images"), "--out", str(tmp_path / "p"), "--device", "cpu"])
        == 0
    )
    assert len(list((tmp_path / "p").glob("*.png"))) == 6


def test_the_page_has_every_experiment_and_loads_nothing(simulated: Path) -> None:
    page = (simulated / "out" / "index.html").read_text()
    for text in ("medsaga-shared-basis", "medsaga-pooled", "worst site", "site1", "site2", "travels in a round"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_of_a_server_lies_in_its_folder_and_has_it_alone(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, experiment = tmp_path / "server", simulated / "out" / "medsaga-shared-basis"

    def follow(*_: Any) -> None:
        for name in ("result.json", "manifest.json"):
            shutil.copy(experiment / name, out)

    monkeypatch.setattr(serving, "_link", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(serving, "_start_app", lambda *_: None)
    monkeypatch.setattr(serving, "_follow", follow)
    (tmp_path / "index.html").write_text("my own")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("{broken")
    (tmp_path / "keys").mkdir()
    for name in ("ca.pem", "server.pem", "server.key"):
        (tmp_path / "keys" / name).touch()
    command = ["federate", "serve", str(simulated / "toy" / "dataset.json"), "--out", str(out)]
    assert main([*command, "--keys", str(tmp_path / "keys"), "--model", "tiny", "--random-weights"]) == 0
    assert (tmp_path / "index.html").read_text() == "my own"
    page = (out / "index.html").read_text()
    assert "<title>server" in page
    assert "site1" in page


def test_a_complete_experiment_is_not_run_again_and_others_need_the_same_sites(
    simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(simulated / "toy"), str(simulated / "out")
    before = (simulated / "out" / "medsaga-pooled" / "result.json").stat().st_mtime_ns
    assert main(["federate", "simulate", data, "--out", out, "--sites", "2", "--exchange", "pooled", *SHORT]) == 0
    assert (simulated / "out" / "medsaga-pooled" / "result.json").stat().st_mtime_ns == before
    assert main(["federate", "simulate", data, "--out", out, "--sites", "3", *SHORT]) == 2
    assert "expected the sites of this simulation; found other sites" in capsys.readouterr().err
    longer = [*SHORT, "--exchange", "pooled", "--decoder-lr", "1e-4"]
    assert main(["federate", "simulate", data, "--out", out, "--sites", "2", *longer]) == 2
    assert "what this experiment began with" in capsys.readouterr().err


@pytest.mark.parametrize("exchange", ["shared-basis", pytest.param("weights", marks=pytest.mark.exhaustive)])
def test_stopped_in_any_message_it_comes_to_the_same_bits(exchange: Any, toy: Path, tmp_path: Path) -> None:
    federation = Federation(rounds=2, local_steps=1, exchange=exchange)
    how: dict[str, Any] = {"sites": 2, "console": QUIET}
    simulate(toy, tmp_path / "whole", TINY, federation, **how)
    seen = 0

    def stop(_: Any) -> None:
        nonlocal seen
        seen += 1
        # In the first round, and between two sites in the last one or in the test.
        if seen in (2, 11):
            raise KeyboardInterrupt

    stops = 0
    while True:
        try:
            simulate(toy, tmp_path / "stopped", TINY, federation, **how, seen=stop)
            break
        except Interrupted:
            stops += 1
    assert stops == 2
    whole, stopped = (tmp_path / name / f"medsaga-{exchange}" for name in ("whole", "stopped"))
    assert sha256(whole / "model.safetensors") == sha256(stopped / "model.safetensors")
    first, second = (read_json(folder / "result.json") for folder in (whole, stopped))
    assert first["sites"] == second["sites"]


def test_a_baseline_that_is_stopped_names_the_command_that_goes_on(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(monkeypatch, 1)
    federation = Federation(rounds=2, local_steps=1, exchange="pooled")
    with pytest.raises(Interrupted, match="The same command goes on"):
        simulate(toy, tmp_path / "out", TINY, federation, sites=2, console=QUIET)


def test_an_answer_that_is_not_finite_is_refused_and_its_site_named(toy: Path, tmp_path: Path) -> None:
    def broken(order: Order, answer: Answer) -> Answer:
        name = next(iter(answer.tensors))
        bad = {**answer.tensors, name: torch.full_like(answer.tensors[name], torch.nan)}
        return dataclasses.replace(answer, tensors=bad) if order.round == 1 else answer

    federation = Federation(rounds=2, local_steps=1, exchange="shared-basis")
    with together(toy, tmp_path / "out", federation, changes={"site2": broken}) as run:
        run.rounds.run()
        first, second = run.state.history
    assert list(first["refused"]) == ["site2"]
    assert sorted(first["sites"]) == ["site1", "site3"]
    assert sorted(second["sites"]) == ["site1", "site2", "site3"]
    assert any("the answer of site2 is refused" in line and "not finite" in line for line in run.said)


@pytest.mark.parametrize("exchange", ["weights", pytest.param("alone", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("lost", [(1,), pytest.param((1, 2), marks=pytest.mark.exhaustive)])
def test_a_loss_that_is_no_number_in_a_skipped_step_is_left_out(
    exchange: Any, lost: tuple[int, ...], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def once_none(*arguments: Any, **how: Any) -> Any:
        nonlocal made
        made += 1
        first, second = segmentation_loss(*arguments, **how)
        return (first * torch.nan, second) if made in lost else (first, second)

    monkeypatch.setattr("medsaga.training.step.segmentation_loss", once_none)
    federation = Federation(rounds=1, local_steps=2, exchange=exchange)
    frozen = dataclasses.replace(TINY, method="frozen", rank=None)  # each step computes the loss once
    result = simulate(toy, tmp_path / "out", frozen, federation, sites=2, console=QUIET)
    sites = result["history"][0]["sites"]
    assert (sites["site1"]["loss"] is None) == (len(lost) == 2)
    assert sites["site2"]["loss"] > 0
    if exchange == "weights":
        assert [sites[name]["skipped"] for name in ("site1", "site2")] == [len(lost), 0]


@pytest.mark.exhaustive
def test_an_absurd_change_is_refused(toy: Path, tmp_path: Path) -> None:
    def inflated(order: Order, answer: Answer) -> Answer:
        assert order.weights is not None
        start = order.weights
        large = {name: start[name] + 1000 * (tensor - start[name]) for name, tensor in answer.tensors.items()}
        return dataclasses.replace(answer, tensors=large)

    with together(toy, tmp_path / "out", Federation(rounds=1, local_steps=1), changes={"site3": inflated}) as run:
        run.rounds.run()
    assert list(run.state.history[0]["refused"]) == ["site3"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("least", [2, 3])
def test_a_site_that_fails_is_missing_and_comes_back(least: int, toy: Path, tmp_path: Path) -> None:
    def dies(order: Order, answer: Answer) -> Answer:
        if order.round == 1:
            raise RuntimeError("a secret path")
        return answer

    federation = Federation(rounds=2, local_steps=1, exchange="shared-basis", min_sites=least)
    with together(toy, tmp_path / "out", federation, changes={"site1": dies}) as run:
        if least == 3:
            with pytest.raises(RunError, match="round 1: 2 usable answers of at least 3; not there: site1"):
                run.rounds.run()
            return
        run.rounds.run()
        assert run.state.history[0]["missing"] == ["site1"]
        assert sorted(run.state.history[1]["sites"]) == ["site1", "site2", "site3"]
    assert [str(error) for error in run.errors] == ["a secret path"]
    assert not any("secret" in line for line in run.said)


@pytest.mark.exhaustive
def test_norms_stay_with_their_site(toy: Path, tmp_path: Path) -> None:
    with together(toy, tmp_path / "out", Federation(rounds=2, local_steps=1, strategy="fedbn"), sites=2) as run:
        run.rounds.run()
        name = "mask_decoder.transformer.norm_final_attn.weight"
        ends = [run.ended(site, 2)[name] for site in ("site1", "site2")]
        kept = torch.load(run.experiment.runs["site1"].folder / "rounds/0002/start.pt", weights_only=True)["norms"]
        assert name in kept
        assert not torch.equal(*ends)


@pytest.mark.exhaustive
def test_a_of_ffa_lora_stays_and_never_travels(toy: Path, tmp_path: Path) -> None:
    federation = Federation(rounds=1, local_steps=1, exchange="ffa")
    with together(
        toy, tmp_path / "out", federation, settings=dataclasses.replace(TINY, method="samed"), sites=2
    ) as run:
        before = {name: p.clone() for name, p in run.experiment.model.named_parameters() if name.endswith("_down")}
        assert before
        run.rounds.run()
        assert not before.keys() & run.state.weights.keys()
        assert any(name.endswith("_up") for name in run.state.weights)
        for name, tensor in before.items():
            assert torch.equal(run.ended("site1", 1)[name], tensor)


@pytest.mark.exhaustive
def test_a_pull_towards_the_start_shortens_the_way(toy: Path, tmp_path: Path) -> None:
    lengths = []
    for name, pull in (("free", {}), ("pulled", {"strategy": "fedprox", "proximal": 500.0})):
        federation = Federation(rounds=1, local_steps=2, **pull)  # type: ignore[arg-type]
        with together(toy, tmp_path / name, federation, sites=2) as run:
            run.rounds.run()
            lengths.append(run.state.history[0]["sites"]["site1"]["change"])
    assert lengths[1] < 0.9 * lengths[0]


@pytest.mark.exhaustive
def test_what_leaves_with_privacy_is_clipped_and_noisy_and_the_epsilon_is_said(toy: Path, tmp_path: Path) -> None:
    lengths = []
    for name, noise in (("clipped", None), ("noisy", 0.01)):
        with together(
            toy, tmp_path / name, Federation(rounds=1, local_steps=1, clip=1e-3, noise=noise), sites=2
        ) as run:
            run.rounds.run()
            count = sum(weight.numel() for weight in run.state.weights.values())
            lengths.append([site["change"] for site in run.state.history[0]["sites"].values()])
    # float32 weights round a change as short as that.
    assert lengths[0] == pytest.approx([1e-3] * 2, rel=0.05)
    assert lengths[1] == pytest.approx([(1e-6 + count * 1e-10) ** 0.5] * 2, rel=0.05)
    settings = Federation(rounds=1, local_steps=1, clip=1e-3, noise=0.5)
    result = simulate(toy, tmp_path / "out", TINY, settings, sites=2, console=QUIET)
    assert result["epsilon"] == pytest.approx(privacy.epsilon_of(0.5, 1, 1e-5))
    with pytest.raises(InputError, match="noise of the norm"):
        simulate(toy, tmp_path / "out", TINY, dataclasses.replace(settings, clip=1.0), sites=2, console=QUIET)


def test_cases_are_divided_at_random_by_a_column_or_by_folders(toy: Path, tmp_path: Path) -> None:
    first = divide(toy, Settings(), QUIET, sites=3, by=None)
    assert divide(toy, Settings(), QUIET, sites=3, by=None).sites == first.sites
    assert divide(toy, Settings(seed=1), QUIET, sites=3, by=None).sites != first.sites
    cases = [case for site in first.sites for group in (site.split.train, site.split.test) for case in group]
    assert sorted(cases) == sorted({f"img{n}" for n in range(6)})
    assert all(site.split.train and site.split.test for site in first.sites)
    with (toy / "cases.csv").open("w") as file:
        csv.writer(file).writerows([["name", "case", "site"], *([f"img{n}", f"p{n}", "AB"[n > 1]] for n in range(6))])
    by_column = divide(toy, Settings(), QUIET, sites=4, by="site")
    assert {site.name: len(site.split.train + site.split.test) for site in by_column.sites} == {"A": 2, "B": 4}
    with pytest.raises(InputError, match="a column 'hospital'"):
        divide(toy, Settings(), QUIET, sites=4, by="hospital")
    for name in ("north", "south"):
        write_toy_dataset(tmp_path / "both" / name, images=3, seed=len(name))
    folders = divide(tmp_path / "both", Settings(), QUIET, sites=4, by="folder")
    assert [site.name for site in folders.sites] == ["north", "south"]
    assert all(case.startswith(site.name) for site in folders.sites for case in site.split.train)
    description = tmp_path / "both" / "south" / "dataset.json"
    description.write_text(json.dumps({"labels": {"background": 0, "disk": 1, "bar": 2}}))
    with pytest.raises(InputError, match=r"south.*the labels .*'disc'.* found .*'disk'"):
        divide(tmp_path / "both", Settings(), QUIET, sites=4, by="folder")


def test_sites_whose_names_would_be_one_are_refused_and_none_loses_its_cases(toy: Path, tmp_path: Path) -> None:
    for name in ("site 1", "site_1", "other"):
        shutil.copytree(toy, tmp_path / "three" / name)
    with pytest.raises(InputError, match=r"three: expected names of sites .* found 'site 1' and 'site_1', which are"):
        divide(tmp_path / "three", Settings(), QUIET, sites=4, by="folder")

    def by_column(*rows: tuple[str, ...]) -> Any:
        with (toy / "cases.csv").open("w") as file:
            csv.writer(file).writerows(rows)
        return divide(toy, Settings(), QUIET, sites=4, by="hospital")

    lines = [(f"img{n}", f"img{n}") for n in range(6)]
    head = ("name", "case", "hospital")
    with pytest.raises(InputError, match="found 'A B' and 'A/B', which are both 'A_B' then"):
        by_column(head, *((*line, "A/B" if n < 3 else "A B") for n, line in enumerate(lines)))
    found = by_column(head, *((*line, "A/B" if n < 3 else "C") for n, line in enumerate(lines)))
    assert [site.name for site in found.sites] == ["A_B", "C"]


def test_a_table_without_a_column_of_cases_or_without_a_case_is_refused(tmp_path: Path) -> None:
    """nnU-Net's layout says itself what the cases are: nothing else has looked at the table."""
    data = tmp_path / "ct"
    write_phantom_ct(data, cases=4, shape=(32, 32, 4))
    names = sorted(path.name.partition(".")[0] for path in (data / "labelsTr").iterdir())
    with (data / "cases.csv").open("w") as file:
        csv.writer(file).writerows([("name", "hospital"), *((name, "AB"[n % 2]) for n, name in enumerate(names))])
    with pytest.raises(InputError, match=r"cases\.csv: expected a column 'case'; found name, hospital"):
        divide(data, Settings(), QUIET, sites=4, by="hospital")
    with (data / "cases.csv").open("w") as file:
        csv.writer(file).writerows([("case", "hospital"), *((name, "A") for name in names[1:])])
    with pytest.raises(InputError, match=f"expected a line for each case; found none for {names[0]}"):
        divide(data, Settings(), QUIET, sites=4, by="hospital")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exchange", "shared-basis", "--method", "samed"], "shared-basis with --method medsaga"),
        (["--exchange", "ffa"], "ffa with --method samed"),
        (["--exchange", "shared-basis", "--strategy", "median"], "--strategy"),
        (["--steps", "5"], "--rounds and --local-steps"),
        (["--patience", "2"], "last weights of a round count; found 2. Leave it out."),
        (["--noise", "1"], "--clip beside it"),
        (["--exchange", "alone", "--clip", "1", "--noise", "2"], "--clip: expected none with --exchange alone"),
        (["--exchange", "pooled", "--bits", "16"], "--bits: expected none with --exchange pooled; found 16. Leave it"),
        (["--exchange", "alone", "--min-sites", "2"], "--min-sites: expected none with --exchange alone"),
        (["--exchange", "alone", "--strategy", "median"], "--strategy: expected none with --exchange alone"),
        (["--min-sites", "3"], "--min-sites: expected at most 2, the number of sites"),
        (["--proximal", "5"], "--proximal: expected --strategy fedprox beside it"),
        (["--delta", "0.5"], "--delta: expected --noise beside it"),
        (["--clip", "1", "--delta", "0.5"], "--delta: expected --noise beside it"),
        (["--clip", "inf"], "--clip: expected a positive, finite number; found inf"),
        (["--clip", "nan"], "--clip: expected a positive, finite number; found nan"),
        (["--rounds", "0"], "at least 1"),
        (["--sites", "1"], "at least 2"),
        (["--sites", "6"], "cases to train on and cases to be tested on"),
    ],
)
def test_contradictions_name_their_flag(
    options: list[str], said: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["federate", "simulate", str(toy), "--out", str(tmp_path / "out"), "--sites", "2", *SHORT, *options]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.glob("out/*")], "what was refused would stand in the way of what is meant"
