#!/bin/sh
set -eu
cd "$(dirname "$0")"

[ "$(REQUEST_METHOD=GET QUERY_STRING=name=you sh ./handler.sh)" = 'hello, you' ]
[ "$(echo abc | REQUEST_METHOD=POST QUERY_STRING='' sh ./handler.sh)" = ABC ]
echo ok
