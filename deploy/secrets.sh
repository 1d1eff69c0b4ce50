#!/bin/sh
# Make the secrets of compose.yaml, each a file in deploy/secrets: passwords of the Redis users with redis/users.acl filled
# in, a token for the console, a password for Grafana. What exists stays. To change one: delete the folder, run this,
# and start all services anew.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
    echo "$PWD/secrets exists: nothing is done; delete it to make all secrets anew" >&2
    exit 1
fi
umask 077
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
made=secrets.$$
mkdir "$made"
trap 'rm -rf "$made"' EXIT
grep -v '^#' redis/users.acl > "$made/users.acl"
for user in WORKER PRODUCER READER OPERATOR; do
    password=$(secret)
    sed "s/CHANGE-ME-$user/$password/" "$made/users.acl" > "$made/next"
    mv "$made/next" "$made/users.acl"
    printf '%s\n' "$password" > "$made/redis_$(echo "$user" | tr '[:upper:]' '[:lower:]')"
done
if grep -q CHANGE-ME "$made/users.acl"; then
    echo "redis/users.acl has a user that this script does not know: $(grep -o 'CHANGE-ME[A-Z-]*' "$made/users.acl")" >&2
    exit 1
fi
printf '%s %s\n' "${1:-$(id -un)}" "$(secret)" > "$made/console_tokens"
secret > "$made/grafana_admin"
# Compose mounts each file as it is, and the containers' users are not this one: the folder keeps others out.
chmod 644 "$made"/*
mv "$made" secrets
trap - EXIT
echo "made: $(ls secrets | tr '\n' ' ')"
echo "the console's token: $(cat secrets/console_tokens)"
