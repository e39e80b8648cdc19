"""Asks the worker that runs for this user."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qupath_ext.serve.refused import Refused
from qupath_ext.userstate import worker_file

__all__ = ["WorkerClient"]


@dataclass(frozen=True)
class WorkerClient:
    """A worker that is there, or was.

    Attributes
    ----------
    url
        Where it listens.
    token
        What it wants to be shown.
    """

    url: str
    token: str

    @classmethod
    def find(cls) -> WorkerClient | None:
        """Return the worker that answers; None if there is none."""
        try:
            content = json.loads(worker_file().read_text("utf-8"))
            worker = cls(str(content["url"]), str(content["token"]))
            worker.request("GET", "/health")
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException, Refused):
            return None
        return worker

    def request(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the worker says to a request.

        Raises
        ------
        Refused
            If the worker refuses it.
        OSError
            If there is no worker.
        """
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            said: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 300:
            raise Refused(response.status, said["message"])
        return said
