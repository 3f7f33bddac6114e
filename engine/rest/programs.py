"""Handlers of uploaded programs (Flink's "jars"): upload, list, delete, plan and run."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.options import CheckpointingOptions, RestOptions
from engine.rest.context import BadRequest, Forbidden, NotFound, RestContext, context_of
from engine.rest.program_runner import ProgramRequest, ProgramRunner, watch_disconnect
from engine.rest.uploads import discard_parts, receive_parts

__all__ = ["ROUTES", "ProgramRunner"]

SUFFIXES: Final = (".py", ".zip", ".whl", ".pyz")
_ID: Final = re.compile(r"[0-9a-f]{32}_[^/\\\0]+")
#: What a run request may say is small; a longer body is a mistake.
BODY_MAX_BYTES: Final = 4 << 20


def _check_enabled(context: RestContext) -> None:
    if not context.gateway.config.get(RestOptions.SUBMIT_ENABLE):
        raise Forbidden("Upload and run of programs is switched off here: web.submit.enable is false.")


def _program_path(request: Request) -> str:
    program_id = request.path_params["jarid"]
    context = context_of(request)
    path = os.path.join(context.programs_dir, program_id)
    if not _ID.fullmatch(program_id) or not os.path.isfile(path):
        raise NotFound(f"Program {program_id} not found; upload it first.")
    return path


def display_name(program_id: str) -> str:
    """Return the name that the file was uploaded under."""
    return program_id.partition("_")[2]


def entries(path: str) -> list[dict[str, str]]:
    """Return what can be named as entry class: console scripts of a wheel, else ``__main__`` of an archive."""
    from configparser import ConfigParser
    from configparser import Error as ConfigParserError
    from zipfile import BadZipFile, ZipFile

    if path.endswith(".py"):
        return []
    found = []
    try:
        with ZipFile(path) as archive:
            for name in archive.namelist():
                if name == "__main__.py":
                    found.append({"name": "__main__", "description": ""})
                elif name.endswith(".dist-info/entry_points.txt"):
                    parser = ConfigParser(delimiters=("=",), interpolation=None)
                    parser.read_string(archive.read(name).decode("utf-8", "replace"))
                    if parser.has_section("console_scripts"):
                        scripts = parser.items("console_scripts")
                        found += [{"name": target.strip(), "description": script} for script, target in scripts]
    except (BadZipFile, OSError, ConfigParserError):
        return found
    return found


# --- upload, list, delete ---------------------------------------------------------------------------------------------


async def list_programs(request: Request) -> Response:
    context = context_of(request)
    _check_enabled(context)
    rows = []
    with os.scandir(context.programs_dir) as found:
        for entry in found:
            if entry.is_file(follow_symlinks=False) and _ID.fullmatch(entry.name):
                rows.append(
                    {
                        "id": entry.name,
                        "name": display_name(entry.name),
                        "uploaded": int(entry.stat().st_mtime * 1000),
                        "entry": entries(entry.path),
                    }
                )
    rows.sort(key=lambda row: (-int(str(row["uploaded"])), str(row["name"])))
    return JSONResponse({"address": context.address, "files": rows})


async def upload_program(request: Request) -> Response:
    context = context_of(request)
    _check_enabled(context)
    parts = await receive_parts(request, context.incoming_dir)
    try:
        part = next((part for part in parts if part.name == "jarfile"), parts[0] if len(parts) == 1 else None)
        if part is None or not part.filename:
            raise BadRequest("The body has no file in the part 'jarfile'.")
        name = clean_name(part.filename)
        _check_program(part.path, name)
        path = os.path.join(context.programs_dir, f"{secrets.token_hex(16)}_{name}")
        os.replace(part.path, path)
    finally:
        discard_parts(parts)
    return JSONResponse({"filename": path, "status": "success"})


def clean_name(filename: str) -> str:
    """Return the last component of what a client calls its file, without characters that could hurt."""
    name = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[^\w.+ -]", "_", name).lstrip(".")[-120:] or "program"


def _check_program(path: str, name: str) -> None:
    from zipfile import is_zipfile

    if name.lower().endswith(".jar"):
        raise BadRequest(
            f"{name} is a Java archive; this engine runs Python programs. Upload a .py, .zip, .whl or .pyz file."
        )
    if not name.endswith(SUFFIXES):
        raise BadRequest(f"{name} is not a program; expected a file that ends with .py, .zip, .whl or .pyz.")
    if not name.endswith(".py") and not is_zipfile(path):
        raise BadRequest(f"{name} is not a zip archive, or it arrived damaged.")


async def delete_program(request: Request) -> Response:
    _check_enabled(context_of(request))
    os.unlink(_program_path(request))
    return JSONResponse({})


# --- run and plan -----------------------------------------------------------------------------------------------------


async def _parameters(request: Request) -> dict[str, Any]:
    """Return the body's fields with the query's laid over them, as in Flink (there the query is the older way)."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise BadRequest(f"The body has more than {BODY_MAX_BYTES} bytes; expected a small JSON object.")
    fields: dict[str, Any] = {}
    if body.strip():
        try:
            decoded = json.loads(bytes(body))
        except ValueError as error:
            raise BadRequest(f"The body is not JSON: {error}") from None
        if not isinstance(decoded, dict):
            raise BadRequest(f"The body is a JSON {type(decoded).__name__}; expected an object.")
        fields.update({key: value for key, value in decoded.items() if value is not None})
    query = request.query_params
    for name, key in (("entry-class", "entryClass"), ("parallelism", "parallelism"), ("program-args", "programArgs")):
        if query.get(name):
            fields[key] = query[name]
    for name in ("savepointPath", "programArgs", "allowNonRestoredState"):
        if query.get(name):
            fields[name] = query[name]
    arguments = [value for text in query.getlist("programArg") for value in text.split(",")]
    if arguments:
        fields["programArgsList"] = arguments
    return fields


def _arguments(fields: dict[str, Any]) -> list[str]:
    listed = fields.get("programArgsList", fields.get("programArg"))
    if isinstance(listed, list):
        return [str(value) for value in listed]
    text = listed if isinstance(listed, str) else fields.get("programArgs", "")
    try:
        return shlex.split(str(text))
    except ValueError as error:
        raise BadRequest(f"programArgs is {text!r}, which cannot be split into arguments: {error}.") from None


def _parallelism(fields: dict[str, Any]) -> int | None:
    value = fields.get("parallelism")
    if value is None:
        return None
    try:
        parallelism = int(value)
    except (TypeError, ValueError):
        parallelism = 0
    if parallelism < 1 or isinstance(value, bool):
        raise BadRequest(f"parallelism is {value!r}; expected a whole number of at least 1.")
    return parallelism


def _restore_configuration(fields: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if fields.get("savepointPath"):
        found[CheckpointingOptions.RESTORE_PATH.key] = str(fields["savepointPath"])
    allow = str(fields.get("allowNonRestoredState", "")).lower()
    if allow not in ("", "true", "false"):
        raise BadRequest(f"allowNonRestoredState is {fields['allowNonRestoredState']!r}; expected true or false.")
    if allow:
        found[CheckpointingOptions.ALLOW_NON_RESTORED.key] = allow
    mode = str(fields.get("claimMode") or fields.get("restoreMode") or "").upper()
    if mode not in ("", "CLAIM", "NO_CLAIM"):
        raise BadRequest(f"claimMode is {mode!r}; expected CLAIM or NO_CLAIM.")
    if mode:
        found[CheckpointingOptions.CLAIM_MODE.key] = mode
    return found


async def _program_request(request: Request, mode: str) -> ProgramRequest:
    context = context_of(request)
    _check_enabled(context)
    path = _program_path(request)
    fields = await _parameters(request)
    configuration = fields.get("flinkConfiguration", {})
    if not isinstance(configuration, dict):
        raise BadRequest("flinkConfiguration is not an object; expected {key: value}.")
    configuration = {str(key): str(value) for key, value in configuration.items()}
    parallelism = _parallelism(fields)
    if parallelism is not None:
        configuration["parallelism.default"] = str(parallelism)
    configuration.update(_restore_configuration(fields))
    if fields.get("jobId"):
        configuration["$internal.pipeline.job-id"] = str(fields["jobId"])
    return ProgramRequest(
        path=path,
        name=display_name(os.path.basename(path)),
        entry=str(fields.get("entryClass", "")),
        arguments=_arguments(fields),
        configuration=configuration,
        mode=mode,
    )


async def run_program(request: Request) -> Response:
    """Answer with the id of the first job that the program submits; the program may go on after that."""
    program = await _program_request(request, "run")
    runner: ProgramRunner = context_of(request).programs
    result = await watch_disconnect(request, runner.run(program))
    return JSONResponse({"jobid": result["job_id"]})


async def plan_program(request: Request) -> Response:
    program = await _program_request(request, "plan")
    runner: ProgramRunner = context_of(request).programs
    result = await watch_disconnect(request, runner.run(program))
    plan = result["plan"]
    if isinstance(plan, str):
        plan = json.loads(plan)
    return JSONResponse({"plan": plan.get("plan", plan) if isinstance(plan, dict) else plan})


ROUTES = [
    Route("/jars", list_programs, methods=["GET"]),
    Route("/jars/upload", upload_program, methods=["POST"]),
    Route("/jars/{jarid}", delete_program, methods=["DELETE"]),
    Route("/jars/{jarid}/plan", plan_program, methods=["GET", "POST"]),
    Route("/jars/{jarid}/run", run_program, methods=["POST"]),
]
