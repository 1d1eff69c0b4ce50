#!/bin/sh
# Make the secrets of compose.yaml, each a file in deploy/secrets: passwords of the Redis users with redis/users.acl filled
# in, a token for the console, a password for Grafana. What exists stays. To change them: delete the folder, run this, start
# all services anew, and tell Grafana its password, which it takes from here at its first start alone: docs/operate.md.
#
#   deploy/secrets.sh [NAME]    whose the console's token is; left out: who runs this
set -eu
export LC_ALL=C # letters are those of ASCII
cd "$(dirname "$0")"
name=${1:-$(id -un)}
case $name in
    *[!A-Za-z0-9_.@-]*)
        echo "the console's user is '$name', expected letters, digits and _.@- alone; name one: deploy/secrets.sh NAME" >&2
        exit 1
        ;;
esac
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
printf '%s %s\n' "$name" "$(secret)" > "$made/console_tokens"
secret > "$made/grafana_admin"
# Compose mounts each file as it is, and the containers' users are not this one: the folder keeps others out.
chmod 644 "$made"/*
mv "$made" secrets
trap - EXIT
echo "made: $(ls secrets | tr '\n' ' ')"
echo "the console's token: $(cat secrets/console_tokens)"
