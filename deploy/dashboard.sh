#!/bin/sh
# Runs the dashboard with a token that is made once, and says where its page is.
set -eu

token=$PORTHOLE_DASHBOARD_TOKEN_FILE
if [ ! -s "$token" ]; then
  umask 077
  python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$token.new"
  mv "$token.new" "$token"
fi
echo "the page: http://127.0.0.1:${PORTHOLE_PAGE_PORT:-4380}/?token=$(cat "$token")"
exec python -m services.dashboard
