#!/bin/sh
# Send the events of an NDJSON file with curl: KEY=ig_... send.sh URL FILE
#
# curl repeats the request, with the one Idempotency-Key, when there is no answer and at 5xx. The status decides how it
# ends: 0 stored, 1 refused or no answer.
set -eu
key=$(cat /proc/sys/kernel/random/uuid)
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
attempt=0
while :; do
    # the API key comes on standard input, since every user of the machine can read a command line
    status=$(printf 'header = "Authorization: Bearer %s"' "$KEY" | curl --config - --silent --output "$answer" \
        --write-out '%{http_code}' --max-time 35 --header "Idempotency-Key: $key" \
        --header 'Content-Type: application/x-ndjson' --data-binary "@$2" "$1") || status=000
    attempt=$((attempt + 1))
    case $status in
        200) cat "$answer"; exit 0 ;;
        000 | 408 | 500 | 502 | 503 | 504) [ "$attempt" -lt 10 ] || break ;;
        *) break ;;
    esac
    sleep "$attempt"
done
echo "send.sh: not stored, $status: $(cat "$answer")" >&2
exit 1
