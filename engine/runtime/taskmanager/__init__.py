"""engine.runtime.taskmanager — see docs/ARCHITECTURE.md."""
