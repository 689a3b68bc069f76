#!/usr/bin/env bash
# Kills a run at random steps, lets it go on each time, and compares its end with that of a run that
# was left alone: they must be the same, bit for bit. On a CPU; about 6 minutes on 2 cores.
#   bash scripts/stress_resume.sh [OVERRIDE...]      KILLS=5 SEED=1 OUT=... bash scripts/stress_resume.sh
# Arguments are overrides for both runs. Signals in turn: KILL, TERM, USR1, INT.
. "$(dirname "$0")/setup.sh"

kills=${KILLS:-20}
RANDOM=${SEED:-0} # the same steps for the same seed
out=${OUT:-outputs/stress_resume}
recipe=(experiment=fashion_mnist_mrl "backbone.widths=[16,32,64]" "head.granularities=[2,8,64]"
    optim.epochs=2 optim.warmup_epochs=0.5 optim.ema=0.99 optim.mixup=0.2 head.sampled=2
    save.every=10 save.best=true device=cpu "$@" tracking.log_every=1 resume=true)
export OMP_NUM_THREADS=1
rm -rf "$out"
mkdir -p "$out"

train() { # NAME: its process becomes the run itself, to be killed
    exec python train.py "${recipe[@]}" "run_dir=$out/$1" >>"$out/$1.log" 2>&1
}

fail() { # MESSAGE NAME
    echo "error: $1; the end of $out/$2.log:" >&2
    tail -n 5 "$out/$2.log" >&2
    exit 1
}

last_step() { # of the killed run, as far as it is written down
    tail -n 1 "$out/killed/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": \([0-9]*\).*/\1/p'
}

if [[ " $*" != *" data="* ]]; then
    python scripts/get_data.py
fi
set -m # or the run would never see INT
trap 'kill -KILL "$run" 2>/dev/null || true' EXIT
run=
start=$SECONDS
(train straight) || fail "the run that was left alone failed" straight
total=$(tail -n 1 "$out/straight/metrics.jsonl" | sed 's/.*"step": \([0-9]*\).*/\1/')
echo "left alone: $total steps in $((SECONDS - start)) s; now with $kills kills, seed ${SEED:-0}"

signals=(KILL TERM USR1 INT)
mapfile -t steps < <(for ((i = 0; i < kills; i++)); do
    echo $((RANDOM % (total * 19 / 20) + 1))
done | sort -n)
for ((i = 0; i < kills; i++)); do
    train killed &
    run=$!
    until [ "$(last_step || true)" -ge "${steps[i]}" ] 2>/dev/null; do
        kill -0 "$run" 2>/dev/null || fail "it ended before step ${steps[i]}" killed
        sleep 0.02
    done
    sleep "0.0$((RANDOM % 10))" # somewhere within a step
    kill "-${signals[i % 4]}" "$run"
    code=0
    wait "$run" 2>/dev/null || code=$?
    echo "kill $((i + 1)) of $kills: ${signals[i % 4]} after step ${steps[i]}, exit code $code"
done
(train killed) || fail "the run did not finish" killed
echo "killed $kills times and finished in $((SECONDS - start)) s, both runs together"
python scripts/compare_checkpoints.py "$out/straight" "$out/killed"
