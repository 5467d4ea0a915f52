#!/bin/sh
# Checks this folder with a POSIX shell, awk and coreutils, and prints one line: OK, or what is not.
#     sh check.sh [DIGEST...]      DIGEST is that of an entry which was kept elsewhere
# 1. Each line of chain.ndjson names the SHA-256 of the line before, and the numbers and periods have no gap.
# 2. SHA256SUMS lists the newest entry of each period of this folder that has events, and each file has that SHA-256.
# 3. Each DIGEST is that of an entry.
set -u
export LC_ALL=C
since={{ since }} until={{ until }}
fail() { echo "NOT OK: $*"; exit 1; }
cd "$(dirname "$0")" || exit 1
if command -v sha256sum > /dev/null; then sum=sha256sum; else sum='shasum -a 256'; fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

[ -s chain.ndjson ] || fail "chain.ndjson has no entry"
mkdir "$tmp/lines"
split -a 5 -l 1 chain.ndjson "$tmp/lines/" || fail "chain.ndjson can't be read"
(cd "$tmp/lines" && ls | xargs $sum) | cut -c 1-64 > "$tmp/digests"
awk -F '"' -v from="$since" -v to="$until" -v found="$tmp/found" '
    BEGIN { before[1] = sprintf("%064d", 0); end = "1970-01-01T00:00:00.000000Z" }
    NR == FNR { before[FNR + 1] = $0; next }
    {
        is_seal = /"reason": null}$/; is_set_back = /"reason": "seal /
        gsub(/[^0-9]/, "", $3); number = $3 + 0
        if (number != FNR) { print "line " FNR " of chain.ndjson is entry " number; exit }
        if ($20 != before[FNR]) { print "entry " FNR " does not follow from the entry before it"; exit }
        if (is_seal && $6 != end) { print "entry " FNR " does not begin where the period before it ends"; exit }
        gsub(/[^0-9]/, "", $13); events[FNR] = $13 + 0; digest[FNR] = $16
        if (is_set_back) while (n && begins[n] >= $6) n--
        if (is_seal || is_set_back) { n++; begins[n] = $6; ends[n] = end = $10; newest[n] = FNR }
        else for (i = 1; i <= n; i++) if (begins[i] >= $6 && ends[i] <= $10) newest[i] = FNR
    }
    END {
        for (i = 1; i <= n; i++)
            if (ends[i] > from && begins[i] < to && events[newest[i]]) print digest[newest[i]], newest[i] > found
    }
' "$tmp/digests" chain.ndjson > "$tmp/broken"
[ ! -s "$tmp/broken" ] || fail "$(cat "$tmp/broken")"
for digest in "$@"; do
    grep -qx "$digest" "$tmp/digests" || fail "no entry has the digest $digest: the chain is not the one that was kept"
done
files="its files are not in this folder"
if [ -e SHA256SUMS ]; then
    sed 's|^\([0-9a-f]*\)  events/0*\([0-9]*\)-.*|\1 \2|' SHA256SUMS | sort > "$tmp/listed"
    sort "$tmp/found" 2> /dev/null | cmp -s - "$tmp/listed" || fail "SHA256SUMS does not list the files that the chain names"
    [ ! -s SHA256SUMS ] || $sum -c SHA256SUMS > "$tmp/checked" 2>&1 || fail "$(grep -v ': OK$' "$tmp/checked" | head -3)"
    files="$(wc -l < SHA256SUMS | tr -d ' ') files as the chain names them"
fi
kept="$# kept digests found in it"
[ $# != 0 ] || kept="no kept digest was compared: its maker could have made all of it again"
echo "OK: $(wc -l < chain.ndjson | tr -d ' ') entries, linked; $files; $kept; the newest entry is $(tail -n 1 "$tmp/digests")"
