"""Describes one attempt for the slot that is to run it: what it reads, from where, and what it produces.

Pure. Not here: when an attempt is deployed and in which slot (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.graph.execution_graph import ExecutionGraph, ExecutionVertex, SlotGrant, channels_of, num_subpartitions
from engine.graph.job_graph import JobEdge
from engine.protocol.control import (
    InputChannelDescriptor,
    InputGateDescriptor,
    ResultPartitionDescriptor,
    TaskDeployment,
)

__all__ = ["task_deployment"]


def task_deployment(
    graph: ExecutionGraph, subtask: ExecutionVertex, grant_of: Callable[[ExecutionVertex], SlotGrant]
) -> TaskDeployment:
    """Return the current attempt of ``subtask`` as its slot needs it; ``grant_of`` tells where producers are."""
    attempt, vertex = subtask.current, subtask.job_vertex
    links = graph.vertices[vertex.vertex_id]
    return TaskDeployment(
        job_id=graph.job_graph.job_id,
        job_name=graph.job_graph.name,
        attempt_id=attempt.attempt_id,
        vertex_id=vertex.vertex_id,
        vertex_name=vertex.name,
        subtask_index=subtask.subtask_index,
        parallelism=vertex.parallelism,
        max_parallelism=vertex.max_parallelism,
        attempt_number=attempt.attempt_number,
        chain=vertex.chain,
        gates=tuple(_gate(graph, edge, subtask, grant_of) for edge in links.inputs),
        partitions=tuple(
            _partition(graph, edge, subtask) for edge in sorted(links.outputs, key=lambda edge: edge.exit_index)
        ),
    )


def _gate(
    graph: ExecutionGraph, edge: JobEdge, consumer: ExecutionVertex, grant_of: Callable[[ExecutionVertex], SlotGrant]
) -> InputGateDescriptor:
    producers = graph.vertices[edge.source_id].subtasks
    channels = channels_of(edge, len(producers), consumer.job_vertex.parallelism, consumer.subtask_index)
    return InputGateDescriptor(
        edge.input_index,
        edge.dataset_id,
        tuple(
            InputChannelDescriptor(
                graph.partition_id(edge.dataset_id, producers[index]), subpartition, grant_of(producers[index]).address
            )
            for index, subpartition in channels
        ),
    )


def _partition(graph: ExecutionGraph, edge: JobEdge, producer: ExecutionVertex) -> ResultPartitionDescriptor:
    num_consumers = len(graph.vertices[edge.target_id].subtasks)
    return ResultPartitionDescriptor(
        graph.partition_id(edge.dataset_id, producer),
        edge.dataset_id,
        num_subpartitions(edge, producer.subtask_index, producer.job_vertex.parallelism, num_consumers),
        edge.blocking,
        edge.buffer_timeout_ms,
        max_parallelism=graph.vertices[edge.target_id].job_vertex.max_parallelism,
    )
