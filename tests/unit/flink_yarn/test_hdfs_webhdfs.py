"""WebHDFS's DataNodes: one that does not answer is not asked again, though the NameNode names it first."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from flink_yarn import hdfs_webhdfs
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem

CONTENT = b"0123456789" * 1000


class Handler(BaseHTTPRequestHandler):
    """NameNode and the DataNode ``localhost``; there is also a DataNode ``127.0.0.1``, which is dead and preferred."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        state = self.server.state
        if parts.path == "/datanode":
            if self.command == "PUT":
                state["file"] = self._body()
                self._send(201)
            else:
                self._send(200, state["file"][int(query["offset"]) :])
            return
        state["asked"].append((query["op"], query.get("excludedatanodes", "")))
        match query["op"]:
            case "GETFILESTATUS":
                status = {"length": len(state["file"]), "type": "FILE", "modificationTime": 0}
                self._send(200, json.dumps({"FileStatus": status}).encode())
            case "DELETE":
                self._send(200, b'{"boolean": false}')
            case "CREATE" | "OPEN":
                excluded = query.get("excludedatanodes", "").split(",")
                hosts = [host for host in ("127.0.0.1", "localhost") if host not in excluded]
                if not hosts:
                    said = {"exception": "IOException", "message": "Failed to find datanode, suggest to check health."}
                    self._send(403, json.dumps({"RemoteException": said}).encode())
                    return
                port = state["dead"] if hosts[0] == "127.0.0.1" else self.server.server_port
                place = f"http://{hosts[0]}:{port}/datanode?offset={query.get('offset', 0)}"
                self._send(307, location=place)

    def _body(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, content: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None: ...


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # nobody listens
        server.state = {"asked": [], "file": CONTENT, "dead": dead.getsockname()[1]}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fs(server):
    address = f"127.0.0.1:{server.server_port}"
    fs = HdfsFileSystem(HadoopConf({"fs.defaultFS": "hdfs://cluster:1", "dfs.namenode.http-address": address}, None))
    assert fs.status("hdfs:///file").size_bytes == len(CONTENT)
    return fs


def excluded(server, op: str) -> list[str]:
    return [hosts for asked, hosts in server.state["asked"] if asked == op]


def test_a_file_is_written_through_another_data_node_at_the_second_try(server, fs):
    for number in range(2):
        with fs.open_write("hdfs:///file", overwrite=True) as stream:
            stream.write(CONTENT + b"%d" % number)
        assert server.state["file"] == CONTENT + b"%d" % number
    assert excluded(server, "CREATE") == ["", "127.0.0.1", "127.0.0.1"]


def test_a_file_is_read_from_another_data_node_at_the_second_try(server, fs):
    for _ in range(2):
        with fs.open_read("hdfs:///file", 10) as stream:
            assert stream.read() == CONTENT[10:]
    assert excluded(server, "OPEN") == ["", "127.0.0.1", "127.0.0.1"]


def test_a_data_node_that_is_the_only_one_is_asked_again(server, fs, monkeypatch):
    with fs.open_read("hdfs:///file") as stream:
        stream.read(1)
    client = fs._resolve("hdfs:///file")[0].client
    client._avoided["localhost"] = client._avoided["127.0.0.1"]
    with fs.open_write("hdfs:///file", overwrite=True) as stream:
        stream.write(b"x")
    assert server.state["file"] == b"x"
    assert excluded(server, "CREATE") == ["127.0.0.1,localhost", "", "127.0.0.1"]


def test_a_data_node_that_hangs_keeps_nobody_who_gives_a_file_up(server, fs, monkeypatch):
    monkeypatch.setattr(hdfs_webhdfs, "ABANDON_S", 0.05)
    hangs = threading.Event()

    def put(pieces) -> bool:
        next(pieces)
        hangs.wait(600)
        return True

    upload = hdfs_webhdfs._Upload(put)
    for _ in range(hdfs_webhdfs.PIECES_MAX + 1):
        upload.write(b"x")
    upload.abandon()
    hangs.set()
    upload._thread.join(60)
    assert not upload._thread.is_alive()
