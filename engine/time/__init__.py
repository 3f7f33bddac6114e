"""engine.time — see docs/ARCHITECTURE.md."""
