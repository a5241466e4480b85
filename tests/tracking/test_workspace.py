"""The workspace names what runs hold, and needs no network until it is saved."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import wandb

from harness.tracking import keys
from scripts import wandb_workspace
from tests.tracking import studies
from tests.tracking.conftest import KEY

ARGUMENTS = ["--entity", "team", "--project", "project"]


@pytest.fixture(scope="module")
def sections() -> list[dict]:
    space = wandb_workspace.build("team", "project", studies.METHODS, "restkv")
    return json.loads(wandb_workspace.text(space))["spec"]["section"]["panelBankConfig"]["sections"]


def panels(sections, kind: str) -> list[dict]:
    return [p for section in sections for p in section["panels"] if p["viewType"] == kind]


def table_of(panel: dict) -> str:
    return panel["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]


def test_it_opens_with_accuracy_then_ablation_then_answers(sections):
    assert [section["name"] for section in sections if section["isOpen"]] == [
        "Accuracy against ratio, by method",
        "Ablation of the smoothing",
        "Answers",
        "Verdicts and differences from the full cache",
    ]
    assert sections[:4] == [section for section in sections if section["isOpen"]]
    chart = sections[0]["panels"][0]["config"]
    assert chart["xAxis"] == "ratio"
    assert chart["metrics"] == [
        *(f"accuracy/{name}" for name in keys.names(studies.METHODS).values()),
        "reference/full_cache",
        "reference/blank_image",
    ]
    assert [table_of(p) for p in panels(sections[1:2], "Weave")] == ["ablation"]
    assert table_of(sections[2]["panels"][0]) == "samples"


def test_every_line_is_logged_against_its_axis(sections, logged):
    points = {(axis, key) for run in logged.runs for step in run.lines()
              for axis in keys.AXES if axis in step for key in step}  # fmt: skip
    charts = [panel["config"] for panel in panels(sections, "Run History Line Plot")]
    asked = {(chart["xAxis"], key) for chart in charts for key in chart["metrics"]}
    assert all(chart["metrics"] for chart in charts)
    assert asked - points == set()


def test_every_table_and_picture_is_logged_and_shown(sections, logged):
    everything = {key for run in logged.runs for key in run.logged()}
    tables = [table_of(panel) for panel in panels(sections, "Weave")]
    assert len(tables) == len(set(tables))
    assert set(tables) == everything - {*keys.PICTURES} == {*keys.TABLES}
    browsers = panels(sections, "Media Browser")
    media = {key for panel in browsers for key in panel["config"]["mediaKeys"]}
    assert everything & {*keys.PICTURES} <= media == {*keys.PICTURES}


def test_pinned_columns_are_in_the_summary(logged):
    space = wandb_workspace.build("team", "project", ["restkv"], "restkv")
    name, *columns = space.runset_settings.pinned_columns
    assert name == "run:displayName"
    assert columns
    for column in columns:
        assert column.removeprefix("summary:") in logged.runs[0].summary()


@pytest.fixture
def fresh():
    """wandb reads its settings once a process."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_printing_needs_neither_network_nor_key(no_network, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    printed = []
    for _ in range(2):
        assert wandb_workspace.main([*ARGUMENTS, "--print"]) == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    assert printed[0].err == ""
    layout = json.loads(printed[0].out)
    assert (layout["entity"], layout["project"]) == ("team", "project")
    for label in ("criticalkv", "restkv_relative", "random"):
        assert f"accuracy/{label}" in printed[0].out
    assert '"accuracy/full"' not in printed[0].out
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_saving_is_one_sentence(fresh, no_network, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_workspace.main(ARGUMENTS) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no key is known: log in with `wandb login`" in err
    assert "--print" in err


def test_without_a_network_saving_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_workspace.main(ARGUMENTS) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cannot reach http://127.0.0.1:9" in err


class Server(BaseHTTPRequestHandler):
    """Answers what saving asks a wandb server; `saved` keeps the views, `code` refuses them."""

    saved: list[dict]
    code: int

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        viewer = {"id": "u", "flags": "{}", "entity": "team", "username": "u", "email": "u@x",
                  "name": "u", "admin": False, "deletedAt": None, "apiKeys": {"edges": []},
                  "teams": {"edges": []}}  # fmt: skip
        data, code = {"viewer": viewer}, 200
        if "upsertView" in body["query"]:
            self.saved.append(body["variables"])
            code = self.code
            view = {"id": "v", "name": body["variables"]["name"]}
            data = {"upsertView": {"view": view, "inserted": True}}
        answer = json.dumps({"data": data} if code == 200 else {"errors": [{"message": "no"}]})
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(fresh, monkeypatch):
    handler = type("Fresh", (Server,), {"saved": [], "code": 200})
    with HTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
        yield handler
        found.shutdown()
        thread.join()


def test_what_is_saved_is_what_is_printed(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert wandb_workspace.main(ARGUMENTS) == 0
    address = capsys.readouterr().out.strip()
    assert "/team/project?nw=" in address
    assert wandb_workspace.main([*ARGUMENTS, "--print"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (saved,) = server.saved
    assert json.loads(saved["spec"]) == printed["spec"]
    assert (saved["entityName"], saved["projectName"]) == ("team", "project")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_the_server_is_one_sentence(server, capsys):
    server.code = 403
    assert wandb_workspace.main(ARGUMENTS) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: scripts.wandb_workspace cannot save to team/project" in err
