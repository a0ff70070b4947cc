"""What the page's script is given: the numbers of the tables, and where rounds are to be seen with W&B."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic

from lth_scale import report
from lth_scale.config import Reinit
from lth_scale.paths import RunPaths
from lth_scale.report.explore import payload
from lth_scale.report.links import Links
from lth_scale.report.reading import read_run
from lth_scale.report.study import Study
from lth_scale.tasks import tasks
from lth_scale.tracking import Identity

SMALL = synthetic.config(rounds=2, seeds=range(2), arms=("ticket", "reinit"))


def told(root: Path, name: str | None = None) -> Any:
    """What the page is given of a run."""
    return json.loads(payload([Study.of(read_run(root, name), report.curves([]))]))


def test_the_page_is_given_the_numbers_of_results_csv(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "draws", replace(SMALL, reinit=Reinit(draws=2)))
    rows = report.tidy([read_run(root)])
    wanted = rows[(rows["split"] == "test") & (rows["metric"] == "accuracy")]
    expected = wanted.set_index(["replicate", "arm", "round", "moment"])["value"].to_dict()
    found = told(root)
    (run,) = found["runs"]
    moments = list(found["moments"])
    points = {
        (p["seed"], p["folder"], p["round"], m): p["accuracy"][i] for p in run["points"] for i, m in enumerate(moments)
    }
    assert points == expected and len(points) == 2 * (3 + 2 * 2) * 2
    assert {p["density"] for p in run["points"]} == set(rows["density"])
    for p in run["points"]:
        assert sum(p["kept"]) / sum(run["layers"].values()) == p["density"]
    assert {p["arm"] for p in run["points"]} == {"ticket", "reinit"}  # draws are of one arm


def test_the_page_is_given_the_verdicts_of_the_tables(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "run", SMALL)
    verdicts = told(root)["runs"][0]["verdicts"]
    for _, row in report.summary(read_run(root)).iterrows():
        *numbers, verdict = verdicts[f"{row['arm']}/{row['round']}"][0]
        if row["round"]:
            assert numbers == list(row[["difference", "difference_low", "difference_high"]])
            assert verdict == row["verdict"]
        else:
            assert (numbers, verdict) == ([None] * 3, None)


def test_an_unfinished_run_is_given_as_far_as_it_is(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "run", SMALL)
    RunPaths(root).round(1, "ticket", 0).result.unlink()
    (run,) = told(root)["runs"]
    assert {tuple(p["difference"]) for p in run["points"] if p["seed"] == 1} == {(None, None)}
    for path in RunPaths(root).results():
        path.unlink()
    (run,) = told(root)["runs"]
    assert (run["points"], run["layers"], run["verdicts"]) == ([], {}, {})


def test_no_name_ends_the_script(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "run", SMALL)
    name = "</script><script>alert(1)</script>"
    assert told(root, name)["runs"][0]["name"] == name
    assert "<" not in payload([Study.of(read_run(root, name), report.curves([]))])


def test_only_what_was_sent_is_linked_and_by_its_id(tmp_path: Path) -> None:
    root = synthetic.write_sent(tmp_path / "run", entity="team", project="lottery")
    links, run = Links.of(read_run(root)), read_run(root)
    for task in tasks(run.config, run.last_round):
        found = links.round(task.seed, task.arm, task.round)
        identity = Identity.of(task, RunPaths(root))
        assert found == (None if task.seed else f"https://wandb.ai/team/lottery/runs/{identity.id}")
        assert links.group() == f"https://wandb.ai/team/lottery/groups/{identity.group}/workspace"


def test_what_the_client_said_comes_before_the_config(tmp_path: Path) -> None:
    root = synthetic.write_sent(tmp_path / "run", entity="team", project="lottery")
    log = RunPaths(root).round(0, "ticket", 1).attempt(1) / "upload.log"
    log.write_text("wandb: Syncing 1 run(s):\nwandb: [p/x] View run a b at https://wandb.example.org/us/p/runs/x\n")
    found = Links.of(read_run(root)).round(0, "ticket", 0)
    assert found == "https://wandb.example.org/us/p/runs/0a1b2c3d-s0-ticket-r00"


@pytest.mark.parametrize("known", [{}, {"entity": "team"}, {"project": "lottery"}])
def test_nothing_is_linked_where_the_project_is_not_known(tmp_path: Path, known: dict[str, str]) -> None:
    links = Links.of(read_run(synthetic.write_sent(tmp_path / "run", **known)))
    assert links.group() is None and links.round(0, "ticket", 0) is None


def test_nothing_is_linked_without_tracking(tmp_path: Path) -> None:
    root = synthetic.write_sent(tmp_path / "run", entity="team", project="lottery")
    assert Links.of(read_run(root)).group()
    RunPaths(root).tracking.unlink()
    assert Links.of(read_run(root)) == Links(RunPaths(root))
    assert {p["link"] for p in told(root)["runs"][0]["points"]} == {None}
