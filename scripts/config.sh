# The part that all scripts share; sourced, never run. Finds Python and the configuration, starts and stops daemons.
# shellcheck shell=bash disable=SC2153 # FLINK_PID_DIR comes from read_settings
#
# Environment: FLINK_CONF_DIR, FLINK_LOG_DIR, FLINK_PID_DIR (default /tmp), FLINK_IDENT_STRING (default: the user),
# FLINK_PYTHON, FLINK_SSH (default ssh), FLINK_SSH_OPTS, FLINK_LOG_LEVEL (default: env.log.level, conf/log.properties).

FLINK_BIN_DIR=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
FLINK_HOME=$(dirname "$FLINK_BIN_DIR")
FLINK_IDENT_STRING=${FLINK_IDENT_STRING:-${USER:-$(id -un)}}
HOSTNAME=${HOSTNAME:-$(hostname)}
# What a daemon on another host must be told, as far as it was set for this one.
FLINK_FORWARDED=()
for name in FLINK_CONF_DIR FLINK_LOG_DIR FLINK_PID_DIR FLINK_IDENT_STRING FLINK_PYTHON FLINK_LOG_LEVEL; do
    [[ -n ${!name:-} ]] && FLINK_FORWARDED+=("$name=${!name}")
done
export PYTHONPATH=$FLINK_HOME${PYTHONPATH:+:$PYTHONPATH}

has_engine() {
    "$1" -c 'import sys, importlib.util as u
sys.exit(not (sys.version_info >= (3, 11) and all(map(u.find_spec, ("engine", "cloudpickle", "grpc", "pyarrow")))))' \
        >/dev/null 2>&1
}

# Sets FLINK_PYTHON to an interpreter that has the engine and what it needs.
find_python() {
    if [[ -n ${FLINK_PYTHON:-} ]]; then
        command -v "$FLINK_PYTHON" >/dev/null && export FLINK_PYTHON && return
        echo "ERROR: FLINK_PYTHON is '$FLINK_PYTHON', which is no program; set it to a Python 3.11+ with the engine." >&2
        exit 1
    fi
    for FLINK_PYTHON in "$FLINK_HOME/.venv/bin/python" python3 python; do
        command -v "$FLINK_PYTHON" >/dev/null && has_engine "$FLINK_PYTHON" && export FLINK_PYTHON && return
    done
    echo "ERROR: No Python 3.11+ with the engine's packages found: neither $FLINK_HOME/.venv nor python3 has them." >&2
    echo "Run scripts/quickstart.sh once, or 'pip install $FLINK_HOME', or set FLINK_PYTHON." >&2
    exit 1
}

# Sets FLINK_EFFECTIVE_CONF_DIR, folders and host lists; ends with the reason when the configuration is bad.
read_settings() {
    local assignments
    assignments=$("$FLINK_PYTHON" -m flink_yarn.cli_script_settings "$@") || exit 1
    eval "$assignments"
    FLINK_LOG_DIR=${FLINK_LOG_DIR:-$FLINK_HOME/log}
    export FLINK_LOG_LEVEL
}

is_local() {
    case $1 in
        localhost | 127.0.0.1 | ::1 | "$HOSTNAME" | "$(hostname)") return 0 ;;
    esac
    return 1
}

# run_on_host HOST SCRIPT ARGUMENT…
run_on_host() {
    local host=$1 script=$2
    shift 2
    if is_local "$host"; then
        "$FLINK_BIN_DIR/$script" "$@"
    else
        "${FLINK_SSH:-ssh}" -n "${FLINK_SSH_OPTS[@]}" "$host" -- \
            "$(printf '%q ' env "${FLINK_FORWARDED[@]}" /bin/bash -l "$FLINK_BIN_DIR/$script" "$@")"
    fi
}

# run_on_hosts HOST… -- SCRIPT ARGUMENT…: other hosts at the same time, this one in turn. Fails if any host failed.
run_on_hosts() {
    local hosts=() jobs=() failed=0 host
    while [[ $1 != -- ]]; do
        hosts+=("$1")
        shift
    done
    shift
    for host in "${hosts[@]}"; do
        if is_local "$host"; then
            run_on_host "$host" "$@" || failed=1
        else
            { run_on_host "$host" "$@" || { echo "ERROR: '$1' on host $host failed." >&2 && false; }; } &
            jobs+=($!)
        fi
    done
    for host in "${jobs[@]}"; do
        wait "$host" || failed=1
    done
    return $failed
}

# A pid counts only while it belongs to one of our daemons: numbers are used again.
is_running() {
    [[ $1 =~ ^[0-9]+$ ]] && kill -0 "$1" 2>/dev/null && grep -qz '^engine\.cluster$' "/proc/$1/cmdline" 2>/dev/null
}

count_running() {
    local count=0 pid
    while read -r pid; do
        is_running "$pid" && count=$((count + 1))
    done < <(cat "$1" 2>/dev/null)
    echo "$count"
}

# What a daemon of before has written makes room, as it does when the file has its full size (env.log.max).
rotate() {
    local i
    [[ -s $1 ]] || return 0
    for ((i = FLINK_LOG_MAX - 1; i > 0; i--)); do
        [[ -e $1.$i ]] && mv -f "$1.$i" "$1.$((i + 1))"
    done
    mv -f "$1" "$1.1"
}

# start_daemon DAEMON ROLE ARGUMENT…
start_daemon() {
    local daemon=$1 role=$2 pid_file=$FLINK_PID_DIR/flink-$FLINK_IDENT_STRING-$1.pid
    shift 2
    if ! mkdir -p "$FLINK_LOG_DIR" "$FLINK_PID_DIR" || [[ ! -w $FLINK_LOG_DIR || ! -w $FLINK_PID_DIR ]]; then
        echo "ERROR: Cannot write to $FLINK_LOG_DIR or $FLINK_PID_DIR; set FLINK_LOG_DIR and FLINK_PID_DIR." >&2
        return 1
    fi
    # Two starts at the same time must not take the same number or lose a line of the pid file.
    exec 9<"$FLINK_BIN_DIR/config.sh"
    flock 9
    local running id prefix
    running=$(count_running "$pid_file")
    id=0
    [[ -f $pid_file ]] && id=$(wc -l <"$pid_file")
    prefix=$FLINK_LOG_DIR/flink-$FLINK_IDENT_STRING-$daemon-$id-$HOSTNAME
    [[ $running -gt 0 ]] && echo "[INFO] $running instance(s) of $daemon are already running on $HOSTNAME."
    echo "Starting $daemon daemon on host $HOSTNAME."
    rotate "$prefix.log"
    rotate "$prefix.out"
    setsid nohup "$FLINK_PYTHON" -m engine.cluster "$role" --log-file "$prefix.log" "$@" \
        >"$prefix.out" 2>&1 </dev/null 9<&- &
    local pid=$!
    echo "$pid" >>"$pid_file"
    exec 9<&-
    await_start "$daemon" "$pid" "$pid_file" "$prefix"
}

# Wait until the daemon's log says that it is up; one that dies first (port in use…) is an error with its last words.
await_start() {
    local daemon=$1 pid=$2 pid_file=$3 prefix=$4 i
    # A log level that hides these lines costs the wait, no more.
    for ((i = 0; i < 100; i++)); do
        grep -qE 'Rest endpoint listening at| registered at |cannot register yet' "$prefix.log" 2>/dev/null && return 0
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "ERROR: The $daemon daemon on host $HOSTNAME ended at once:" >&2
            if [[ -s $prefix.out ]]; then tail -n 20 "$prefix.out" >&2; else tail -n 3 "$prefix.log" >&2; fi
            echo "See $prefix.log and $prefix.out." >&2
            drop_pid "$pid" "$pid_file"
            return 1
        fi
        sleep 0.1
    done
}

drop_pid() {
    exec 9<"$FLINK_BIN_DIR/config.sh"
    flock 9
    if [[ -f $2 ]]; then
        grep -vx "$1" "$2" >"$2.tmp"
        if [[ -s $2.tmp ]]; then mv "$2.tmp" "$2"; else rm -f "$2" "$2.tmp"; fi
    fi
    exec 9<&-
}

# End a process and wait for its end, so that its ports are free when this returns.
end_process() {
    local i
    kill "$1" 2>/dev/null
    for ((i = 0; i < 300; i++)); do
        is_running "$1" || return 0 # unlike kill -0, this does not wait for init to bury the process
        sleep 0.05
    done
    kill -KILL "$1" 2>/dev/null
}

# stop_daemon DAEMON: the one that was started last.
stop_daemon() {
    local daemon=$1 pid_file=$FLINK_PID_DIR/flink-$FLINK_IDENT_STRING-$1.pid pid
    pid=$(tail -n 1 "$pid_file" 2>/dev/null)
    if [[ -z $pid ]]; then
        echo "No $daemon daemon to stop on host $HOSTNAME."
        return 0
    fi
    if is_running "$pid"; then
        echo "Stopping $daemon daemon (pid: $pid) on host $HOSTNAME."
        end_process "$pid"
    else
        echo "No $daemon daemon (pid: $pid) is running anymore on $HOSTNAME."
    fi
    drop_pid "$pid" "$pid_file"
}

stop_all_daemons() {
    local daemon=$1 pid_file=$FLINK_PID_DIR/flink-$FLINK_IDENT_STRING-$1.pid pid
    if [[ ! -s $pid_file ]]; then
        echo "No $daemon daemon to stop on host $HOSTNAME."
        return 0
    fi
    local pids
    mapfile -t pids <"$pid_file"
    for pid in "${pids[@]}"; do
        if is_running "$pid"; then
            echo "Stopping $daemon daemon (pid: $pid) on host $HOSTNAME."
            end_process "$pid"
        else
            echo "Skipping $daemon daemon (pid: $pid), because it is not running anymore on $HOSTNAME."
        fi
        drop_pid "$pid" "$pid_file"
    done
}

# Sets DYNAMIC (-D key=value …), PROPERTIES (key=value …) and POSITIONAL from the arguments of a daemon script.
split_arguments() {
    DYNAMIC=() PROPERTIES=() POSITIONAL=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            -D)
                [[ $# -gt 1 ]] || { echo "ERROR: -D needs a value: -D key=value." >&2 && exit 1; }
                PROPERTIES+=("$2")
                shift
                ;;
            -D?*) PROPERTIES+=("${1#-D}") ;;
            -*)
                echo "ERROR: Unknown option $1; options are -D key=value." >&2
                exit 1
                ;;
            *) POSITIONAL+=("$1") ;;
        esac
        shift
    done
    local property
    for property in "${PROPERTIES[@]}"; do
        DYNAMIC+=(-D "$property")
    done
}

# daemon_script DAEMON ROLE USAGE ACTION ARGUMENT…: what jobmanager.sh and taskmanager.sh do once they know their words.
daemon_script() {
    local daemon=$1 role=$2 usage=$3 action=$4
    shift 4
    find_python
    case $action in
        start | start-foreground)
            read_settings "${PROPERTIES[@]}"
            [[ -n $FLINK_EFFECTIVE_CONF_DIR ]] && set -- --configDir "$FLINK_EFFECTIVE_CONF_DIR" "$@"
            if [[ $action == start ]]; then
                start_daemon "$daemon" "$role" "$@" "${DYNAMIC[@]}"
            else
                exec "$FLINK_PYTHON" -m engine.cluster "$role" "$@" "${DYNAMIC[@]}"
            fi
            ;;
        stop | stop-all)
            read_settings 2>/dev/null
            if [[ $action == stop ]]; then stop_daemon "$daemon"; else stop_all_daemons "$daemon"; fi
            ;;
        *)
            echo "$usage" >&2
            return 1
            ;;
    esac
}
