"""The address of a cluster: its form, and who answers there."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
import ray

from raygenesis.cluster import environment, head
from raygenesis.errors import ClusterError


@pytest.mark.parametrize(("given", "expected"), [(None, None), ("", None), (" local ", None), ("a:1", "a:1")])
def test_an_empty_address_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert environment.address() == expected
    assert environment.is_joined() is (expected is not None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://head:8265", "`ray job submit --address`"), ("https://head:8265", "`ray job submit --address`"),
        ("ray://head:10001", "Ray Client"), ("ftp://head", "give the host:6379"),
        ("head", "such as head:6379"), ("fe80::1", "such as [fe80::1]:6379"),
        ("head:port", "such as head:6379"), ("he ad:6379", "give host:port"),
    ],
)  # fmt: skip
def test_an_address_of_another_form_is_refused_with_the_right_one(address: str, words: str) -> None:
    with pytest.raises(ClusterError) as refused:
        head.reachable(address)
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}: ") and words in str(refused.value)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts, and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def web() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def test_where_no_head_answers_it_is_said_soon(monkeypatch: pytest.MonkeyPatch, silent: int, web: int) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    for port, words in ((closed, "no head of Ray answers there"), (silent, "within 1 s"), (web, "no head of Ray")):
        monkeypatch.setattr(head, "ANSWER_S", 1.0 if port == silent else 20.0)
        with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS=127\.0\.0\.1:{port}: .*{words}.*unset it"):
            head.reachable(f"127.0.0.1:{port}")


def test_a_head_that_answers_is_taken(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    address = ray.get_runtime_context().gcs_address
    assert head.reachable(address) == address


def test_auto_without_a_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_found(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", none_found)
    with pytest.raises(ClusterError, match="RAY_ADDRESS=auto: no Ray is running on this machine: start one by `ray st"):
        head.reachable("auto")
