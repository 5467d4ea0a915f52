#!/bin/sh
# Send the events of an NDJSON file with curl: KEY=ig_... send.sh URL FILE
#
# The request is repeated, with the one Idempotency-Key, when there is no response, at 408, 500, 502, 503 and 504, and at a
# 429 with Retry-After: that is nginx's rate limit, and the quota's has none. The exit status is 0 if the events are stored,
# 2 if KEY, URL or FILE is missing or wrong, else 1.
set -eu
usage() { echo "send.sh: $1; call it as KEY=ig_... send.sh URL FILE" >&2; exit 2; }
KEY=$(printf %s "${KEY:-}" | tr -d '[:space:]')
case $KEY in ig_*) [ ${#KEY} = 43 ] || usage "KEY must be ig_ and 40 letters and digits" ;; *) usage "KEY must begin with ig_" ;; esac
[ $# = 2 ] || usage "it needs a URL and a file"
[ -r "$2" ] || usage "there is no file $2"

key=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n')
response=$(mktemp)
trap 'rm -f "$response"' EXIT
attempt=0
while :; do
    # the API key comes on standard input, since every user of the machine can read a command line
    status=$(printf 'header = "Authorization: Bearer %s"' "$KEY" | curl --config - --silent --output "$response" \
        --write-out '%{http_code}%header{retry-after}' --max-time 35 --header "Idempotency-Key: $key" \
        --header 'Content-Type: application/x-ndjson' --data-binary "@$2" "$1") || {
        case $? in
            1 | 3) usage "the URL is wrong" ;;
            51 | 60 | 77) echo "send.sh: not sent: the certificate does not verify" >&2; exit 1 ;;
        esac
        status=000
    }
    attempt=$((attempt + 1))
    case $status in
        200) cat "$response"; exit 0 ;;
        000* | 408* | 429?* | 500* | 502* | 503* | 504*) [ "$attempt" -lt 10 ] || break ;;
        *) break ;;
    esac
    sleep "$attempt"
done
echo "send.sh: not stored, $(printf %.3s "$status"): $(cat "$response")" >&2
exit 1
