"""Handlers of the cluster: overview, configuration, shut down, and the JobManager's own logs."""

from __future__ import annotations

import sys

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.options import ClusterOptions
from engine.rest import cluster_views
from engine.rest.context import NotFound, context_of, integer_parameter
from engine.rest.logs import file_answer, list_logs, own_log, own_stdout

__all__ = ["ROUTES"]


async def get_overview(request: Request) -> Response:
    return JSONResponse(cluster_views.overview(context_of(request).gateway.overview()))


async def get_config(request: Request) -> Response:
    context = context_of(request)
    gateway = context.gateway
    return JSONResponse(
        cluster_views.dashboard_configuration(gateway.config, gateway.rest_extras(), context.clock.now_ms())
    )


async def shut_down(request: Request) -> Response:
    await context_of(request).gateway.shut_down_cluster()
    return JSONResponse({})


async def get_jobmanager_config(request: Request) -> Response:
    return JSONResponse(cluster_views.configuration(context_of(request).gateway.config))


async def get_jobmanager_environment(request: Request) -> Response:
    """Flink's names; what a JVM is there is the Python interpreter here."""
    return JSONResponse(
        {
            "jvm": {
                "version": f"{sys.implementation.name} {sys.version}",
                "arch": sys.platform,
                "options": [],
            },
            "classpath": [path for path in sys.path if path],
        }
    )


async def get_leaders(request: Request) -> Response:
    """Who has led this cluster, newest first; not in Flink."""
    leaders = context_of(request).gateway.leaders
    return JSONResponse({"leaders": [cluster_views.leader(one) for one in reversed(leaders)]})


def _log_dir(request: Request) -> str:
    """Return the folder of log files: what the gateway says, else what the configuration says."""
    gateway = context_of(request).gateway
    folder = gateway.log_dir or gateway.config.get(ClusterOptions.LOG_DIR)
    if not folder:
        raise NotFound(
            "This JobManager writes no log files; its log goes to its terminal. Set env.log.dir to have files."
        )
    return folder


def _tail(request: Request) -> int:
    """The dashboard shows the end of a log and must not load all of a large one; not in Flink."""
    return integer_parameter(request, "tail", 0, 1)


async def get_jobmanager_logs(request: Request) -> Response:
    gateway = context_of(request).gateway
    if not (gateway.log_dir or gateway.config.get(ClusterOptions.LOG_DIR)):
        return JSONResponse({"logs": []})
    return JSONResponse({"logs": list_logs(_log_dir(request))})


async def get_jobmanager_log_file(request: Request) -> Response:
    return file_answer(_log_dir(request), request.path_params["filename"], _tail(request))


async def get_jobmanager_log(request: Request) -> Response:
    folder = _log_dir(request)
    return file_answer(folder, own_log(folder), _tail(request))


async def get_jobmanager_stdout(request: Request) -> Response:
    folder = _log_dir(request)
    return file_answer(folder, own_stdout(folder), _tail(request))


ROUTES = [
    Route("/overview", get_overview),
    Route("/config", get_config),
    Route("/cluster", shut_down, methods=["DELETE"]),
    Route("/jobmanager/config", get_jobmanager_config),
    Route("/jobmanager/environment", get_jobmanager_environment),
    Route("/jobmanager/leaders", get_leaders),
    Route("/jobmanager/log", get_jobmanager_log),
    Route("/jobmanager/stdout", get_jobmanager_stdout),
    Route("/jobmanager/logs", get_jobmanager_logs),
    Route("/jobmanager/logs/{filename}", get_jobmanager_log_file),
]
