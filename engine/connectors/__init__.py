"""engine.connectors — see docs/ARCHITECTURE.md."""
