#!/bin/bash
# What a training machine does at boot, run once by cloud-init as root.
# TrainStack puts the exports of BUCKET, GROUP_NAME, … in front. Everything with logic is
# in training/spot.py; here is only what has to work before, and when, Python does not.
set -euo pipefail # no -E: the trap below is for this shell alone, not for its $(…)
work="${WORK:-/opt/bin-counter}"
mkdir -p "$work/code" "$work/wheels"
cd "$work"
exec > >(tee -a boot.log) 2>&1

# Powering off alone does not stop the spending: the group would start the next machine.
# When the call is refused, keep asking; the booked action of the launcher ends it otherwise.
stop_spending() {
  echo "boot: nothing more to do here, group to 0"
  aws s3 cp --only-show-errors boot.log "s3://$BUCKET/runs/${run_id:-none}/boot.log" || true
  until aws autoscaling set-desired-capacity --auto-scaling-group-name "$GROUP_NAME" --desired-capacity 0; do
    sleep 60
  done
  shutdown -h now
  exit
}
trap stop_spending ERR

echo "boot: $(date -u +%FT%TZ)"
aws s3 cp --only-show-errors "s3://$BUCKET/control/current.json" current.json
field() { python3 -c 'import json, sys; print(json.load(open("current.json"))[sys.argv[1]])' "$1"; }
run_id=$(field run_id)
runtime=$(field runtime)

echo "boot: run $run_id, code and wheels"
command -v python3.11 > /dev/null || dnf install -y -q python3.11 python3.11-pip
aws s3 cp --only-show-errors "s3://$BUCKET/runs/$run_id/code.tar.gz" code.tar.gz
tar -xzf code.tar.gz -C code
aws s3 cp --only-show-errors --recursive "s3://$BUCKET/$runtime" wheels
python3.11 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes \
  --find-links wheels --target runtime --requirement wheels/requirements.txt

echo "boot: training"
export PYTHONPATH="$work/runtime:$work/code"
code=0
python3.11 -m training.spot --work "$work" || code=$?
if [ "$code" -eq 75 ]; then # EX_TEMPFAIL: another machine goes on with this run
  echo "boot: leaving the run to the next machine"
  shutdown -h now
  exit
fi
stop_spending
