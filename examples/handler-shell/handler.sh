#!/bin/sh
# A function with its standard answers: text, JSON, a stream, a failure.
case $PATH_INFO in
    /json) printf 'Content-Type: application/json\n\n{"you_sent": %s}\n' "$(cat)" ;;
    /stream) for i in 0 1 2; do echo "part $i"; done ;;
    /fail) echo "as it was asked to" >&2; exit 1 ;;
    *) if [ "$REQUEST_METHOD" = POST ]; then cat; else echo "hello from $FAAS_FUNCTION, ${FAAS_PEER:-$REMOTE_ADDR}"; fi ;;
esac
