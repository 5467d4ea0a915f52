#!/bin/sh
# Send the events of an NDJSON file with curl: KEY=ig_... send.sh URL FILE
#
# The request is repeated, with the one Idempotency-Key, when there is no answer, at 408, 500, 502, 503 and 504, and at a 429
# with Retry-After: that is nginx's rate limit, and the quota's has none. The exit status is 0 if the events are stored, else 1.
set -eu
key=$(cat /proc/sys/kernel/random/uuid)
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
attempt=0
while :; do
    # the API key comes on standard input, since every user of the machine can read a command line
    status=$(printf 'header = "Authorization: Bearer %s"' "$KEY" | curl --config - --silent --output "$answer" \
        --write-out '%{http_code}%header{retry-after}' --max-time 35 --header "Idempotency-Key: $key" \
        --header 'Content-Type: application/x-ndjson' --data-binary "@$2" "$1") || status=000
    attempt=$((attempt + 1))
    case $status in
        200) cat "$answer"; exit 0 ;;
        000* | 408* | 429?* | 500* | 502* | 503* | 504*) [ "$attempt" -lt 10 ] || break ;;
        *) break ;;
    esac
    sleep "$attempt"
done
echo "send.sh: not stored, $(printf %.3s "$status"): $(cat "$answer")" >&2
exit 1
