"""A stand-in for W&B's server on loopback: it keeps what wandb's real client sends, and can be slow, refuse, or break off.

It answers the GraphQL operations, file stream and uploads that wandb 0.31 asks for, in the shape of the queries it sends.
"""

import gzip
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEAM = {"id": "team", "name": "team"}
PROJECT = {"id": "project", "name": "pants-dist", "entity": TEAM}
ARTIFACT = {"id": "artifact", "state": "PENDING", "digest": "0", "artifactSequence": {"id": "sequence", "latestArtifact": None}}


@dataclass
class Received:
    """One run as the server has it: W&B's config and summary, the lines of its history, and the files by name."""

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]

    @property
    def steps(self) -> list[int]:
        return [row["trainer/global_step"] for row in self.rows]


class WandbServer(ThreadingHTTPServer):
    """`runs` by id. Where `status` is not 200 it refuses everything; beyond `rows_taken` rows it answers the file stream
    with `full_status`; it holds every answer back for `delay_s`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.runs: dict[str, Received] = {}
        self.unknown: list[str] = []
        self.status, self.delay_s, self.rows_taken, self.full_status = 200, 0.0, 1_000_000, 503
        self.changing = threading.Lock()
        self.asking: Counter[str] = Counter()  # runs whose rows are being taken at this moment
        self.most_at_once = 0  # different ones
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed hangs up: nothing to say."""

    def took(self, run: str, change: int) -> None:
        """Count runs that send rows at once."""
        with self.changing:
            self.asking[run] += change
            self.most_at_once = max(self.most_at_once, sum(count > 0 and bool(run) for run, count in self.asking.items()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        run = self.path.split("/")[4] if self.path.startswith("/files/") else ""
        self.server.took(run, 1)
        time.sleep(self.server.delay_s)
        self.server.took(run, -1)
        with self.server.changing:
            status, content = self.content(body) if self.server.status == 200 else (self.server.status, {"error": "refused"})
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def content(self, body: bytes) -> tuple[int, dict[str, Any]]:
        _, first, *rest = self.path.split("/")
        if first == "graphql":
            request = json.loads(body)
            return 200, {"data": self.graphql(request["query"], request.get("variables") or {})}
        if first == "files":
            return self.stream(self.server.runs[rest[2]], json.loads(body).get("files", {}))
        if first == "upload":
            self.server.runs[rest[0]].files["/".join(rest[1:])] = body
        return 200, {}

    def stream(self, run: Received, files: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Lines of a file from an offset on."""
        lines = files.get("wandb-history.jsonl", {"offset": len(run.history), "content": []})
        end = lines["offset"] + len(lines["content"])
        if end > self.server.rows_taken:
            return self.server.full_status, {"error": "no more"}
        run.history[lines["offset"] : end] = lines["content"]
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        return 200, {"exitcode": None, "limits": {}}

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else query
        if handler := getattr(self, operation, None):
            return handler(**given.get("input", given))
        self.server.unknown.append(operation)
        return {}

    def url(self, run: str, file: str) -> str:
        return f"{self.server.url}/upload/{run}/{file}"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def ServerFeaturesQuery(self) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def Viewer(self) -> dict[str, Any]:
        return {"viewer": {"id": "me", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def RunResumeStatus(self, name: str, **_: Any) -> dict[str, Any]:
        run = self.server.runs.get(name)
        return {"model": PROJECT | {"bucket": run and self.bucket(name, run)}}

    def bucket(self, name: str, run: Received) -> dict[str, Any]:
        return {
            "id": name, "name": name, "displayName": run.name, "project": PROJECT,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary), "historyTail": json.dumps(run.history[-1:]),
            "historyLineCount": len(run.history), "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]",
            "tags": [], "notes": None, "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip

    def UpsertBucket(self, name: str, displayName: str | None, config: str | None, **_: Any) -> dict[str, Any]:
        run = self.server.runs.setdefault(name, Received())
        run.name = displayName or run.name
        run.config |= {key: entry["value"] for key, entry in json.loads(config or "{}").items()}
        return {"upsertBucket": {"bucket": self.bucket(name, run), "inserted": not run.history}}

    def CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        made = [{"name": file, "uploadUrl": self.url(run, file)} for file in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": made}}

    def ArtifactType(self, **_: Any) -> dict[str, Any]:
        return {"project": None}

    def CreateArtifact(self, **_: Any) -> dict[str, Any]:
        return {"createArtifact": {"artifact": ARTIFACT}}

    def CreateArtifactManifest(self, runName: str, **_: Any) -> dict[str, Any]:
        file = {"id": "file", "uploadUrl": self.url(runName, "manifest"), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}

    UpdateArtifactManifest = CreateArtifactManifest

    def CreateArtifactFiles(self, **_: Any) -> dict[str, Any]:
        return {"createArtifactFiles": {"files": {"edges": []}}}

    def CommitArtifact(self, **_: Any) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": ARTIFACT}}
