#!/usr/bin/env bash
# The three reports of this folder again, each from a life of its own: passed, declined, rolled back. Half an hour on two cores.
#   docs/reports/make.sh [passed] [declined] [rolled_back]        without a word: all three
# Pictures of the first screens are made where Chromium is installed, and stay as they are where it is not.
set -euo pipefail
cd "$(dirname "$0")/../.."
within=$PWD/.venv/bin/within data=../shared/data/upworthy_exploratory
lives=$(mktemp -d); trap 'rm -rf "$lives"' EXIT
out=$lives/out; mkdir "$out"   # brought here at the end: a report says whether the checkout was changed while it ran
export WITHIN_CLOCK=replay WITHIN_USER=author@example.com
unset WITHIN_HOME WITHIN_CONFIGS WITHIN_DATABASE_URL MLFLOW_TRACKING_URI

copied() {  # copied HOME NAME: the report of the home's newest run, as one page, and a picture of its first screen
    "$within" --home "$1" show "$(ls "$1/runs" | tail -n 1)" --copy "$out/$2.html"
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    test -z "$browser" || "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$lives/browser" \
        --window-size=1280,900 --screenshot="$out/$2.png" "file://$out/$2.html" 2>"$lives/browser.log"
}
passed() { WITHIN_HOME=$lives/passed "$within" demo; copied "$lives/passed" passed; }
declined() {
    test -d "$data" || { echo "declined: the Upworthy archive is not in $data, so its report stays as it is"; return 0; }
    "$within" --home "$lives/declined" ingest configs/sources/upworthy.yml "$data"/*.parquet
    "$within" --home "$lives/declined" retrain ad_score_predictor --set source=upworthy --set minimum_samples=5000
    copied "$lives/declined" declined
}
rolled_back() { WITHIN_HOME=$lives/rolled_back "$within" demo --scale 0.25 --fault latency_creep; copied "$lives/rolled_back" rolled_back; }
for name in ${*:-passed declined rolled_back}; do "$name"; done
find "$out" -type f -exec mv -v {} docs/reports/ ';'   # nothing is there when only `declined` was asked for and has no data
