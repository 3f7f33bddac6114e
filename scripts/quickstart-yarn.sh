#!/usr/bin/env bash
# Called by quickstart.sh --yarn: a Hadoop of its own, a session, two jobs, and everything down again.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
python="$root/.venv/bin/python"
for tool in java mvn; do
  command -v "$tool" >/dev/null || { echo "--yarn needs $tool (Debian: openjdk-17-jre-headless, maven). Install it and run this again." >&2; exit 1; }
done
work="$(mktemp -d "${TMPDIR:-/tmp}/engine-quickstart-XXXXXX")"
session=""

finish() {
  status=$?
  trap - EXIT
  # PATH and HADOOP_CONF_DIR of the cluster are set once env.sh has been read
  [ -z "$session" ] || echo stop | "$root/scripts/yarn-session.sh" -id "$session" >/dev/null 2>&1 || true
  "$python" "$root/hadoop-docker/cluster.py" down --dir "$work/hadoop" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { echo "\$ $*"; "$@"; }

say "A real Hadoop: NameNode, DataNode, ResourceManager, two NodeManagers"
"$python" "$root/hadoop-docker/cluster.py" install
"$python" "$root/hadoop-docker/cluster.py" up --dir "$work/hadoop" --datanodes 1 --nodemanagers 2
# shellcheck disable=SC1091
. "$work/hadoop/env.sh"
export PATH="$root/.venv/bin:$root/scripts:$PATH"
export FLINK_PYTHON="$python" SKEIN_CONFIG="$work/skein"
properties="$work/properties"
mkdir -p "$properties"
run hdfs dfs -mkdir -p /quickstart
run hdfs dfs -put "$root/examples/data/hamlet.txt" /quickstart/hamlet.txt

say "A session of two TaskManagers with two slots each"
run yarn-session.sh -n 2 -s 2 -jm 1024 -tm 1024 -nm quickstart -d -Dyarn.properties-file.location="$properties" | tee "$work/session.log"
session="$(grep -o 'application_[0-9]*_[0-9]*' "$work/session.log" | head -n 1)"

say "flink run, in the session"
run flink run -Dyarn.properties-file.location="$properties" -p 2 "$root/examples/stream_word_count.py" \
  --input hdfs:///quickstart/hamlet.txt --output hdfs:///quickstart/stream-counts
echo "Most frequent words of the stream's last updates:"
hdfs dfs -cat '/quickstart/stream-counts/*' | tr -d '()' | sort -t, -k1,1 -k2,2nr | sort -t, -k1,1 -u | sort -t, -k2,2nr | awk 'NR <= 5'

say "flink run -m yarn-cluster: one application for one job"
run flink run -m yarn-cluster -ys 2 -yjm 1024 -ytm 1024 -ynm "quickstart word count" -p 2 "$root/examples/word_count.py" \
  --input hdfs:///quickstart/hamlet.txt --output hdfs:///quickstart/batch-counts
hdfs dfs -cat /quickstart/batch-counts | sort -k2,2nr | awk 'NR <= 5'

say "Done: both ways gave their counts on HDFS."
