"""Ray's job server, as far as submitting jobs and asking for them goes, on a real port: the jobs are the test's."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from importlib import metadata

from tests.contract.servers import Server

# Importing Ray would fix, for this whole process, how it authenticates.
RAY = metadata.version("ray")


class JobServer(Server):
    """Takes jobs and runs none. `states` has what it says of each by its id, PENDING at first."""

    def __init__(self) -> None:
        super().__init__(_Jobs)
        self.states: dict[str, str] = {}
        self.submitted: list[str] = []
        self.token: str | None = None
        """What requests have to bear, if anything."""
        self.refusing: str | None = None
        """Why no job is taken, if none is."""
        self.ray, self.python = RAY, "3.11.9"


class _Jobs(BaseHTTPRequestHandler):
    server: JobServer

    def do_GET(self) -> None:
        if self.server.token is not None and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._say(403 if "Authorization" in self.headers else 401, {"error": "not you"})
        if self.path == "/api/version":
            return self._say(
                200, {"version": "4", "ray_version": self.server.ray, "ray_commit": "", "session_name": ""}
            )
        if self.path == "/api/v0/cluster_metadata":
            about = {"rayVersion": self.server.ray, "pythonVersion": self.server.python}
            return self._say(200, {"result": True, "msg": "", "data": about})
        job = self.path.rpartition("/")[2]
        if job not in self.server.states:
            return self._say(404, {"error": f"job {job} does not exist"})
        return self._say(200, {"type": "SUBMISSION", "submission_id": job, "status": self.server.states[job]})

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["submission_id"]
        if self.server.refusing is not None:
            return self._say(500, {"error": self.server.refusing})
        self.server.states[job] = "PENDING"
        self.server.submitted.append(job)
        return self._say(200, {"job_id": job, "submission_id": job})

    def _say(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
