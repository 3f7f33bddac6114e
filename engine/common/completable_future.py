"""CompletableFuture, where a PyFlink program looks for it."""

from engine.client.job_client import CompletableFuture

__all__ = ["CompletableFuture"]
