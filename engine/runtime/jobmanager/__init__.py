"""engine.runtime.jobmanager — see docs/ARCHITECTURE.md."""
