"""engine.rpc — see docs/ARCHITECTURE.md."""
