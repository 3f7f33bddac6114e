"""engine.operators — see docs/ARCHITECTURE.md."""
