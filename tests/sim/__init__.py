"""The whole cluster in one thread from one seed: ``python -m tests.sim``. Start reading at ``scenario``.

Real: Dispatcher, ResourceManager, JobMaster, Scheduler, SlotManager, coordinators, TaskExecutor, SlotProcess,
StreamTask, operator chains, gates, partitions, transport with its frames, file sinks. Simulated: time, the wires
between processes, the processes themselves, the file system.
"""
