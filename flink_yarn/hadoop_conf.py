"""Reads Hadoop's client configuration: where the NameNodes and ResourceManagers are. No JVM is asked.

``HADOOP_CONF_DIR`` (or ``YARN_CONF_DIR``) names the folder with core-site.xml, hdfs-site.xml and yarn-site.xml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit
from xml.etree import ElementTree

from engine.core.errors import ConfigError

__all__ = ["HadoopConf", "NameNodes", "hadoop_conf_dir"]

HTTP_PORT_DEFAULT = 9870
HTTPS_PORT_DEFAULT = 9871
RPC_PORT_DEFAULT = 8020
_FILES = ("core-default.xml", "core-site.xml", "hdfs-site.xml", "yarn-site.xml")
_VARIABLE = re.compile(r"\$\{([^}]+)\}")


def hadoop_conf_dir(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the folder that the environment names, or None."""
    return environ.get("HADOOP_CONF_DIR") or environ.get("YARN_CONF_DIR") or None


@dataclass(frozen=True)
class NameNodes:
    """One HDFS: its name in paths and the WebHDFS addresses of its NameNodes, in order of preference."""

    authority: str
    http_urls: tuple[str, ...]


class HadoopConf:
    """Properties of a Hadoop configuration folder; later files win, ``${other.key}`` is expanded."""

    def __init__(self, values: Mapping[str, str], conf_dir: str | None) -> None:
        self._values = dict(values)
        self.conf_dir = conf_dir

    @staticmethod
    def load(environ: Mapping[str, str] = os.environ) -> HadoopConf:
        """Read the folder of the environment; empty when none is named.

        Raises: ConfigError when the folder does not exist or a file in it is not XML.
        """
        conf_dir = hadoop_conf_dir(environ)
        if conf_dir is None:
            return HadoopConf({}, None)
        if not os.path.isdir(conf_dir):
            raise ConfigError(f"HADOOP_CONF_DIR is {conf_dir!r}, which is not a folder; it should hold core-site.xml.")
        values: dict[str, str] = {}
        for name in _FILES:
            path = os.path.join(conf_dir, name)
            if os.path.isfile(path):
                values.update(_read_properties(path))
        return HadoopConf(values, conf_dir)

    def get(self, key: str, default: str = "") -> str:
        text = self._values.get(key, default)
        for _ in range(5):  # nested variables; a cycle stays as it is
            expanded = _VARIABLE.sub(lambda match: self._values.get(match[1], match[0]), text)
            if expanded == text:
                break
            text = expanded
        return text

    def to_dict(self) -> dict[str, str]:
        """Return all properties, with their variables expanded."""
        return {key: self.get(key) for key in self._values}

    def default_authority(self) -> str:
        """Return ``host:port`` or the nameservice of fs.defaultFS. Raises ConfigError if it is no HDFS."""
        default_fs = self.get("fs.defaultFS") or self.get("fs.default.name")
        parts = urlsplit(default_fs)
        if parts.scheme != "hdfs" or not parts.netloc:
            seen = f"fs.defaultFS is {default_fs!r}" if default_fs else "fs.defaultFS is not set"
            where = f"in {self.conf_dir}" if self.conf_dir else "because HADOOP_CONF_DIR is not set"
            raise ConfigError(
                f"A path without a host such as hdfs:///x needs a default file system, but {seen} {where}. "
                "Set HADOOP_CONF_DIR to the cluster's configuration folder, or write hdfs://host:port/x."
            )
        return parts.netloc

    def is_nameservice(self, authority: str) -> bool:
        """Return whether the authority names a group of NameNodes, of which one is active, and no host."""
        return authority in [part.strip() for part in self.get("dfs.nameservices").split(",") if part.strip()]

    def _ids(self, nameservice: str) -> list[str]:
        return [part.strip() for part in self.get(f"dfs.ha.namenodes.{nameservice}").split(",") if part.strip()]

    def name_nodes(self, authority: str) -> NameNodes:
        """Return the NameNodes of ``host:port`` or of an HA nameservice."""
        if self.is_nameservice(authority):
            urls = [self._http_url(f".{authority}.{node_id}") for node_id in self._ids(authority)]
            if not any(urls):
                raise ConfigError(
                    f"Nameservice {authority} has no dfs.ha.namenodes.{authority} or no "
                    f"dfs.namenode.http-address.{authority}.<id> in {self.conf_dir}."
                )
            return NameNodes(authority, tuple(url for url in urls if url))
        own_rpc = self.get("dfs.namenode.rpc-address") or urlsplit(self.get("fs.defaultFS")).netloc
        configured = self._http_url("")
        if configured and _same_address(own_rpc, authority):
            return NameNodes(authority, (configured,))
        host = authority.rsplit(":", 1)[0]
        return NameNodes(authority, (f"http://{host}:{HTTP_PORT_DEFAULT}",))

    def rpc_addresses(self, authority: str) -> list[tuple[str, int]]:
        """Return host and port of the NameNodes of ``host:port`` or of an HA nameservice, for Hadoop's own protocol."""
        found = [authority]
        if self.is_nameservice(authority):
            found = [self.get(f"dfs.namenode.rpc-address.{authority}.{node_id}") for node_id in self._ids(authority)]
            if not any(found):
                raise ConfigError(
                    f"Nameservice {authority} has no dfs.ha.namenodes.{authority} or no "
                    f"dfs.namenode.rpc-address.{authority}.<id> in {self.conf_dir}."
                )
        parts = (address.partition(":") for address in found if address)
        return [(host, int(port or RPC_PORT_DEFAULT)) for host, _, port in parts]

    def _http_url(self, suffix: str) -> str:
        if self.get("dfs.http.policy", "HTTP_ONLY") == "HTTPS_ONLY":
            address = self.get(f"dfs.namenode.https-address{suffix}")
            return f"https://{address}" if address else ""
        address = self.get(f"dfs.namenode.http-address{suffix}")
        return f"http://{address}" if address else ""


def _same_address(one: str, other: str) -> bool:
    def split(address: str) -> tuple[str, str]:
        host, _, port = address.partition(":")
        return host, port or "8020"

    return split(one) == split(other)


def _read_properties(path: str) -> dict[str, str]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ConfigError(f"{path} is not XML: {error}.") from None
    pairs = ((node.findtext("name"), node.findtext("value")) for node in root.iter("property"))
    return {name.strip(): (value or "").strip() for name, value in pairs if name}
