"""Checkpoints and savepoints: who decides (``coordinator``), what is kept (``store``), where it lies (``storage``)."""
