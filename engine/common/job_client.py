"""JobClient, where a PyFlink program looks for it."""

from engine.client.job_client import JobClient

__all__ = ["JobClient"]
