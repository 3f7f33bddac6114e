"""File formats where a PyFlink program looks for them: ``parquet``, ``csv``, ``json``."""
