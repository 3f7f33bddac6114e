#!/bin/bash
# For people: hadoop-docker/cluster.sh up|down|status|... [options]; the folder is ./hadoop-cluster, or $HADOOP_CLUSTER_DIR,
# unless --dir says another. All of the work is in cluster.py, and `cluster.py COMMAND --help` lists the options.
set -eu
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "cluster.sh: needs Python 3.11 or newer, '$python' is not one; set PYTHON to one that is" >&2
  exit 3
fi
[ $# -gt 0 ] || set -- --help
case "$1 $*" in
  install* | -* | *\ --dir* | *\ -h | *\ --help) exec "$python" "$here/cluster.py" "$@" ;;
  *) exec "$python" "$here/cluster.py" "$@" --dir "${HADOOP_CLUSTER_DIR:-$PWD/hadoop-cluster}" ;;
esac
