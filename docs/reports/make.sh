#!/usr/bin/env bash
# The three reports of this folder again, each from a life of its own: passed, declined, rolled back. Half an hour on two cores.
#   docs/reports/make.sh [passed] [declined] [rolled_back]        without a word: all three
set -euo pipefail
cd "$(dirname "$0")/../.."
within=$PWD/.venv/bin/within out=$PWD/docs/reports data=../shared/data/upworthy_exploratory
lives=$(mktemp -d); trap 'rm -rf "$lives"' EXIT
export WITHIN_CLOCK=replay WITHIN_USER=author@example.com
unset WITHIN_HOME WITHIN_CONFIGS WITHIN_DATABASE_URL MLFLOW_TRACKING_URI

copied() {  # copied HOME NAME: the report of the home's newest run, as one page
    rm -f "$out/$2.html"
    "$within" --home "$1" show "$(ls "$1/runs" | tail -n 1)" --copy "$out/$2.html"
}
passed() { WITHIN_HOME=$lives/passed "$within" demo; copied "$lives/passed" passed; }
declined() {
    test -d "$data" || { echo "declined: the Upworthy archive is not in $data, so its report stays as it is"; return 0; }
    "$within" --home "$lives/declined" ingest configs/sources/upworthy.yml "$data"/*.parquet
    "$within" --home "$lives/declined" retrain ad_score_predictor --set source=upworthy --set minimum_samples=5000
    copied "$lives/declined" declined
}
rolled_back() {
    "$within" rehearse ad_score_predictor --fault latency_creep --keep "$lives/rolled_back"
    copied "$lives/rolled_back/home" rolled_back
}
for name in ${*:-passed declined rolled_back}; do "$name"; done
