"""JobExecutionResult, where a PyFlink program looks for it."""

from engine.client.job_client import JobExecutionResult

__all__ = ["JobExecutionResult"]
