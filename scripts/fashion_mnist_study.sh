#!/usr/bin/env bash
# The Fashion-MNIST study: MRL, MRL-E and FF at every granularity, over seeds.
#   bash scripts/fashion_mnist_study.sh
#   SEEDS="0 1" JOBS=2 bash scripts/fashion_mnist_study.sh
# Rows and configs go to results/fashion_mnist/, the tables into the README, figures and page to
# outputs/fashion_mnist/report.  Runs whose rows are there already are skipped (to run all anew,
# remove rows.jsonl first), and a run that was interrupted goes on: the study may be stopped and
# started again, also on another machine.  JOBS runs go side by side (default: one for each CPU,
# with one thread; with a GPU, 4).
. "$(dirname "$0")/setup.sh"

name=fashion_mnist
widths=2,4,8,16,32,64,128
recipe="backbone.widths=[32,64,128] optim.epochs=14"
outputs=outputs/$name
results=results/$name
mkdir -p "$results/configs" "$outputs/logs"
touch "$results/rows.jsonl"
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    jobs=${JOBS:-4}
else
    jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
python scripts/get_data.py

one_run() { # METHOD/RUN OVERRIDE...
    local run=$outputs/$1 log=$outputs/logs/${1/\//-}.log rows=$results/rows.jsonl
    echo "$(date +%H:%M) $run (log: $log)"
    if python train.py "${@:2}" "run_dir=$run" resume=true >>"$log" 2>&1 &&
        rm -f "$run/rows.jsonl" && # of an evaluation that was cut short
        python eval.py "run=$run" >>"$log" 2>&1; then
        # Where this machine keeps the data is nobody else's business.
        sed 's#^  root: .*#  root: data#' "$run/config.yaml" >"$results/configs/${1%/*}.yaml"
        flock "$rows" sh -c 'cat "$1" >>"$2"' - "$run/rows.jsonl" "$rows" # other jobs append, too
    else
        echo "error: $run failed; the end of $log:" >&2
        tail -n 5 "$log" >&2
        return 1
    fi
}
export -f one_run
export outputs results

for seed in ${SEEDS:-0 1 2 3 4}; do
    for kind in mrl mrl_e; do
        echo "$kind/seed$seed experiment=fashion_mnist_$kind head.granularities=[$widths] seed=$seed"
    done
    for m in ${widths//,/ }; do
        echo "ff/m$m-seed$seed experiment=fashion_mnist_ff head.granularities=[$m] seed=$seed"
    done
done | while read -r run overrides; do
    grep -q "\"run\": \"$run\"" "$results/rows.jsonl" || echo "$run $overrides $recipe"
done | xargs -P "$jobs" -L 1 bash -c 'one_run "$@"' -

python scripts/report.py "$results" --out "$outputs/report" \
    --title "MRL on Fashion-MNIST" --readme README.md --name "$name"
cp "$outputs"/report/{accuracy,difference}.png "$results/"
