"""Requests to the worker: who gets in, what is refused, and what becomes of jobs. No job is done here."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from qupath_ext.live.job import Answer
from qupath_ext.serve import server as server_module
from qupath_ext.serve.client import WorkerClient
from qupath_ext.serve.folders import AllowedFolders
from qupath_ext.serve.jobs import MOST_KEPT, MOST_LINES, MOST_WAITING, JobQueue
from qupath_ext.serve.refused import Refused
from qupath_ext.serve.server import MAX_BODY_BYTES, WorkerServer

TOKEN = "the-token"
MIB = 1_048_576


@pytest.fixture(autouse=True)
def no_known_projects(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "Größe 1"
    folder.mkdir()
    return folder


@pytest.fixture
def server(project):
    with WorkerServer(TOKEN, JobQueue(), AllowedFolders([project])) as started:
        thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    return WorkerClient(server.url, TOKEN)


def new_job(inside, name="job", **content):
    folder = inside / "qupath_ext" / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"version": 1, "task": "ping", **content}), encoding="utf-8")
    return folder


def submit(client, folder):
    return client.request("POST", "/jobs", {"folder": str(folder)})["id"]


def send(server, data, *, then_close=False):
    """Send bytes and return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(data)
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def head(server, *lines, line="GET /health HTTP/1.1", host=None, token=TOKEN):
    """Return the head of a request, rightful but for what is given."""
    host = f"127.0.0.1:{server.server_port}" if host is None else host
    return "\r\n".join([line, f"Host: {host}", f"Authorization: Bearer {token}", *lines, "", ""]).encode("latin-1")


def status_of(response):
    """Return the status of the only response in some bytes, whose body is JSON."""
    assert response.count(b"HTTP/1.0 ") == 1
    top, _, body = response.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in top
    assert isinstance(json.loads(body), dict)
    return int(top.split()[1])


# ---------------------------------------------------------------------- who gets in
def test_only_this_computer_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_who_knows_the_token_is_told_how_it_is(server, client):
    said = client.request("GET", "/health")
    assert (said["pid"], said["queued"], said["running"]) == (os.getpid(), 0, 0)
    assert status_of(send(server, head(server, host=f"localhost:{server.server_port}"))) == 200


@pytest.mark.parametrize(
    "shown",
    ["", "Bearer ", "Bearer the-toke", "Bearer the-token2", "the-token", "Basic the-token", "bearer the-token",
     "Bearer \xe9", "Bearer the-token, Bearer the-token"],
)  # fmt: skip
@pytest.mark.parametrize("line", ["GET /health", "POST /jobs", "POST /shutdown", "GET /", "PUT /jobs"])
def test_without_the_token_nothing_is_said(server, project, shown, line):
    body = json.dumps({"folder": str(new_job(project))})
    request = f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nAuthorization: {shown}\r\n"
    request += f"Content-Length: {len(body)}\r\n\r\n{body}"
    response = send(server, request.encode("latin-1"))
    assert status_of(response) == 401
    assert str(os.getpid()).encode() not in response
    assert server.queue.counts() == {"queued": 0, "running": 0}
    assert server.queue.submit(project).state == "queued"


def test_a_token_shown_twice_or_not_at_all_is_refused(server):
    twice = head(server, f"Authorization: Bearer {TOKEN}")
    never = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode()
    assert [status_of(send(server, request)) for request in (twice, never)] == [401, 401]


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "file://", "http://localhost", "http://127.0.0.1", ""]
)
def test_web_pages_are_refused_even_with_the_token(server, origin):
    assert status_of(send(server, head(server, f"Origin: {origin}"))) == 403
    assert status_of(send(server, head(server, f"Origin: {origin}", line="OPTIONS /jobs HTTP/1.1"))) == 403


def test_a_page_of_its_own_address_is_refused(server):
    assert status_of(send(server, head(server, f"Origin: {server.url}"))) == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost", "",
                                  "127.0.0.1:{port}.evil.example", "0.0.0.0:{port}", "[::1]:{port}"])  # fmt: skip
def test_other_hosts_are_refused(server, host):
    assert status_of(send(server, head(server, host=host.format(port=server.server_port)))) == 403


def test_two_hosts_or_none_are_refused(server):
    two = head(server, f"Host: 127.0.0.1:{server.server_port}")
    none = f"GET /health HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    assert [status_of(send(server, request)) for request in (two, none)] == [403, 403]


# ---------------------------------------------------------------------- what is no request
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET / HTTP/1.1", 404),
        ("GET /jobs HTTP/1.1", 405),
        ("GET /jobs/1 HTTP/1.1", 404),
        ("GET /jobs/../health HTTP/1.1", 404),
        ("GET http://[ HTTP/1.1", 400),
        ("POST /health HTTP/1.1", 405),
        ("DELETE /jobs HTTP/1.1", 405),
        (f"GET /jobs/{'a' * 32} HTTP/1.1", 404),
        (f"POST /jobs/{'a' * 32} HTTP/1.1", 405),
        (f"GET /jobs/{'a' * 32}/cancel HTTP/1.1", 405),
        (f"POST /jobs/{'a' * 32}/cancel HTTP/1.1", 404),
        (f"GET /jobs/{'a' * 32}?offset=-1 HTTP/1.1", 400),
        (f"GET /jobs/{'a' * 32}?offset={'9' * 10} HTTP/1.1", 400),
        ("BREW /coffee HTTP/1.1", 501),
        ("GET /health HTTP/9.9", 505),
        ("nonsense", 400),
        (f"GET /{'a' * 70_000} HTTP/1.1", 414),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_there_is_said_so(server, line, status):
    assert status_of(send(server, head(server, line=line))) == status


def test_too_many_headers_are_refused(server):
    assert status_of(send(server, head(server, *(f"X-{n}: 1" for n in range(200))))) == 431


# ---------------------------------------------------------------------- bodies
@pytest.mark.parametrize("body", ["", "[]", "1", '"folder"', "{", "{'folder': 1}", "[" * 100_000, "\xff"])
def test_bodies_that_are_no_object_are_refused(server, body):
    request = head(server, f"Content-Length: {len(body)}", line="POST /jobs HTTP/1.1") + body.encode("latin-1")
    assert status_of(send(server, request)) == 400


@pytest.mark.parametrize("length", [MIB + 1, 10**9, 10**12, "9" * 5000])
def test_a_huge_body_is_refused_before_it_comes(server, length):
    request = head(server, f"Content-Length: {length}", line="POST /jobs HTTP/1.1")
    assert status_of(send(server, request)) == 413


def test_a_body_of_the_greatest_length_is_read(server, project):
    assert MAX_BODY_BYTES == MIB
    start = json.dumps({"folder": str(new_job(project)), "x": ""})[:-2]
    body = start + "x" * (MIB - len(start) - 2) + '"}'
    request = head(server, f"Content-Length: {len(body)}", line="POST /jobs HTTP/1.1") + body.encode()
    assert status_of(send(server, request)) == 202


@pytest.mark.parametrize("lines", [("Content-Length: -1",), ("Content-Length: 2x",), ("Content-Length: +2",),
                                   ("Content-Length: ",), ("Content-Length: 2", "Content-Length: 2"),
                                   ("Content-Length: 2, 2",), ("Content-Length: 0x2",)])  # fmt: skip
def test_lengths_that_are_none_are_refused(server, lines):
    assert status_of(send(server, head(server, *lines, line="POST /jobs HTTP/1.1") + b"{}")) == 400


def test_a_body_of_unknown_length_is_refused(server):
    request = head(server, "Transfer-Encoding: chunked", line="POST /jobs HTTP/1.1") + b"2\r\n{}\r\n0\r\n\r\n"
    assert status_of(send(server, request)) == 411


def test_a_body_shorter_than_said_is_refused(server, project, monkeypatch):
    body = json.dumps({"folder": str(new_job(project))}).encode()
    request = head(server, f"Content-Length: {len(body) + 5}", line="POST /jobs HTTP/1.1") + body
    assert status_of(send(server, request, then_close=True)) == 400
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    assert status_of(send(server, request)) == 408
    assert server.queue.counts()["queued"] == 0


def test_what_follows_a_body_is_no_second_request(server):
    hidden = head(server, line="POST /shutdown HTTP/1.1")
    request = head(server, "Content-Length: 2", "Connection: keep-alive", line="POST /jobs HTTP/1.1") + b"{}" + hidden
    assert status_of(send(server, request)) == 400
    assert server.queue.submit(Path("still open")).state == "queued"


def test_who_says_nothing_is_hung_up_on(server, client, monkeypatch):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    assert send(server, b"") == b""
    assert send(server, b"GET /health HTTP/1.1\r\nHost:") == b""
    assert client.request("GET", "/health")["queued"] == 0


def test_few_connections_at_once(server, client):
    silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(32)]
    try:
        with pytest.raises(ConnectionError):
            client.request("GET", "/health")
    finally:
        for connection in silent:
            connection.close()
    for _ in range(200):
        try:
            assert client.request("GET", "/health")["queued"] == 0
            return
        except OSError:
            continue
    pytest.fail("the connections were not given back")


# ---------------------------------------------------------------------- folders
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("{project}/../outside/job", 403),
        ("{project}/qupath_ext/../../outside/job", 403),
        ("{outside}/job", 403),
        ("{project}2/job", 403),
        ("qupath_ext/jobs/job", 403),
        ("", 403),
        (".", 403),
        ("/", 403),
        ("//server/share/job", 403),
        ("\\\\server\\share\\job", 403),
        ("\\\\?\\C:\\job", 403),
        ("C:\\Windows", 403),
        ("file:///etc", 403),
        ("~/job", 403),
        ("{project}/nowhere", 404),
        ("{project}/nul\0l", 404),
        ("{project}/\ud800", 404),
        ("{project}/" + "a" * 5000, 404),
        ("{project}/sub/loop", 404),
        ("{project}/file", 404),
        ("{project}", 422),
        (None, 400),
        (1, 400),
        (["{project}"], 400),
        ({}, 400),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_folders_that_are_not_taken(server, client, project, tmp_path, name, status):
    outside = tmp_path / "outside"
    for folder in (outside, Path(f"{project}2")):
        new_job(folder)
        (folder / "qupath_ext" / "jobs" / "job").rename(folder / "job")
    (project / "file").touch()
    (project / "sub").mkdir()
    (project / "sub" / "loop").symlink_to(project / "sub" / "loop")
    if isinstance(name, str):
        name = name.replace("{project}", str(project)).replace("{outside}", str(outside))
    with pytest.raises(Refused) as refused:
        client.request("POST", "/jobs", {"folder": name})
    assert refused.value.status == status
    assert server.queue.counts()["queued"] == 0


def test_links_to_the_outside_are_not_followed(client, project, tmp_path):
    outside = new_job(tmp_path / "outside")
    inside = new_job(project)
    (project / "link").symlink_to(outside)
    (project / "parent").symlink_to(outside.parent)
    for folder in (project / "link", project / "parent" / "job"):
        with pytest.raises(Refused, match="leads to") as refused:
            submit(client, folder)
        assert refused.value.status == 403
    (inside / "answer.json").symlink_to(outside / "stolen.json")
    with pytest.raises(Refused, match=r"holds links \(answer.json\)") as refused:
        submit(client, inside)
    assert refused.value.status == 403
    assert not (outside / "stolen.json").exists()


def test_the_project_of_a_job_has_to_be_inside_as_well(client, project, tmp_path):
    other = tmp_path / "other" / "project.qpproj"
    other.parent.mkdir()
    other.touch()
    (project / "link.qpproj").symlink_to(other)
    (project / "project.qpproj").touch()
    for n, path in enumerate([other, project / "link.qpproj", project / ".." / "other" / "project.qpproj"]):
        with pytest.raises(Refused) as refused:
            submit(client, new_job(project, f"job{n}", project=str(path)))
        assert refused.value.status == 403
    submit(client, new_job(project, "right", project=str(project / "project.qpproj")))


def test_a_job_that_is_not_understood_is_refused_at_once(client, project):
    with pytest.raises(Refused, match="task 'brew'") as refused:
        submit(client, new_job(project, task="brew"))
    assert refused.value.status == 422


def test_a_project_may_be_allowed_through_a_link(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    folder = new_job(project)
    through = AllowedFolders([tmp_path / "link"])
    assert through.admit(str(tmp_path / "link" / "qupath_ext" / "jobs" / "job")) == folder
    assert through.admit(str(folder)) == folder


@pytest.mark.skipif(sys.platform == "win32", reason="other rules for names")
def test_names_in_another_case_are_other_folders(client, project):
    with pytest.raises(Refused) as refused:
        submit(client, Path(str(new_job(project)).replace("Größe", "GRÖSSE")))
    assert refused.value.status == 403


# ---------------------------------------------------------------------- jobs
def test_a_job_from_the_queue_to_its_answer(server, client, project):
    folder = new_job(project)
    job = submit(client, folder)
    first = client.request("GET", f"/jobs/{job}")
    assert (first["state"], first["ahead"], first["progress"], first["log"]) == ("queued", 0, None, [])
    ticket = server.queue.next(0)
    assert ticket.folder == folder
    ticket.say("one\ntwo")
    ticket.step("cells", 3, 20)
    now = client.request("GET", f"/jobs/{job}")
    assert (now["state"], now["log"], now["offset"], now["answer"]) == ("running", ["one", "two"], 2, None)
    assert now["progress"] == {"stage": "cells", "done": 3, "total": 20}
    ticket.say("drei ü")
    assert client.request("GET", f"/jobs/{job}?offset=2")["log"] == ["drei ü"]
    assert client.request("GET", f"/jobs/{job}?offset=3")["log"] == []
    server.queue.finish(ticket, Answer("done", "5 cells", counts={"cells": 5}))
    end = client.request("GET", f"/jobs/{job}?offset=9")
    assert (end["state"], end["log"], end["offset"]) == ("done", [], 3)
    assert (end["answer"]["version"], end["answer"]["status"], end["answer"]["counts"]) == (1, "done", {"cells": 5})


def test_one_job_at_a_time_in_order(server, client, project):
    ids = [submit(client, new_job(project, f"job{n}")) for n in range(3)]
    first = server.queue.next(0)
    states = [client.request("GET", f"/jobs/{job}") for job in ids]
    assert [(one["state"], one["ahead"]) for one in states] == [("running", 0), ("queued", 1), ("queued", 2)]
    assert client.request("GET", "/health")["queued"] == 2
    server.queue.finish(first, Answer("done", ""))
    assert [server.queue.next(0).id for _ in range(2)] == ids[1:]


def test_many_callers_at_once_get_a_job_each(server, client, project):
    folders = [new_job(project, f"job{n:02}") for n in range(MOST_WAITING)]
    ids = {}
    threads = [threading.Thread(target=lambda f=f: ids.__setitem__(f, submit(client, f))) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = []
    for _ in folders:
        ticket = server.queue.next(0)
        server.queue.finish(ticket, Answer("done", str(ticket.folder)))
        done.append(ticket.folder)
    assert sorted(done) == folders
    assert all(client.request("GET", f"/jobs/{ids[f]}")["answer"]["message"] == str(f) for f in folders)


def test_the_same_job_twice_and_too_many_are_refused(server, client, project):
    folder = new_job(project)
    submit(client, folder)
    running = server.queue.next(0)
    with pytest.raises(Refused) as twice:
        submit(client, folder)
    for n in range(MOST_WAITING):
        submit(client, new_job(project, f"job{n}"))
    with pytest.raises(Refused) as many:
        submit(client, new_job(project, "last"))
    assert (twice.value.status, many.value.status) == (409, 503)
    server.queue.finish(running, Answer("done", ""))
    server.queue.next(0)
    submit(client, folder)


def test_cancelling_a_job_that_waits_runs_or_is_done(server, client, project):
    ids = [submit(client, new_job(project, f"job{n}")) for n in range(3)]
    running = server.queue.next(0)
    said = client.request("POST", f"/jobs/{ids[1]}/cancel")
    assert (said["state"], said["answer"]["status"]) == ("cancelled", "cancelled")
    assert not running.stop.is_set()
    assert client.request("POST", f"/jobs/{ids[0]}/cancel")["state"] == "running"
    assert running.stop.is_set()
    server.queue.finish(running, Answer("done", "it was too late"))
    assert client.request("POST", f"/jobs/{ids[0]}/cancel")["answer"]["message"] == "it was too late"
    assert server.queue.next(0).id == ids[2]


def test_the_end_takes_no_more_jobs_and_cancels_the_others(server, client, project):
    ids = [submit(client, new_job(project, f"job{n}")) for n in range(2)]
    running = server.queue.next(0)
    assert client.request("POST", "/shutdown")["state"] == "ends"
    assert running.stop.wait(10)  # the answer comes before the end
    assert server.queue.next(10) is None
    assert client.request("GET", f"/jobs/{ids[1]}")["state"] == "cancelled"
    with pytest.raises(Refused) as refused:
        submit(client, new_job(project, "late"))
    assert refused.value.status == 503


def test_whoever_waits_too_long_for_a_job_gets_none_and_then_none_is_taken():
    queue = JobQueue()
    assert queue.next(0.05) is None
    with pytest.raises(Refused):
        queue.submit(Path("late"))


def test_a_job_ends_the_waiting():
    queue = JobQueue()
    threading.Timer(0.05, queue.submit, [Path("soon")]).start()
    assert queue.next(10).folder == Path("soon")


def test_memory_for_logs_and_old_answers_is_bounded():
    queue = JobQueue()
    ids = []
    for n in range(MOST_KEPT + 1):
        ids.append(queue.submit(Path(f"job{n}")).id)
        queue.finish(queue.next(0), Answer("done", ""))
    with pytest.raises(Refused):
        queue.describe(ids[0])
    assert queue.describe(ids[1])["state"] == "done"
    ticket = queue.submit(Path("loud"))
    ticket.say("x" * 10_000)
    assert len(ticket.lines(0)[0][0]) == 2000
    for n in range(MOST_LINES):
        ticket.say(f"line {n}")
    lines, offset = ticket.lines(0)
    assert (len(lines), lines[0], offset) == (MOST_LINES, "line 0", MOST_LINES + 1)
    assert ticket.lines(MOST_LINES)[0] == [f"line {MOST_LINES - 1}"]


def test_who_ends_the_worker_is_told_before_it_ends(server, client, monkeypatch):
    told, closed = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def close():
        in_time.append(told.wait(5))
        closed.set()

    monkeypatch.setattr(server.queue, "close", close)
    assert client.request("POST", "/shutdown")["state"] == "ends"
    told.set()
    assert closed.wait(10)
    assert in_time == [True]
