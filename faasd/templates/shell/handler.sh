#!/bin/sh
# A function: one run for each request. Variables as of CGI (docs/HANDLERS.md), the body on standard input, the answer on
# standard output, standard error to the log.
set -eu

case $REQUEST_METHOD in
    GET)
        name=$(printf '%s' "$QUERY_STRING" | sed -n 's/^name=//p')
        echo "hello, ${name:-world}"
        ;;
    POST)
        tr '[:lower:]' '[:upper:]'
        ;;
    *)
        printf 'Status: 405\nAllow: GET, POST\n\n'
        ;;
esac
