#!/usr/bin/env python3
"""A real Hadoop and ZooKeeper on this machine, without docker: install, up, down, status, daemon.

Runs NameNode, DataNodes, ResourceManager, NodeManagers and ZooKeeper as plain processes from Maven's jars, on
free ports of the loopback address, in one folder; several clusters may stand side by side. Needs Linux,
Python 3.11, Java and, for the first time, Maven. Meant for tests and trials, not for data one wants to keep.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shutil
import signal
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import daemons
from jars import ClusterError, find_java_home, install, locked
from settings import GUARD, MAX_NODES, PORTS_FROM, Cluster, Shape, reserve_ports, write_files

READY_SECONDS = 180.0  # generous: a machine busy with other tests must not fail here; a dead daemon is told at once
DOWN = (("nm", "ls"), ("rm", "dn", "fc"), ("nn", "zk"))  # one wave after the other: containers' logs still find HDFS


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong use, 3 Java or Maven missing."""
    args = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        return int(args.run(args) or 0)
    except ClusterError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _on_sigterm(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)  # so that whoever has started something ends it on the way out


# ---------------------------------------------------------------------------------------------- commands


def run_install(args: argparse.Namespace) -> None:
    began = time.monotonic()
    find_java_home()
    print(f"jars are in {install()} ({time.monotonic() - began:.1f} s)")


def run_up(args: argparse.Namespace) -> None:
    began = time.monotonic()
    if args.ha and not args.zookeeper:
        raise ClusterError("a pair of NameNodes (--ha) needs ZooKeeper; say --zookeeper 1")
    if args.rm_ha and not (args.zookeeper and args.yarn and not args.only_zookeeper):
        raise ClusterError("a pair of ResourceManagers (--rm-ha) needs YARN and ZooKeeper; say --zookeeper 1")
    if args.only_zookeeper and (args.ha or not args.zookeeper):
        raise ClusterError("--only-zookeeper needs --zookeeper 1 or 3, and has no NameNodes (--ha)")
    java_home, jars = find_java_home(), install()
    folder = Path(args.dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape(
        datanodes=args.datanodes,
        nodemanagers=args.nodemanagers if args.yarn and not args.only_zookeeper else 0,
        zookeepers=args.zookeeper,
        yarn=args.yarn and not args.only_zookeeper,
        hdfs=not args.only_zookeeper,
        ha=args.ha,
        block_size=args.block_size,
        replication=args.replication,
        rm_ha=args.rm_ha,
        apart=args.apart,
        preemption=args.preemption,
    )
    cluster, guard = _make(folder, shape, args.port_base, jars, java_home)
    try:
        _bring_up(cluster, args.timeout, began)
        guard.close()
        print(
            f"ready after {time.monotonic() - began:.1f} s: {cluster.namenode_uri if shape.hdfs else 'no HDFS'}"
            + (f", ResourceManager {cluster.rm_url}" if cluster.rm_url else "")
            + (f", ZooKeeper {cluster.zookeeper}" if cluster.zookeeper else "")
            + f"\nto use it: . {folder}/env.sh",
            flush=True,
        )
    except BaseException:
        _take_down(folder)  # Nothing half-started stays behind; the logs do, unless told otherwise.
        if args.wipe:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if args.foreground or args.until_eof:
        try:
            _stay(args.until_eof)
        finally:
            _take_down(folder, at_once=args.wipe)
            if args.wipe:
                shutil.rmtree(folder, ignore_errors=True)


def run_down(args: argparse.Namespace) -> None:
    folder = Path(args.dir).resolve()
    began = time.monotonic()
    ended = _take_down(folder, at_once=args.wipe)
    if args.wipe:
        shutil.rmtree(folder)
    print(f"ended {ended} processes in {time.monotonic() - began:.1f} s" + (f", removed {folder}" if args.wipe else ""))


def run_status(args: argparse.Namespace) -> int:
    cluster = _load(Path(args.dir).resolve())
    states = {name: _state(cluster, name) for name in cluster.shape.daemons()}
    if args.json:
        print(json.dumps({**cluster.as_json(), "states": states}, indent=2))
    else:
        for name, state in states.items():
            pid = cluster.processes.get(name, ("-", 0))[0] if state != "down" else "-"
            ports = " ".join(f"{purpose}={port}" for purpose, port in cluster.ports(name).items())
            print(f"{name:4} {state:8} pid {pid!s:8} {ports}")
    return 0 if set(states.values()) == {"ready"} else 1


def run_daemon(args: argparse.Namespace) -> None:
    folder, name = Path(args.dir).resolve(), args.name
    began = time.monotonic()
    with _changing(folder) as cluster:
        known = [*cluster.shape.daemons(), *cluster.shape.on_request()]
        if name not in known:
            raise ClusterError(f"no daemon {name!r} in this cluster; it has {', '.join(known)}")
        identity = cluster.processes.get(name)
        if args.action == "start":
            if daemons.is_alive(identity):
                raise ClusterError(f"{name} runs already, as pid {identity[0] if identity else '?'}")
            if args.disk_mb and not daemons.may_mount():
                print("this user may mount nothing, so there is no disk of its own")
            started = daemons.start(cluster, name, args.disk_mb)
            cluster.processes[name] = started.identity
    if args.action == "start":
        if args.wait:
            daemons.wait_ready(cluster, [started], args.timeout, lambda _: None)
        print(f"{name} {'ready' if args.wait else 'started'} after {time.monotonic() - began:.1f} s")
        return
    daemons.end([identity] if identity else [], grace=0 if args.action == "kill9" else daemons.GRACE_SECONDS)
    with _changing(folder) as cluster:
        if cluster.processes.get(name) == identity:
            cluster.processes.pop(name, None)
    print(f"{name} ended after {time.monotonic() - began:.1f} s")


# ---------------------------------------------------------------------------------------------- steps


def _make(folder: Path, shape: Shape, base: int | None, jars: Path, java_home: Path) -> tuple[Cluster, socket.socket]:
    """Return the cluster of the folder, its files written, and the guard of its ports."""
    with locked(folder / ".lock"):
        if (folder / "cluster.json").exists():
            before = _load(folder)
            if any(daemons.is_alive(identity) for identity in before.processes.values()):
                raise ClusterError(f"the cluster in {folder} is up already; `down --dir {folder}` ends it")
            if before.shape != shape:
                raise ClusterError(
                    f"the cluster in {folder} was made as {before.shape}, now asked for {shape}; "
                    f"ask for the same again, or remove it with `down --wipe --dir {folder}`"
                )
            base = before.port_base if base is None else base
        base, guard = reserve_ports(base)
        cluster = Cluster(folder, shape, base, jars, java_home)
        write_files(cluster)
        _save(cluster)
    return cluster, guard


def _bring_up(cluster: Cluster, seconds: float, began: float) -> None:
    """Start everything at once, as far as order allows, and return when all are ready."""

    def said(name: str) -> None:
        print(f"{name} ready after {time.monotonic() - began:.1f} s", flush=True)

    waiting = []

    def launch(names: list[str]) -> None:
        for name in names:
            with _changing(cluster.dir) as now:
                process = daemons.start(cluster, name)
                now.processes[name] = process.identity
            cluster.processes[name] = process.identity
            waiting.append(process)

    names = cluster.shape.daemons()
    if not cluster.shape.hdfs:
        launch(names)
        daemons.wait_ready(cluster, waiting, seconds, said)
        return
    formatting = daemons.start_format(cluster)  # first: everything else of HDFS waits for it
    try:
        launch([name for name in names if name[:2] in ("zk", "rm", "nm")])
        if formatting is not None:
            _finish(formatting, "HDFS", seconds)
    finally:
        _give_up(formatting)
    if cluster.shape.ha:
        daemons.copy_image(cluster)
        _agree_in_zookeeper(cluster, waiting, seconds, said)
    launch([name for name in names if name[:2] in ("nn", "fc", "dn")])
    daemons.wait_ready(cluster, waiting, seconds, said)
    for path, mode in (("/tmp", "1777"), ("/tmp/logs", "1777"), (f"/user/{cluster.user}", "755")):
        _make_folder(cluster, path, mode)


def _agree_in_zookeeper(
    cluster: Cluster, waiting: list[daemons.Process], seconds: float, said: Callable[[str], None]
) -> None:
    """Make the place for the controllers' election, once ZooKeeper is ready."""
    keepers = [process for process in waiting if process.name.startswith("zk")]
    daemons.wait_ready(cluster, keepers, seconds, said)
    for process in keepers:
        waiting.remove(process)
    formatting = daemons.start_format_zookeeper(cluster)
    try:
        _finish(formatting, "the place in ZooKeeper", seconds)
    finally:
        _give_up(formatting)


def _finish(formatting: daemons.Process, what: str, seconds: float) -> None:
    if formatting.popen.wait(timeout=seconds) != 0:
        raise ClusterError(f"formatting {what} failed. {formatting.log_tail()}")


def _give_up(formatting: daemons.Process | None) -> None:
    if formatting is not None and formatting.popen.poll() is None:
        formatting.popen.kill()
        formatting.popen.wait()


def _make_folder(cluster: Cluster, path: str, mode: str) -> None:
    """Make a folder on HDFS through WebHDFS: a client of Hadoop's own would cost a JVM each."""
    query = urllib.parse.urlencode({"permission": mode, "user.name": cluster.user})
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for operation in ("MKDIRS", "SETPERMISSION"):  # the first forgets the sticky bit
        active = daemons.active_namenode(cluster) or cluster.shape.namenodes()[0]
        url = f"http://localhost:{cluster.ports(active)['http']}/webhdfs/v1{path}?op={operation}&{query}"
        with no_proxy.open(urllib.request.Request(url, method="PUT"), timeout=30) as answer:
            answer.read()


def _take_down(folder: Path, at_once: bool = False) -> int:
    """End every process of the cluster and return how many there were. ``at_once``: nothing that they write is kept."""
    if not (folder / "cluster.json").exists():
        raise ClusterError(f"no cluster in {folder}: there is no cluster.json")
    ended = 0
    for wave in (sum(DOWN, ()),) if at_once else DOWN:
        cluster = _load(folder)
        alive = [
            identity
            for name, identity in cluster.processes.items()
            if name.startswith(wave) and daemons.is_alive(identity)
        ]
        daemons.end(alive, grace=0.0 if at_once else daemons.GRACE_SECONDS)
        ended += len(alive)
    while left := daemons.strays(_load(folder)):  # a container that is just being started may follow its parent
        daemons.end(left, grace=0.0 if at_once else 2.0)
        ended += len(left)
    with _changing(folder) as cluster:
        cluster.processes.clear()
    return ended


def _stay(until_eof: bool) -> None:
    """Stay until told to end, and collect daemons that are killed meanwhile (we are their parent).

    With ``until_eof`` also until standard input ends, which it does however the program that holds it dies.
    """
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        readable = select.select([sys.stdin] if until_eof else [], [], [], 0.5)[0]
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def _state(cluster: Cluster, name: str) -> str:
    if not daemons.is_alive(cluster.processes.get(name)):
        return "down"
    return "ready" if daemons.is_ready(cluster, name) else "up"


# ---------------------------------------------------------------------------------------------- cluster.json


def _load(folder: Path) -> Cluster:
    try:
        return Cluster.from_json(json.loads((folder / "cluster.json").read_text()), folder)
    except FileNotFoundError:
        raise ClusterError(f"no cluster in {folder}: there is no cluster.json; `up --dir {folder}` makes one") from None
    except (ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{folder}/cluster.json is not one that this version wrote: {error!r}") from None


def _save(cluster: Cluster) -> None:
    partial = cluster.dir / "cluster.json.partial"
    partial.write_text(json.dumps(cluster.as_json(), indent=2) + "\n")
    partial.replace(cluster.dir / "cluster.json")


@contextmanager
def _changing(folder: Path) -> Iterator[Cluster]:
    """Give the recorded cluster to change; several of our commands may run at once."""
    _load(folder)  # so that a wrong folder is told as such, and not by its missing lock
    with locked(folder / ".lock"):
        cluster = _load(folder)
        yield cluster
        _save(cluster)


# ---------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster.py", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        if name != "install":
            found.add_argument("--dir", required=True, help="the folder of the cluster")
        return found

    add("install", run_install, "fetch the jars of Hadoop and ZooKeeper, unless they are here")

    up = add("up", run_up, "start a cluster and wait until every daemon is ready")
    up.add_argument("--datanodes", type=_count(1, MAX_NODES), default=2, metavar="N")
    up.add_argument("--nodemanagers", type=_count(1, MAX_NODES), default=2, metavar="N")
    up.add_argument("--zookeeper", type=int, choices=(0, 1, 3), default=0)
    up.add_argument("--no-yarn", dest="yarn", action="store_false", help="HDFS (and ZooKeeper) only")
    up.add_argument("--only-zookeeper", action="store_true", help="neither HDFS nor YARN")
    up.add_argument("--ha", action="store_true", help="two NameNodes, one active, under hdfs://hacluster")
    up.add_argument("--rm-ha", action="store_true", help="two ResourceManagers (rm1, rm2), one active")
    up.add_argument("--apart", action="store_true", help="NodeManagers under addresses of their own (127.0.0.2, ...)")
    up.add_argument("--preemption", action="store_true", help="a queue that lacks its share takes it from another")
    up.add_argument("--block-size", type=_block_size, default=Shape.block_size, help="of HDFS, such as 64m or 4k")
    up.add_argument("--replication", type=_count(1, MAX_NODES), default=1, help="of HDFS files")
    up.add_argument(
        "--port-base",
        type=_count(1024, 65535 - GUARD),
        help=f"use the {GUARD + 1} ports from this one, such as {PORTS_FROM}",
    )
    up.add_argument("--timeout", type=float, default=READY_SECONDS, metavar="SECONDS")
    up.add_argument("--foreground", action="store_true", help="stay, and end the cluster when told to end")

    up.add_argument("--until-eof", action="store_true", help="as --foreground, also until standard input ends")
    up.add_argument("--wipe", action="store_true", help="remove the folder when the cluster fails to start, or ends")

    down = add("down", run_down, "end every process of a cluster; its data stays")
    down.add_argument("--wipe", action="store_true", help="also remove the folder")

    status = add("status", run_status, "say which daemons are up; exit code 0 when all are ready")
    status.add_argument("--json", action="store_true")

    daemon = add("daemon", run_daemon, "start, stop or kill one daemon; a restart keeps its ports")
    daemon.add_argument("action", choices=("start", "stop", "kill9"))
    daemon.add_argument(
        "name", help="nn (nn1, nn2, fc1, fc2), dn1, dn2, rm (rm1, rm2), nm1, zk1, ...; ls, on request only"
    )
    daemon.add_argument(
        "--disk-mb", type=int, default=0, help="containers of a NodeManager get a disk of their own, empty at its start"
    )
    daemon.add_argument("--no-wait", dest="wait", action="store_false", help="return before it is ready")
    daemon.add_argument("--timeout", type=float, default=READY_SECONDS, metavar="SECONDS")
    return parser


def _count(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return number


def _block_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    size = int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2]] if match else 0
    if size == 0 or size % 512:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64m or 4k, a multiple of 512 bytes")
    return size


if __name__ == "__main__":
    sys.exit(main())
