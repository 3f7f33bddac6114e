"""SlotSharingGroup and MemorySize, PyFlink's. Slots have equal resources in this release: only the name counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.config import memory_bytes

__all__ = ["MemorySize", "SlotSharingGroup"]


@dataclass(frozen=True)
class MemorySize:
    bytes_size: int

    @staticmethod
    def of_mebi_bytes(mebi_bytes: int) -> MemorySize:
        return MemorySize(mebi_bytes << 20)

    @staticmethod
    def parse(text: str) -> MemorySize:
        return MemorySize(memory_bytes(text))

    def get_bytes(self) -> int:
        return self.bytes_size

    def get_kibi_bytes(self) -> int:
        return self.bytes_size >> 10

    def get_mebi_bytes(self) -> int:
        return self.bytes_size >> 20

    def get_gibi_bytes(self) -> int:
        return self.bytes_size >> 30

    def get_tebi_bytes(self) -> int:
        return self.bytes_size >> 40


@dataclass(frozen=True)
class SlotSharingGroup:
    """Operators of one group may share slots; of different groups never do."""

    name: str
    cpu_cores: float | None = None
    task_heap_memory: MemorySize | None = None
    task_off_heap_memory: MemorySize | None = None
    managed_memory: MemorySize | None = None
    external_resources: dict[str, float] = field(default_factory=dict, hash=False)

    @staticmethod
    def builder(name: str) -> SlotSharingGroupBuilder:
        return SlotSharingGroupBuilder(name)

    def get_name(self) -> str:
        return self.name

    def get_cpu_cores(self) -> float | None:
        return self.cpu_cores

    def get_task_heap_memory(self) -> MemorySize | None:
        return self.task_heap_memory

    def get_task_off_heap_memory(self) -> MemorySize | None:
        return self.task_off_heap_memory

    def get_managed_memory(self) -> MemorySize | None:
        return self.managed_memory

    def get_external_resources(self) -> dict[str, float]:
        return self.external_resources


class SlotSharingGroupBuilder:
    def __init__(self, name: str) -> None:
        self._name = name
        self._values: dict[str, object] = {}
        self._external: dict[str, float] = {}

    def set_cpu_cores(self, cpu_cores: float) -> SlotSharingGroupBuilder:
        self._values["cpu_cores"] = cpu_cores
        return self

    def _memory(self, name: str, size: MemorySize | int) -> SlotSharingGroupBuilder:
        self._values[name] = size if isinstance(size, MemorySize) else MemorySize.of_mebi_bytes(size)
        return self

    def set_task_heap_memory(self, task_heap_memory: MemorySize) -> SlotSharingGroupBuilder:
        return self._memory("task_heap_memory", task_heap_memory)

    def set_task_heap_memory_mb(self, task_heap_memory_mb: int) -> SlotSharingGroupBuilder:
        return self._memory("task_heap_memory", task_heap_memory_mb)

    def set_task_off_heap_memory(self, task_off_heap_memory: MemorySize) -> SlotSharingGroupBuilder:
        return self._memory("task_off_heap_memory", task_off_heap_memory)

    def set_task_off_heap_memory_mb(self, task_off_heap_memory_mb: int) -> SlotSharingGroupBuilder:
        return self._memory("task_off_heap_memory", task_off_heap_memory_mb)

    def set_managed_memory(self, managed_memory: MemorySize) -> SlotSharingGroupBuilder:
        return self._memory("managed_memory", managed_memory)

    def set_managed_memory_mb(self, managed_memory_mb: int) -> SlotSharingGroupBuilder:
        return self._memory("managed_memory", managed_memory_mb)

    def set_external_resource(self, name: str, value: float) -> SlotSharingGroupBuilder:
        self._external[name] = value
        return self

    def build(self) -> SlotSharingGroup:
        return SlotSharingGroup(self._name, external_resources=self._external, **self._values)  # type: ignore[arg-type]
