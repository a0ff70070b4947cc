#!/usr/bin/env bash
# Submits the rounds that did not fit into the queue, once those before have ended. `lth submit --max-submitted` sends it.
#
#   sbatch --dependency=afterany:... chain.sh RUN --max-submitted=... --only round=...
run=$1
shift
lth=() # how to call it is said by
# shellcheck source=/dev/null
. "$run/submit/site.sh"
exec "${lth[@]}" submit "$run/config.yaml" --out "$run" --cluster "$run/submit/cluster.yaml" "$@"
