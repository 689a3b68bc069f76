#!/usr/bin/env bash
# The whole of the project in ten minutes on a laptop: fetch Fashion-MNIST, train MRL, MRL-E and
# independent baselines, evaluate them, and compare them in outputs/quickstart/report.html.
# It may be run again: what is finished is not done twice.
# Arguments are overrides for every run, as in: bash scripts/quickstart.sh optim.epochs=5
. "$(dirname "$0")/setup.sh"

out=${OUT:-outputs/quickstart}
# A narrower and shorter version of the study's recipe (scripts/fashion_mnist_study.sh).
small=("backbone.widths=[16,32,64]" optim.epochs=3 optim.warmup_epochs=0.5 "$@" resume=true)
nested="head.granularities=[2,4,8,16,32,64]"
runs=()

as_text() { # PATH: in the quotes that Hydra needs around some signs
    case $1 in
    *[!A-Za-z0-9_./-]*) printf '"%s"' "${1//\"/\\\"}" ;;
    *) printf %s "$1" ;;
    esac
}

python_shown() { # SCRIPT OVERRIDE...: also prints the command as it may be typed
    local word
    printf '\n+ python'
    for word; do
        case $word in *[!][A-Za-z0-9_.,/=-]*) printf -v word %q "$word" ;; esac
        printf ' %s' "$word"
    done
    echo
    python "$@"
}

train() { # NAME OVERRIDE...
    local run=$out/$1
    python_shown train.py "${@:2}" "${small[@]}" "run_dir=$(as_text "$run")"
    runs+=("$run")
}

case " $*" in
*" data="*) ;;
*)
    echo "== Fashion-MNIST =="
    python scripts/get_data.py
    ;;
esac

echo
echo "== training =="
train mrl experiment=fashion_mnist_mrl "$nested"
train mrl_e experiment=fashion_mnist_mrl_e "$nested"
for m in 2 4 16 64; do
    train "ff_$m" experiment=fashion_mnist_ff "head.granularities=[$m]"
done

echo
echo "== evaluation: linear classifiers and 1-NN, at every granularity and in between =="
for run in "${runs[@]}"; do
    if [ "$run/rows.jsonl" -nt "$run/checkpoint.pt" ]; then
        printf '\ndone before: %s\n' "$run/rows.jsonl"
    else
        python_shown eval.py "run=$(as_text "$run")"
    fi
done

echo
echo "== comparison =="
python scripts/report.py "$out" --out "$out" --title "Quickstart: MRL on Fashion-MNIST"

cat <<TEXT

Made:
  $(realpath "$out")/report.html   the page to open: tables, figures, configs
  $out/table.md, table.csv, rows.csv, accuracy.png, difference.png
  $out/mrl, mrl_e, ff_*   one run each: checkpoint.pt, metrics.jsonl, rows.jsonl
Three epochs of a small network, one seed: the README has a study over five seeds.

Next:
  python -c 'import mrl; print(mrl.load_model("$out/mrl"))'
  python train.py experiment=fashion_mnist_mrl optim.epochs=4       # a wider network
  python train.py -m experiment=fashion_mnist_mrl seed=0,1,2        # a sweep
  bash scripts/fashion_mnist_study.sh                               # five seeds (shown in the README)
(first: source .venv/bin/activate)
TEXT
