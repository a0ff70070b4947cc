"""A service on loopback that W&B's own client can talk to: it keeps what it is sent, and misbehaves when told to."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from wandb_artifacts import Store

KEY = "local-" + "0123456789" * 4


@dataclass
class Run:
    """What the service knows of a run: its fields as upserted, its history line by line, its last summary and exits."""

    fields: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exits: list[int] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class Service:
    """``mood``: well; refuse (500), drop (hangs up), hang (answers nothing)."""

    def __init__(self, url: str) -> None:
        self.url, self.mood = url, "well"
        self.artifacts = Store(url)
        self.runs: dict[str, Run] = {}
        self.keys: set[str] = set()
        self.asked = 0

    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def query(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        if name == "RunResumeStatus":
            return {"model": self._model(told["name"])}
        if name == "UpsertBucket":
            run = self.runs.setdefault(told["name"], Run())
            run.fields |= {key: value for key, value in told.items() if value is not None}
            entity = {"id": "e", "name": "team"}
            bucket = {"id": told["name"], "name": told["name"], "displayName": told.get("displayName")}
            bucket |= {"project": {"id": "p", "name": told["project"], "entity": entity}, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in told["files"]]
            return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}
        if name in ("Viewer", "GetViewer", "GetDefaultEntity"):
            teams = {"edges": [{"node": {"name": "team"}}]}
            about = {"id": "u", "entity": "team", "username": "team", "name": "team", "email": "", "flags": "{}"}
            return {"viewer": about | {"admin": False, "deletedAt": None, "apiKeys": {"edges": []}, "teams": teams}}
        if name == "Run":
            about = {"id": told["name"], "name": told["name"], "state": "finished", "projectId": "1", "config": "{}"}
            return {"project": {"run": about if told["name"] in self.runs else None}}
        return self.artifacts.answer(name, told) or {}

    def _model(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        bucket = {"id": name, "name": name, "displayName": name, "logLineCount": 0, "eventsLineCount": 0, "tags": []}
        bucket |= {"historyLineCount": len(run.history), "summaryMetrics": json.dumps(run.summary), "notes": None}
        bucket |= {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
        bucket |= {"config": "{}", "wandbConfig": json.dumps({"t": 1})}
        return {"id": "p", "name": "lth_scale", "entity": {"id": "e", "name": "team"}, "bucket": bucket}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, Run())
        if chunk := (sent.get("files") or {}).get("wandb-history.jsonl"):
            run.history[chunk["offset"] :] = map(json.loads, chunk["content"])
        if chunk := (sent.get("files") or {}).get("wandb-summary.json"):
            run.summary = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            run.exits.append(sent["exitcode"])


@contextmanager
def service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            made.asked += 1
            made.keys.add(self.headers.get("Authorization", ""))
            if made.mood == "hang":
                time.sleep(30)
            if made.mood in ("drop", "hang"):
                self.close_connection = True
                return
            told: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked["operationName"] or re.findall(r"(?:query|mutation) (\w+)", asked["query"])[0]
                told = {"data": made.query(name, asked.get("variables", {}))} if made.mood == "well" else {}
            elif self.path.endswith("/file_stream") and made.mood == "well":
                made.stream(self.path.split("/")[-2], json.loads(body))
            elif self.path.startswith("/artifact/") and self.command == "PUT":
                made.artifacts.put(self.path, body)
            answer = json.dumps(told).encode()
            if self.path.startswith("/artifact/") and self.command == "GET" and made.mood == "well":
                answer = made.artifacts.get(self.path)
            self.send_response(200 if made.mood == "well" else 500)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, format: str, *words: Any) -> None:
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *of: Any) -> None:
            """The client hangs up when it has all it wants."""

    server = Quiet(("127.0.0.1", 0), Handler)
    made = Service(f"http://127.0.0.1:{server.server_address[1]}")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
