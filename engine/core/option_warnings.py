"""Warnings and checks over a whole configuration: unknown keys, keys of Flink that nothing acts on yet, bad values.

Not to be confused with ``core/options``, which declares what is read. Pure: callers print or log the lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

from engine.core.config import Configuration
from engine.core.options import FREE_PREFIXES, KNOWN_UNREAD, all_options, known_keys

__all__ = ["NOT_SUPPORTED_YET", "check_values", "key_warnings"]

#: Documented keys of Flink that this release does not act on. Families beyond them: ``options.KNOWN_UNREAD``.
NOT_SUPPORTED_YET: Final[frozenset[str]] = frozenset(
    """
    classloader.resolve-order cluster.evenly-spread-out-slots execution.checkpointing.file-merging.enabled
    execution.checkpointing.interval-during-backlog execution.checkpointing.local-backup.enabled
    historyserver.archive.fs.dir historyserver.archive.fs.refresh-interval
    historyserver.archive.retained-jobs historyserver.web.port jobmanager.execution.failover-strategy
    jobmanager.memory.flink.size jobmanager.memory.heap.size jobmanager.memory.off-heap.size jobmanager.rpc.bind-port
    jobmanager.scheduler kubernetes.cluster-id kubernetes.container.image.ref kubernetes.jobmanager.cpu.amount
    kubernetes.jobmanager.replicas kubernetes.namespace kubernetes.pod-template-file.default
    kubernetes.rest-service.exposed.type kubernetes.service-account kubernetes.taskmanager.cpu.amount
    metrics.internal.query-service.port metrics.latency.granularity metrics.latency.interval metrics.reporters
    metrics.scope.delimiter metrics.scope.operator metrics.scope.task metrics.scope.tm metrics.system-resource
    pipeline.classpaths pipeline.generic-types pipeline.jars python.execution-mode python.fn-execution.arrow.batch.size
    python.fn-execution.bundle.size python.fn-execution.bundle.time python.metric.enabled python.profile.enabled
    python.pythonpath python.state.cache-size rest.profiling.enabled rest.url-prefix
    scheduler-mode security.delegation.tokens.enabled
    security.kerberos.access.hadoopFileSystems security.kerberos.login.contexts security.kerberos.login.keytab
    security.kerberos.login.principal security.kerberos.login.use-ticket-cache security.ssl.internal.enabled
    security.ssl.internal.keystore security.ssl.internal.truststore security.ssl.protocol
    security.ssl.rest.authentication-enabled security.ssl.rest.enabled security.ssl.rest.keystore
    security.ssl.rest.truststore slotmanager.redundant-taskmanager-num sql-client.execution.result-mode
    state.backend.rocksdb.memory.managed state.backend.rocksdb.predefined-options
    state.changelog.enabled table.dml-sync
    table.exec.mini-batch.allow-latency table.exec.mini-batch.enabled table.exec.mini-batch.size
    table.exec.sink.not-null-enforcer table.exec.sink.upsert-materialize table.exec.source.idle-timeout
    table.exec.state.ttl table.local-time-zone table.optimizer.agg-phase-strategy
    table.optimizer.distinct-agg.split.enabled table.plan.force-recompile taskmanager.load-balance.mode
    taskmanager.memory.flink.size taskmanager.memory.framework.heap.size taskmanager.memory.framework.off-heap.size
    taskmanager.memory.jvm-metaspace.size taskmanager.memory.jvm-overhead.fraction taskmanager.memory.jvm-overhead.max
    taskmanager.memory.jvm-overhead.min taskmanager.memory.managed.consumer-weights taskmanager.memory.task.heap.size
    taskmanager.memory.task.off-heap.size taskmanager.network.batch-shuffle.compression.enabled
    taskmanager.network.memory.buffer-debloat.enabled
    taskmanager.network.memory.buffer-debloat.target taskmanager.network.memory.buffers-per-channel
    taskmanager.network.memory.floating-buffers-per-gate taskmanager.rpc.port web.log.path web.rescale.enable
    yarn.application-master.port yarn.application.priority
    yarn.classpath.include-user-jar yarn.container-start-command-template yarn.file-replication yarn.flink-dist-jar
    yarn.heartbeat.container-request-interval
    yarn.provided.lib.dirs yarn.rolled-logs.include-pattern yarn.security.kerberos.localized-keytab-path
    yarn.security.kerberos.ship-local-keytab yarn.taskmanager.node-label
    """.split()  # noqa: SIM905 - one list of words, not 150 lines
)

#: How alike an unknown key must be to a known one of the same family to count as its misspelling.
_TYPO_RATIO: Final = 0.85


def key_warnings(keys: Iterable[str]) -> list[str]:
    """Return one line for each key that has no effect: "not supported yet" for Flink's, else "unknown" with the nearest
    known one."""
    known = known_keys()
    lines = []
    for key in sorted(keys):
        if key in known or key.startswith(FREE_PREFIXES):
            continue
        in_family = key.startswith(KNOWN_UNREAD)
        near = difflib.get_close_matches(key, known | NOT_SUPPORTED_YET, 1, _TYPO_RATIO if in_family else 0.7)
        if key in NOT_SUPPORTED_YET or (in_family and not near):
            lines.append(f"Configuration key {key} is not supported yet and has no effect.")
        else:
            hint = f" Did you mean {near[0]}?" if near else ""
            lines.append(f"Configuration key {key} is unknown and has no effect.{hint}")
    return lines


def check_values(config: Configuration) -> None:
    """Parse every known option once, so that a bad value is told before anything is started.

    Raises: ConfigError that names key, value and expectation.
    """
    for option in all_options():
        config.get(option)
