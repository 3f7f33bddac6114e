"""engine.formats — see docs/ARCHITECTURE.md."""
