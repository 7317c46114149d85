#!/bin/bash
# The machine's end of `cargo xtask vm`. A line that comes in is a limit in seconds and a command. What the command prints
# goes back, then a byte that no text has and the exit status. When the host hangs up, this ends, and the machine with it.
exec 3<>/dev/virtio-ports/faasd.agent || exit
printf '\036ready\n' >&3
while read -r limit command <&3; do
    timeout --kill-after=10 "$limit" bash -c "$command" </dev/null >&3 2>&1 3>&-
    printf '\036%d\n' $? >&3
done
