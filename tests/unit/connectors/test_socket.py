from __future__ import annotations

import socket
import threading
import time

import pytest

from engine.connectors.socket import SocketTextSpec
from engine.core.errors import ExternalError, InputError
from tests.testing.operator_harness import OperatorHarness
from tests.testing.patience import best_of, until


class Server:
    """Accepts connections one after the other on a free port and sends each its pieces, then closes it."""

    def __init__(self, *pieces_by_connection: list[bytes], keep_open: bool = False) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.num_connections = 0
        self._release = threading.Event()
        self._keep_open = keep_open
        self._thread = threading.Thread(target=self._serve, args=(pieces_by_connection,), daemon=True)
        self._thread.start()

    def _serve(self, pieces_by_connection: tuple[list[bytes], ...]) -> None:
        for pieces in pieces_by_connection:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.num_connections += 1
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except OSError:
                        break
                if self._keep_open:
                    self._release.wait(600)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # ends a waiting accept
        except OSError:
            pass
        self._socket.close()
        self._thread.join(60)


def read(server: Server, **kwargs) -> list[str]:
    with OperatorHarness(SocketTextSpec("127.0.0.1", server.port, **kwargs)) as harness:
        return harness.run_source().rows


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def test_lines_come_as_sent_and_the_last_one_needs_no_end():
    with Server([b"to b", b"e\r\nor n\xc3", b"\xb6t\n\nlast"]) as server:
        assert read(server) == ["to be", "or nöt", "", "last"]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 100])
def test_a_delimiter_of_several_characters_may_be_cut(cut):
    data = b"a;;b;;;;c;d;;e"
    with Server([data[i : i + cut] for i in range(0, len(data), cut)]) as server:
        assert read(server, delimiter=";;") == ["a", "b", "", "c;d", "e"]


def test_a_line_is_delivered_before_the_connection_ends():
    with Server([b"first\nsecond"], keep_open=True) as server:
        spec = SocketTextSpec("127.0.0.1", server.port)
        with OperatorHarness(spec) as harness:
            harness.run_source(until=lambda: harness.output.rows == ["first"])


def test_a_very_long_line_comes_whole():
    with Server([b"x" * 3_000_000, b"\n"]) as server:
        assert [len(line) for line in read(server)] == [3_000_000]


def test_it_reconnects_as_often_as_told():
    with Server([b"a\n"], [b"b"], [b"c\n"]) as server:
        assert read(server, max_retries=2, retry_interval_ms=1) == ["a", "b", "c"]
        assert server.num_connections == 3


def test_it_reconnects_for_ever():
    with Server(*[[b"%d\n" % i] for i in range(20)]) as server:
        spec = SocketTextSpec("127.0.0.1", server.port, max_retries=-1, retry_interval_ms=1)
        with OperatorHarness(spec) as harness:
            harness.run_source(until=lambda: len(harness.output.rows) == 20)


@pytest.mark.parametrize(("retries", "attempts"), [(0, ""), (2, " after 3 attempts")])
def test_a_refusing_port_is_a_clear_error_after_the_retries(retries, attempts):
    port = free_port()
    spec = SocketTextSpec("127.0.0.1", port, max_retries=retries, retry_interval_ms=1)
    with OperatorHarness(spec) as harness:
        message = rf"Cannot read from socket 127.0.0.1:{port}{attempts}: Connection refused.*nc -lk {port}"
        with pytest.raises(ExternalError, match=message):
            harness.run_source()


def test_an_unknown_host_is_a_clear_error():
    error = pytest.raises(ExternalError, match=r"socket no-such-host.invalid:99: ")
    with OperatorHarness(SocketTextSpec("no-such-host.invalid", 99)) as harness, error:
        harness.run_source()


def test_undecodable_bytes_name_the_socket():
    with Server([b"good\n", b"bad \xff\n"]) as server:
        spec = SocketTextSpec("127.0.0.1", server.port)
        error = pytest.raises(InputError, match=rf"127.0.0.1:{server.port} sent bytes that are not utf-8: b'bad \\xff")
        with OperatorHarness(spec) as harness, error:
            harness.run_source()
    with Server([b"bad \xff\n"]) as server:
        assert read(server, charset="latin-1") == ["bad ÿ"]


@pytest.mark.parametrize("waiting", ["reading", "retrying"])
def test_cancel_is_prompt_whatever_the_thread_waits_for(waiting):
    def cancel() -> float:
        with Server([b"a\n"], keep_open=True) as server:
            port = server.port if waiting == "reading" else free_port()
            spec = SocketTextSpec("127.0.0.1", port, max_retries=-1, retry_interval_ms=600_000)
            with OperatorHarness(spec) as harness:
                if waiting == "reading":
                    harness.run_source(until=lambda: harness.output.rows == ["a"])
                thread = harness.head._thread
                begin = time.monotonic()
                harness.head.cancel()
            assert not thread.is_alive()
            return time.monotonic() - begin

    best_of(cancel, 1, "seconds until the thread has ended")


def test_a_slow_task_slows_the_server_down():
    with Server([b"0123456789\n" * 100_000] * 10, keep_open=True) as server:
        spec = SocketTextSpec("127.0.0.1", server.port)
        with OperatorHarness(spec) as harness:
            source = harness.head
            until(lambda: source._num_waiting > 50_000, "it reads ahead")
            time.sleep(0.2)
            assert source._num_waiting < 70_000
            harness.run_source(until=lambda: sum(map(len, harness.output.batches)) == 1_000_000)


@pytest.mark.parametrize("port", [0, 70_000])
def test_an_impossible_port_is_refused_at_once(port):
    with pytest.raises(ValueError, match="not between 1 and 65535"):
        SocketTextSpec("localhost", port)
